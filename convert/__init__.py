"""NeMo archives to converted models: the only place that reads a torch checkpoint."""
