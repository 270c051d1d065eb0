"""What is freed stays with the process until it is given back; weights lie where they are read fastest."""

import subprocess
import sys

MEASURED = """
import ctypes, gc
import numpy as np
from model import allocator  # `import model` sets the options

def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

before = resident_mb()
arrays = [np.ones(20_000_000 // 8) for _ in range(10)]
held = resident_mb() - before
del arrays
gc.collect()
freed = resident_mb() - before
allocator.give_back_freed_memory()
print(round(held), round(freed), round(resident_mb() - before))
"""


def test_freed_arrays_stay_with_the_process_until_they_are_given_back():
    if sys.platform != "linux":  # there the options do not exist, and asking for them does no harm
        from model import allocator

        allocator.keep_freed_memory()
        assert allocator.give_back_freed_memory() is None
        return
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    held, freed, given_back = map(int, done.stdout.split())
    assert held >= 200
    assert freed >= 200
    assert given_back < 20


def test_weights_begin_where_pages_do():
    import mlx.core as mx
    import numpy as np

    from model import allocator

    def place(x: mx.array) -> int:
        mx.eval(x)
        return np.array(x, copy=False).ctypes.data % 4096

    with allocator.on_pages_of_their_own():
        held = [mx.ones((256, 1024 + n)) for n in range(8)]
        places = [place(x) for x in held]
    # But for what malloc and MLX note before them.
    assert max(places) < 64 if sys.platform == "linux" else places
