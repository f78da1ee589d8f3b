"""Errors as one line and an exit status, as every command has them."""

from __future__ import annotations

import ast
import errno
import json
import unicodedata
from pathlib import Path

import pytest
import typer

from indexer.errors import BackupDamagedError, IndexFullError, IndexNotFoundError
from model.errors import CheckpointError, SpecError
from training.errors import ConfigError, DatasetError
from xclip_search.console import (
    DAMAGED,
    FAILED,
    INTERRUPTED,
    WRONG_USE,
    errors_explained,
    explain_os_error,
    print_json,
    printable,
    stop,
)

REFUSED = OSError(errno.EROFS, "Read-only file system", "/here")


@pytest.mark.parametrize(
    ("error", "line", "status", "status_where_work_fails"),
    [
        (IndexNotFoundError("no index"), "error: no index", WRONG_USE, FAILED),
        (BackupDamagedError("damaged"), "error: damaged", DAMAGED, DAMAGED),
        (IndexFullError("full"), "error: full; kept", WRONG_USE, FAILED),
        (REFUSED, "error: /here: Read-only file system; kept", WRONG_USE, FAILED),
        (SpecError("no model"), "error: no model", WRONG_USE, WRONG_USE),
        (CheckpointError("unreadable"), "error: unreadable", WRONG_USE, FAILED),
        (ConfigError("no config"), "error: no config", WRONG_USE, WRONG_USE),
        (DatasetError("no clips"), "error: no clips", WRONG_USE, FAILED),
        (KeyboardInterrupt(), "interrupted; kept", INTERRUPTED, INTERRUPTED),
    ],
)
def test_an_error_is_one_line_and_a_status(
    error: BaseException,
    line: str,
    status: int,
    status_where_work_fails: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for failed, expected in ((WRONG_USE, status), (FAILED, status_where_work_fails)):
        with pytest.raises(typer.Exit) as ended, errors_explained("kept", failed=failed):
            raise error
        assert ended.value.exit_code == expected
        assert capsys.readouterr().err == line + "\n"


def test_a_bug_keeps_its_traceback_and_a_command_that_stops_its_status() -> None:
    with pytest.raises(KeyError), errors_explained():
        raise KeyError("bug")
    with pytest.raises(ValueError, match="bug"), errors_explained(failed=FAILED):
        raise ValueError("bug")
    with pytest.raises(typer.Exit) as ended, errors_explained():
        stop("no", FAILED)
    assert ended.value.exit_code == FAILED


def test_an_error_of_the_system_names_its_path(tmp_path: Path) -> None:
    assert explain_os_error(REFUSED) == "/here: Read-only file system"
    assert explain_os_error(OSError(errno.ENOSPC, "No space left on device")) == (
        "the disk: No space left on device"
    )
    assert explain_os_error(OSError(errno.EIO, "Input/output error"), tmp_path).startswith(str(tmp_path))
    assert explain_os_error(ConnectionError("no network")) == "no network"


HOSTILE = "a\x1b]0;title\x07\x1b[2J\r\n\tb\x9b1m\x7f\u202egpj.\u2066x\u2028y\udce9\ud800"
"""Sets the window's title, rings, clears the screen, begins lines, hides an ending, is not UTF-8."""


def test_what_would_steer_a_terminal_is_escaped() -> None:
    assert printable(HOSTILE) == (
        r"a\x1b]0;title\x07\x1b[2J\r\n\tb\x9b1m\x7f\u202egpj.\u2066x\u2028y\xe9\ud800"
    )
    for kept in ("Straße", "日本語", "👩\u200d👩\u200d👧", "\u200fكلب", "e\u0301", "C:\\x"):
        assert printable(kept) == kept
    assert printable("one\ntwo\x1b", keep_lines=True) == "one\ntwo\\x1b"
    every = "".join(map(chr, range(0x110000)))
    left = {character for character in printable(every) if unicodedata.category(character) in ("Cc", "Cs")}
    assert not left


def test_json_says_the_same_and_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, "Straße"]}
    print_json(value)
    text = capsys.readouterr().out
    assert json.loads(text) == value and "Straße" in text
    assert printable(text, keep_lines=True) == text


def test_every_command_prints_through_the_one_function_that_escapes() -> None:
    others = []
    for path in Path("xclip_search").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and path.name not in ("console.py", "__init__.py"):
                called = ast.unparse(node.func)
                if called in ("typer.echo", "typer.secho", "print", "sys.stdout.write", "sys.stderr.write"):
                    others.append(f"{path.name}:{node.lineno}: {called}")
    assert not others
