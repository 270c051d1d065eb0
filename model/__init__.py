"""NVIDIA Canary on MLX: waveforms in, transcripts out. Knows no HTTP and no NeMo."""

from model import allocator, blas

# Before anything below this package imports mlx.core: afterwards it would be too late.
blas.load()
allocator.keep_freed_memory()
