"""How this process asks the system for memory."""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # names of glibc's parameters, from malloc.h
KEPT, OWN_BLOCK = 2**30, 2**25  # bytes; the second is the largest that glibc takes


def keep_freed_memory(*, large: bool = False) -> bool:
    """Let glibc keep what was freed for the next step, instead of giving it back to the system after each.

    The system clears every page that it hands out, so a network on a CPU whose activations come and go pays for that
    in each step. The peak stays what it was; between steps the process is as large as at its peak. Blocks above 32 MB
    are still given back unless ``large``: in evaluation, where no activation waits for a backward pass, they fit into
    each other's places, in training they do not always. Nothing happens without glibc, or where the environment sets
    these thresholds itself (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_``,
    ``GLIBC_TUNABLES``). Returns whether it was done.
    """
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")
    is_set = any(name in os.environ for name in names) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if is_set or sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    done = mallopt(TRIM_THRESHOLD, KEPT) and mallopt(MMAP_THRESHOLD, OWN_BLOCK)
    return bool(done and (not large or mallopt(MMAP_MAX, 0)))
