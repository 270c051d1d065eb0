"""NVIDIA Canary, on a GPU with MLX, on a CPU with numpy: waveforms in, transcripts out. Knows no HTTP and no NeMo."""

import os

from model.cpu import allocator

# For torch, before it is loaded: its idle threads wait for work by keeping a core busy, which numpy's BLAS then lacks.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
allocator.keep_freed_memory()
