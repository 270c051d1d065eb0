"""What is freed stays with the process until it is given back."""

import subprocess
import sys

MEASURED = """
import ctypes, gc
import numpy as np, psutil
from model.cpu import allocator
from model.process import prepare_process

prepare_process()

def resident_mb():
    return psutil.Process().memory_info().rss / 1e6

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
        from model.cpu import allocator

        allocator.keep_freed_memory()
        assert allocator.give_back_freed_memory() is None
        return
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    held, freed, given_back = map(int, done.stdout.split())
    assert held >= 200
    assert freed >= 200
    assert given_back < 20
