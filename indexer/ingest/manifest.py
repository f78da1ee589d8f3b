"""Manifests: lists of files to index that give them ids, titles and metadata.

A manifest is JSONL, one object a line, or a table with a header line as spreadsheets save it (.csv, .tsv,
.txt; see `indexer.ingest.tables`). `path` is required: relative to the manifest's folder, or an address such
as s3://bucket/a.mp4; `id`, `title`, `uri`, `recorded_at`, `transcript` (a .srt or .vtt file, or in JSONL a
list of them) and `metadata` (an object; in a table, its JSON) are optional. Further columns of a table become
metadata: numbers where each of its cells is one.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from indexer.errors import ManifestError
from indexer.ingest.remote_files import RemoteFile, is_remote
from indexer.ingest.tables import CSV_ENDINGS, Table, TypedColumn, parse_table, read_text, typed_column
from indexer.ingest.video_files import local_path
from indexer.store.text import holds_zero, instant, nfc

if TYPE_CHECKING:
    from indexer.store.records import VideoRecord
    from indexer.store.transcripts import Transcript

_FIELDS: Final = ("path", "id", "title", "uri", "recorded_at", "transcript", "metadata")

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|file:")
_WINDOWS_PATH: Final = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class VideoSource:
    """One file to index.

    Attributes:
        path: the file; or where it is fetched from.
        id: chosen by the user, unique in the index; None for a new one.
        title: None for the file's name without its extension.
        metadata: any JSON object.
        uri: None for the address of `path`, file:// where it is here.
        recorded_at: when it was recorded, in seconds since 1970; None for what its container says, or the
            time of the file.
        trusted: whether the operator trusts the file, so that decord may read it.
        record: of a video that is encoded again with another model: the video keeps what the record says, and
            a file of other bytes is refused.
        transcript_files: files of its transcripts; None for those that lie beside it.
        transcripts: of a `record`, those that the video keeps.
    """

    path: Path | RemoteFile
    id: str | None = None
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    uri: str | None = None
    recorded_at: float | None = None
    trusted: bool = True
    record: VideoRecord | None = None
    transcript_files: tuple[Path | RemoteFile, ...] | None = None
    transcripts: Sequence[Transcript] = ()


@dataclass(frozen=True)
class Manifest:
    """What a manifest lists.

    sources: the videos, each file once. notes: how its columns were read, and what was left out; a sentence
    each, for the user.
    """

    sources: list[VideoSource]
    notes: list[str]


def read_manifest(path: Path) -> Manifest:
    """The videos that a manifest lists: a table where its name ends as one's does, else JSONL.

    Raises:
        ManifestError: it is not of this form; the message names the line.
    """
    text = read_text(path)
    if path.suffix.lower() in CSV_ENDINGS and not text.lstrip().startswith("{"):
        rows, notes = _read_csv(text)
    else:
        rows, notes = list(_read_json_lines(text)), []
    sources = [(line, _to_source(line, row, path.parent)) for line, row in rows]
    _check_ids(source for _, source in sources)
    kept: dict[Path | RemoteFile, VideoSource] = {}
    for _, source in sources:
        kept.setdefault(source.path, source)
    if (num_repeated := len(sources) - len(kept)) > 0:
        line = next(line for line, source in sources if kept[source.path] is not source)
        notes.append(
            f"{num_repeated} rows name the same file as an earlier row and are left out; the first of them is"
            f" line {line}"
        )
    return Manifest(list(kept.values()), notes)


def _read_json_lines(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        row = _parse_json(line, f"line {number} of the manifest")
        if number == 1 and isinstance(row, list):
            raise ManifestError(
                "the manifest is one JSON list: write each of its objects on a line of its own"
            )
        if not isinstance(row, dict):
            raise ManifestError(f"line {number} of the manifest is not a JSON object")
        if unknown := sorted(set(row) - set(_FIELDS)):
            raise ManifestError(
                f"line {number} of the manifest has unknown fields {', '.join(unknown)};"
                f" the known ones are {', '.join(_FIELDS)}, and others belong into metadata"
            )
        yield number, row


def _read_csv(text: str) -> tuple[list[tuple[int, Mapping[str, Any]]], list[str]]:
    """The rows of a table, and how its columns were read. Each of its other columns is metadata."""
    table = parse_table(text, _FIELDS)
    columns = {name: _typed(table, name) for name in table.columns if name not in _FIELDS}
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for number, (line, cells) in enumerate(table.rows):
        row: dict[str, Any] = {name: cells[name] for name in _FIELDS if name in cells}
        metadata = {name: values[number] for name, (values, _) in columns.items() if number in values}
        if "metadata" in cells:
            inner = _parse_json(cells["metadata"], f"line {line}: the metadata")
            if not isinstance(inner, dict):
                raise ManifestError(f"line {line} of the manifest: metadata is not an object")
            if both := sorted(inner.keys() & metadata.keys()):
                raise ManifestError(
                    f"line {line} of the manifest: {both[0]} is a column and in the metadata too"
                )
            metadata |= inner
        rows.append((line, {**row, "metadata": metadata}))
    return rows, _notes_of_columns({name: column for name, (_, column) in columns.items()})


def _typed(table: Table, name: str) -> tuple[Mapping[int, Any], TypedColumn]:
    """The values of a column by the number of the row, and how they were read."""
    rows = [number for number, (_, cells) in enumerate(table.rows) if name in cells]
    cells = [table.rows[number][1][name] for number in rows]
    column = typed_column(cells, [table.rows[number][0] for number in rows], table.delimiter)
    return dict(zip(rows, column.values, strict=True)), column


def _notes_of_columns(columns: Mapping[str, TypedColumn]) -> list[str]:
    notes = []
    for kind, label in (("number", "numbers"), ("truth", "true or false"), ("text", "text")):
        names = [
            name if column.doubt is None else f"{name} ({column.doubt})"
            for name, column in columns.items()
            if column.kind == kind and column.values
        ]
        if names:
            notes.append(f"columns read as {label}: {', '.join(names)}")
    if empty := [name for name, column in columns.items() if not column.values]:
        notes.append(f"columns without a value, left out: {', '.join(empty)}")
    return notes


def _parse_json(text: str, what: str) -> Any:
    """A JSON value in which nothing is lost: no name twice, no NaN, no U+0000. Raises ManifestError."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{what} is not JSON: {error}") from None
    if "\\u0000" in text and holds_zero(value):
        raise ManifestError(f"{what} holds a zero character (U+0000): remove it")
    return value


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _to_source(line: int, row: Mapping[str, Any], folder: Path) -> VideoSource:
    for name in ("path", "id", "title", "uri"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise ManifestError(f"line {line} of the manifest: {name} is not a text")
    if not (row.get("path") or "").strip():
        raise ManifestError(f"line {line} of the manifest has no path")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ManifestError(f"line {line} of the manifest: metadata is not an object")
    return VideoSource(
        path=_to_path(line, row["path"], folder),
        id=row.get("id"),
        title=row.get("title"),
        metadata=metadata,
        uri=row.get("uri"),
        recorded_at=_to_time(line, row.get("recorded_at")),
        transcript_files=_to_transcripts(line, row.get("transcript"), folder),
    )


def _to_time(line: int, value: object) -> float | None:
    """Seconds since 1970 of a date, or a date and time, as in a filter."""
    if value is None:
        return None
    moment = instant(value) if isinstance(value, str) else None
    if moment is None:
        raise ManifestError(
            f"line {line} of the manifest: recorded_at is not a date or time as in 2026-01-31T18:00:00+01:00"
        )
    return moment.total_seconds()


def _to_transcripts(line: int, value: object, folder: Path) -> tuple[Path | RemoteFile, ...] | None:
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ManifestError(f"line {line} of the manifest: transcript is not the path of a file, nor a list")
    return tuple(_to_path(line, text, folder) for text in texts)


def _to_path(line: int, text: str, folder: Path) -> Path | RemoteFile:
    """The file that a path means: absolute, below the manifest's folder, of a user's home (`~`), or at an
    address."""
    where = f"line {line} of the manifest"
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ManifestError(f"{where}: the path is not valid Unicode (it holds a lone surrogate)") from None
    if is_remote(text):
        return RemoteFile(text)
    if _ADDRESS.match(text):
        path = local_path(text)
        if path is None or _WINDOWS_PATH.match(str(path).lstrip("/")):
            raise ManifestError(f"{where}: the path is not a local file:// URI such as file:///videos/a.mp4")
        return path
    # A file of exactly this name comes first: on Linux a name may begin with ~ and hold backslashes.
    if not (text.startswith("~") or "\\" in text or _WINDOWS_PATH.match(text)) or os.path.lexists(
        folder / text
    ):
        return folder / text
    if text.startswith("~"):
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise ManifestError(f"{where}: the path names a home directory (~) of an unknown user") from None
    if os.name == "nt":
        return folder / text
    raise ManifestError(
        f"{where}: the path has backslashes or a drive letter of Windows: write it with / as it is here"
    )


def _check_ids(sources: Iterable[VideoSource]) -> None:
    seen: set[str] = set()
    for source in sources:
        if source.id is not None:
            if nfc(source.id) in seen:
                raise ManifestError(f"the id {source.id!r} is in the manifest twice")
            seen.add(nfc(source.id))
