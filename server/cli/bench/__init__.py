"""What `canary bench` measures: the model's stages, and a server under load."""
