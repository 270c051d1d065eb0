"""Convert NeMo archives to MLX models. Only this package reads torch checkpoints."""
