from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import xclip_search

COMMAND = [sys.executable, "-m", "xclip_search"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def test_help_lists_every_command_and_is_quick():
    started = time.perf_counter()
    result = run("--help")
    elapsed_seconds = time.perf_counter() - started
    assert result.returncode == 0, result.stderr
    for name in xclip_search.ROOMS:
        assert name in result.stdout
    # About 0.4 s on an idle machine; torch alone would take five.
    assert elapsed_seconds < 4.0


@pytest.mark.parametrize("name", xclip_search.ROOMS)
def test_every_command_explains_itself(name):
    result = run(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: xclip-search" in result.stdout
    assert name in result.stdout


def test_an_unknown_command_is_wrong_use():
    result = run("fly")
    assert result.returncode == 2
    assert "fly" in result.stderr


def test_the_version_is_the_distributions():
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("xclip-search 0.")
