"""Kernels are compiled once on a machine, whichever processes start together."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

KERNEL = """
from numba import types
from model.kernels.vectors import compiled

def _add(a, b):
    return a + b

print("ready", flush=True)
input()
kernel = compiled(_add, [types.int64(types.int64, types.int64)])
assert kernel(1, 2) == 3 and kernel.py_func is _add
print(sum(kernel.stats.cache_hits.values()))
"""


def started(folder, before=""):
    """KERNEL in a process of its own, with Numba's cache in folder/cache. before: code."""
    (folder / "kernel.py").write_text(f"{before}\n{KERNEL}")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(folder / "kernel.py")]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_of_processes_that_start_together_one_compiles(tmp_path):
    processes = [started(tmp_path) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # All of them are about to compile.
        process.stdin.write("\n")
        process.stdin.flush()
    assert sorted(process.communicate()[0] for process in processes) == ["0\n", "1\n", "1\n"]


def test_without_a_folder_that_can_be_written_to_a_kernel_is_compiled_all_the_same(tmp_path):
    (tmp_path / "cache").touch()  # No folder can be made there.
    process = started(tmp_path)
    assert process.communicate("\n")[0] == "ready\n0\n"
    assert process.returncode == 0


def test_where_files_cannot_be_locked_a_kernel_is_kept_all_the_same(tmp_path):
    before = """
import errno, filelock

def refuse(*given, **named):
    raise OSError(errno.ENOLCK, "no locks")

filelock.FileLock.acquire = refuse
"""
    assert [started(tmp_path, before).communicate("\n")[0] for _ in range(2)] == ["ready\n0\n", "ready\n1\n"]
