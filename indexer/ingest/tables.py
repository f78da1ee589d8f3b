"""Tables as spreadsheets save them: CSV of any dialect to rows with their line numbers.

What can be read in one way only is read: commas, semicolons, tabs or bars between cells, blanks around them,
UTF-8 with or without its mark, UTF-16 with it, a first line `sep=;`, names of columns in capitals, blank
rows, line breaks inside quotation marks. What could mean two things is refused, in one sentence that says
what to change.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from indexer.errors import ManifestError
from indexer.store.text import nfc

CSV_ENDINGS: Final = frozenset({".csv", ".tsv", ".tab", ".txt"})

_DELIMITERS: Final = (",", ";", "\t", "|")
_SEPARATOR_LINE: Final = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
"""What Excel takes, and some programs write, before the header."""

_ENCODINGS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_WORKBOOKS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
"""First bytes of .xlsx and .ods, and of .xls."""

_MAX_EXACT_INTEGER: Final = 2**53
"""Beyond it not every whole number is a float64: a column of such numbers holds names, not amounts."""

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
"""As in JSON (RFC 8259 section 6)."""

_MAX_NUMBER_LENGTH: Final = 40
"""Characters; Python refuses to read whole numbers of thousands of digits."""

_GROUPED: Final = re.compile(r"-?[1-9][0-9]{0,2}(?:[.,][0-9]{3})+")


@dataclass(frozen=True)
class Table:
    """Rows of a CSV file.

    Attributes:
        delimiter: between cells.
        columns: names as the header has them, without the blanks around them; those that were asked for in
            lower case.
        rows: (number of the line where the row begins, cell by column). A cell that is blank is left out.
    """

    delimiter: str
    columns: tuple[str, ...]
    rows: tuple[tuple[int, Mapping[str, str]], ...]


@dataclass(frozen=True)
class TypedColumn:
    """The cells of a column as JSON values.

    kind: `number`, `truth` or `text`. doubt: why it is text although it might be taken for numbers.
    """

    values: Sequence[str | int | float | bool]
    kind: str
    doubt: str | None = None


def read_text(path: Path) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        ManifestError: it cannot be read, or is no text; the message says what to change.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"the manifest {path} cannot be read: {error.strerror}") from None
    if data.startswith(_WORKBOOKS):
        raise ManifestError(f"the manifest {path} is a workbook: save its sheet as CSV UTF-8")
    # UTF-16 only by its mark: without one, the encoding would be a guess.
    encoding = next((name for mark, name in _ENCODINGS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16":
            raise ManifestError(f"the manifest {path} is damaged UTF-16: save it as UTF-8") from None
        line = data[: error.start].count(b"\n") + 1
        raise ManifestError(
            f"line {line} of the manifest is not UTF-8 text: save it as CSV UTF-8, or where it was written on"
            f" Windows, convert it by: iconv -f WINDOWS-1252 -t UTF-8 {path.name}"
        ) from None
    if (position := text.find("\0")) >= 0:
        line = text.count("\n", 0, position) + 1
        raise ManifestError(
            f"line {line} of the manifest holds a zero character (U+0000): remove it, or where the file is"
            " UTF-16, save it as UTF-8"
        )
    return text


def parse_table(text: str, known: Collection[str]) -> Table:
    """The rows of a CSV text.

    Args:
        text: with a header line, in which there is a column `path`.
        known: names of columns, `path` among them, that are meant whatever their case.

    Raises:
        ManifestError: it is not such a text, or could be read in two ways; the message names the line.
    """
    first_line = 1
    delimiters: Sequence[str] = _DELIMITERS
    if mark := _SEPARATOR_LINE.match(text):
        text, delimiters, first_line = text[mark.end() :], (mark[1],), 2
    blank = len(text) - len(text.lstrip("\r\n"))
    text, first_line = text[blank:], first_line + text[:blank].count("\n")
    headers = {one: _header(text, one) for one in delimiters}
    # With a column `path` first, then by how many columns there are; the first of equals.
    delimiter = max(delimiters, key=lambda one: ("path" in _named(headers[one], known), len(headers[one])))
    columns = _named(headers[delimiter], known)
    if "path" not in columns:
        found = ", ".join(name for name in columns if name) or "nothing"
        raise ManifestError(
            "the first line of a CSV manifest names its columns, `path` among them (the video's file);"
            f" this one names {found}"
        )
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise ManifestError(f"two columns of the manifest are called {twice[0]}: rename or remove one")
    rows = tuple(_rows(text, delimiter, columns, first_line))
    return Table(delimiter, tuple(name for name in columns if name), rows)


def typed_column(cells: Sequence[str], lines: Sequence[int], delimiter: str) -> TypedColumn:
    """Numbers where each of the cells is one, true and false where each is one of these, else the text.

    A number is what JSON calls one. It is not one with a leading zero (a postal code), a plus sign (a
    telephone number), or a whole one beyond 2^53 (where floating-point numbers lose digits). Where semicolons
    stand between cells, a comma may stand before decimals, as spreadsheets write both where that is the
    custom; there, a column is text in which every comma or point might as well group thousands.

    Args:
        cells: of one column, none of them blank.
        lines: where they are.
        delimiter: between the cells of the file.

    Example:
        >>> typed_column(["1,5", "2"], [2, 3], ";").values, typed_column(["007", "12"], [2, 3], ",").values
        ([1.5, 2], ['007', '12'])
    """
    truths = [cell.lower() for cell in cells]
    if set(truths) <= {"true", "false"}:
        return TypedColumn([truth == "true" for truth in truths], "truth")
    has_commas = delimiter == ";"
    values = [_number(cell.replace(",", ".") if has_commas else cell) for cell in cells]
    others = [position for position, value in enumerate(values) if value is None]
    if others:
        digits = [position for position in others if cells[position].lstrip("+-").isdigit()]
        telling = digits or (others if len(others) <= len(cells) / 2 else [])
        doubt = _doubt(cells[telling[0]], lines[telling[0]]) if telling else None
        return TypedColumn(cells, "text", doubt)
    fractions = [cell for cell in cells if "." in cell or "," in cell]
    if has_commas and fractions and all(map(_GROUPED.fullmatch, fractions)):
        return TypedColumn(cells, "text", "a comma or point may stand before decimals or group thousands")
    if has_commas and len({mark for cell in fractions for mark in ".," if mark in cell}) > 1:
        return TypedColumn(cells, "text", "some decimals have a comma and some a point")
    return TypedColumn([value for value in values if value is not None], "number")


def _number(cell: str) -> int | float | None:
    """The number that a cell is; None where it is none, or would lose digits."""
    if len(cell) > _MAX_NUMBER_LENGTH or not _NUMBER.fullmatch(cell):
        return None
    if cell.lstrip("-").isdigit():
        whole = int(cell)
        return whole if abs(whole) <= _MAX_EXACT_INTEGER else None
    value = float(cell)
    return value if math.isfinite(value) else None


def _doubt(cell: str, line: int) -> str:
    """Why a column with numbers is text: its first cell that is not a number."""
    digits = cell.lstrip("+-")
    if digits.isdigit():
        kind = (
            "a plus sign" if cell.startswith("+") else "leading zeros" if digits[0] == "0" else "many digits"
        )
        return f"{kind} in line {line}"
    return f"line {line} is not a number as in 1234.5"


def _header(text: str, delimiter: str) -> list[str]:
    """The cells of the first row."""
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    try:
        return [cell.strip() for cell in next(reader, [])]
    except csv.Error:
        return []


def _named(header: Sequence[str], known: Collection[str]) -> list[str]:
    return [name.lower() if name.lower() in known else nfc(name) for name in header]


def _rows(
    text: str, delimiter: str, columns: Sequence[str], first_line: int
) -> Iterator[tuple[int, Mapping[str, str]]]:
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
    )
    line = first_line
    try:
        next(reader)
        while True:
            line = first_line + reader.line_num
            row = next(reader, None)
            if row is None:
                return
            cells = [cell.strip() for cell in row]
            filled = max((number for number, cell in enumerate(cells, start=1) if cell), default=0)
            # Excel leaves out blank cells at the end of a row.
            if filled > len(columns):
                raise ManifestError(
                    f"line {line} of the manifest has {filled} cells, its header has {len(columns)}: name"
                    f" the columns, or put quotation marks around a cell that holds a {_spoken(delimiter)}"
                )
            if filled and any(cell and not name for name, cell in zip(columns, cells, strict=False)):
                raise ManifestError(
                    f"line {line} of the manifest has a cell in a column that the header does not name"
                )
            if filled:
                yield line, {name: cell for name, cell in zip(columns, cells, strict=False) if cell}
    except csv.Error as error:
        reason = "a quotation mark is not closed" if "unexpected end" in str(error) else str(error)
        raise ManifestError(f"line {line} of the manifest is not CSV: {reason}") from None


def _spoken(delimiter: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, delimiter)
