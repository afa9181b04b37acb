"""Freed memory stays with the process: a second round of the same blocks meets no fresh page."""

import os
import subprocess
import sys

import pytest

from slowfast.utils.memory import keep_freed_memory

ROUNDS = """
import resource, sys
from slowfast.utils.memory import keep_freed_memory
import torch
print(keep_freed_memory(large=sys.argv[2] == "True"))
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(int(sys.argv[1]) * 2**18) for _ in range(12)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def last_round(block_mb, *, large=False, **env):
    """Whether the memory was to be kept, and the pages that the last of four equal rounds met for the first time."""
    command = [sys.executable, "-c", ROUNDS, str(block_mb), str(large)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env={**os.environ, **env})
    kept, faults = result.stdout.split()
    return kept == "True", int(faults)


def has_glibc():
    return sys.platform == "linux" and "glibc" in os.confstr("CS_GNU_LIBC_VERSION")


@pytest.mark.skipif(not has_glibc(), reason="only glibc has these thresholds")
def test_the_next_step_takes_the_same_memory():
    kept, faults = last_round(24)
    assert kept
    assert faults < 2_000  # of 70 000 pages of 4 KB
    # What the environment asks for stays: here, that every block is given back.
    kept, faults = last_round(24, MALLOC_MMAP_THRESHOLD_="65536")
    assert not kept
    assert faults > 100  # pages may be huge ones


@pytest.mark.skipif(not has_glibc(), reason="only glibc has these thresholds")
def test_large_blocks_are_kept_where_asked_for():
    assert last_round(40)[1] > 100
    kept, faults = last_round(40, large=True)
    assert kept
    assert faults < 4_000  # of 120 000


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_TRIM_THRESHOLD_", "1"), ("MALLOC_MMAP_MAX_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1")],
)
def test_what_the_environment_says_stays(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    class Other:
        def __init__(self, name):
            pass

    monkeypatch.setattr("ctypes.CDLL", Other)
    assert not keep_freed_memory()
