"""Reading annotations: lists, JSON, lines with tabs. Each complaint names the file and the line or entry.

All text is UTF-8, with or without a byte order mark, with any line ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import DatasetError


@dataclass(frozen=True)
class AnnotatedClip:
    """What annotations say of one clip, before its video is searched for.

    Attributes:
        id: Unique within the split.
        texts: At least one, none of them empty.
        names: Names that its file may have in the folder of videos, best first, each whole (`x.mov`) or
            without its ending (`x`). Empty where `path` names the file itself.
        start_seconds, end_seconds: The interval that is read, None for the whole file.
    """

    id: str
    texts: tuple[str, ...]
    names: tuple[str, ...] = ()
    path: Path | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None


def read_text(path: Path) -> str:
    """All of a file.

    Raises:
        DatasetError: It is not there or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DatasetError(f"{path}, line {line}: not UTF-8 text") from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that hold something, without the spaces around them, and their numbers from 1.

    Lines end at a line feed or carriage return only; a text may hold any other separator of Unicode.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip():
            yield number, line


def read_id_list(path: Path) -> list[str]:
    """One id a line.

    Raises:
        DatasetError: An id is listed twice, or there is none.
    """
    lines: dict[str, int] = {}
    for number, line in read_lines(path):
        if line in lines:
            raise DatasetError(f"{path}, line {number}: {line!r} is also on line {lines[line]}")
        lines[line] = number
    if not lines:
        raise DatasetError(f"{path} is empty")
    return list(lines)


def read_json(path: Path) -> Any:
    """A JSON value.

    Raises:
        DatasetError: It is not one; the message names the line.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """A JSON value. Raises DatasetError, which begins with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where} is not JSON: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # A number of thousands of digits; thousands of brackets.
        raise DatasetError(f"{where} is not JSON that can be read: {error}") from None


def checked_text(value: object, where: str) -> str:
    """`value` as a text that can be searched for. Raises DatasetError, which begins with `where`."""
    if not isinstance(value, str):
        raise DatasetError(f"{where}: the text is {_kind(value)}, not a string")
    if not value.strip():
        raise DatasetError(f"{where}: the text is empty")
    if not _is_unicode(value):
        raise DatasetError(f"{where}: the text holds a lone surrogate")
    return value


def checked_id(value: object, where: str) -> str:
    """`value` as a clip's id. Raises DatasetError, which begins with `where`."""
    if not isinstance(value, str):
        raise DatasetError(f"{where}: the id is {_kind(value)}, not a string")
    if not value.strip() or not value.isprintable():
        raise DatasetError(f"{where}: the id {value!r} is empty or holds what cannot be printed")
    return value


def first_few(names: Iterable[str], num_shown: int = 20) -> str:
    """Names in a row, and how many more there are."""
    names = list(names)
    shown = ", ".join(names[:num_shown])
    return shown if len(names) <= num_shown else f"{shown} and {len(names) - num_shown} more"


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
