"""What `xclip-search COMMAND --help` says, and how the program answers typing errors."""

from __future__ import annotations

import json
import re

import pytest
import typer.main
from typer.testing import CliRunner

import xclip_search
from indexer.store.filters import parse_filter

WITHOUT_EXAMPLES = {"demo", "evaluate", "train", "ablate", "convert", "push", "keys"}
OF_AN_INDEX = [name for name in xclip_search.COMMANDS if name not in WITHOUT_EXAMPLES]


@pytest.mark.parametrize("name", OF_AN_INDEX)
def test_every_command_of_an_index_has_an_example(name: str) -> None:
    command = typer.main.get_command(xclip_search.app).get_command(None, name)  # type: ignore[attr-defined]
    assert f"xclip-search {name} " in (command.help or "") + (getattr(command, "epilog", None) or "")


@pytest.mark.parametrize("name", xclip_search.COMMANDS)
def test_a_help_breaks_its_lines_where_the_terminal_ends_and_nowhere_else(name: str) -> None:
    command = typer.main.get_command(xclip_search.app).get_command(None, name)  # type: ignore[attr-defined]
    for paragraph in (command.help or "").split("\n\n"):
        assert "\n" not in paragraph or paragraph.startswith(" ")


def test_a_misspelt_command_is_answered_with_the_one_that_was_meant() -> None:
    result = CliRunner().invoke(xclip_search.app, ["serach", "a dog"])
    assert result.exit_code == 2
    assert "Did you mean search" in result.output


@pytest.mark.parametrize("name", ["search", "list"])
def test_filters_in_examples_are_filters(name: str) -> None:
    command = typer.main.get_command(xclip_search.app).get_command(None, name)  # type: ignore[attr-defined]
    examples = re.findall(r"--filter '(.*?)'", command.help)
    assert examples
    for example in examples:
        parse_filter(json.loads(example))
