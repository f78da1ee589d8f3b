from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.text import Text

import xclip_search

COMMAND = [sys.executable, "-m", "xclip_search"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def processor_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_lists_every_command_and_is_quick():
    before = processor_seconds_of_children()
    result = run("--help")
    seconds = processor_seconds_of_children() - before
    assert result.returncode == 0, result.stderr
    for name in xclip_search.COMMANDS:
        assert name in result.stdout
    # About 0.4 s; torch alone would take more than two. On a busy machine the clock on the wall says nothing.
    assert seconds < 1.5


@pytest.mark.parametrize("name", xclip_search.COMMANDS)
def test_every_command_explains_itself(name):
    result = run(name, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: xclip-search" in result.stdout
    assert name in result.stdout
    assert "--install-completion" not in result.stdout  # That is the whole program's.


def texts_of(command: Any) -> Iterator[str]:
    """Every text that a command's help is made of, those of its sub-commands too."""
    yield from (text for text in (command.help, *(one.help for one in command.params)) if text)
    for inner in getattr(command, "commands", {}).values():
        yield from texts_of(inner)


@pytest.mark.parametrize("name", xclip_search.COMMANDS)
def test_no_word_of_a_help_is_taken_for_markup(name):
    texts = list(texts_of(typer.main.get_command(xclip_search.app).get_command(None, name)))
    assert texts
    for text in texts:
        assert Text.from_markup(text).plain == text


def test_an_unknown_command_is_wrong_use():
    result = run("fly")
    assert result.returncode == 2
    assert "fly" in result.stderr


def test_the_version_is_the_distributions():
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("xclip-search 0.")
