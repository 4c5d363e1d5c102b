from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from imprint.train.allocator import keep_freed_memory

PROGRAM = """
import resource
from imprint.train.allocator import keep_freed_memory
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.empty(4_000_000).fill_(1.0)  # 16 MB: mapped afresh each time by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
plain = faults()
assert keep_freed_memory()
kept = faults()
print(plain, kept)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_blocks_are_used_again_without_page_faults():
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=env)
    plain, kept = map(int, done.stdout.split())
    assert kept < plain / 3


def test_the_users_own_settings_win(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert keep_freed_memory() is False
