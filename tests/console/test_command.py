"""`xclip-search` itself: its help, what each command's help says, and answers to typing errors."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.text import Text
from typer.testing import CliRunner

import xclip_search
from indexer.store.filters import parse_filter

COMMAND = [sys.executable, "-m", "xclip_search"]
WITHOUT_EXAMPLES = {"demo", "evaluate", "train", "ablate", "convert", "push", "keys", "models"}
OF_AN_INDEX = [name for name in xclip_search.COMMANDS if name not in WITHOUT_EXAMPLES]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, cwd=cwd)


def command_of(name: str) -> Any:
    return typer.main.get_command(xclip_search.app).get_command(None, name)  # type: ignore[attr-defined]


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


def test_no_help_loads_anything_heavy():
    program = (
        "import sys, xclip_search\n"
        "from typer.testing import CliRunner\n"
        "for name in ([], *([one] for one in xclip_search.COMMANDS)):\n"
        "    assert CliRunner().invoke(xclip_search.app, [*name, '--help']).exit_code == 0, name\n"
        "heavy = {'torch', 'faiss', 'fastapi', 'av', 'numpy', 'httpx', 'open_clip'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "given, spins", [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_a_server_says_how_long_threads_spin_before_their_library_is_loaded(given, spins, tmp_path):
    program = (
        "import importlib.abc, os, sys, xclip_search\n"
        "class Report(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *others):\n"
        "        if name in ('torch', 'faiss'):\n"
        "            print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "            sys.stdout.flush()\n"
        "            os._exit(0)\n"
        "sys.meta_path.insert(0, Report())\n"
        "xclip_search.app(sys.argv[1:])\n"
    )
    unset = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | given
    command = [sys.executable, "-c", program, "serve", "--index", str(tmp_path / "index"), "--model", "demo"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, spins), result.stderr


@pytest.mark.parametrize("name", xclip_search.COMMANDS)
def test_every_command_explains_itself(name):
    result = CliRunner().invoke(xclip_search.app, [name, "--help"], prog_name="xclip-search")
    assert result.exit_code == 0, result.output
    assert f"Usage: xclip-search {name}" in result.output
    assert "--install-completion" not in result.output  # That is the whole program's.


def texts_of(command: Any) -> Iterator[str]:
    """Every text that a command's help is made of, those of its sub-commands too."""
    yield from (text for text in (command.help, *(one.help for one in command.params)) if text)
    for inner in getattr(command, "commands", {}).values():
        yield from texts_of(inner)


@pytest.mark.parametrize("name", xclip_search.COMMANDS)
def test_no_word_of_a_help_is_taken_for_markup(name):
    texts = list(texts_of(command_of(name)))
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


@pytest.mark.parametrize("name", OF_AN_INDEX)
def test_every_command_of_an_index_has_an_example(name: str) -> None:
    command = command_of(name)
    assert f"xclip-search {name} " in (command.help or "") + (getattr(command, "epilog", None) or "")


@pytest.mark.parametrize("name", xclip_search.COMMANDS)
def test_a_help_breaks_its_lines_where_the_terminal_ends_and_nowhere_else(name: str) -> None:
    command = command_of(name)
    for paragraph in (command.help or "").split("\n\n"):
        assert "\n" not in paragraph or paragraph.startswith(" ")


def test_a_misspelt_command_is_answered_with_the_one_that_was_meant() -> None:
    result = CliRunner().invoke(xclip_search.app, ["serach", "a dog"])
    assert result.exit_code == 2
    assert "Did you mean search" in result.output


@pytest.mark.parametrize("name", ["search", "list"])
def test_filters_in_examples_are_filters(name: str) -> None:
    command = command_of(name)
    examples = re.findall(r"--filter '(.*?)'", command.help)
    assert examples
    for example in examples:
        parse_filter(json.loads(example))
