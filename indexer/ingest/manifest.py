"""What to index: files, folders, and manifests that give files ids, titles and metadata.

A manifest is JSONL, one object a line, or CSV with a header line. `path` is required, and relative to the
manifest's folder; `id`, `title`, `uri` and `metadata` (an object; in CSV, its JSON) are optional. Further
columns of a CSV become metadata.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from indexer.errors import ManifestError

if TYPE_CHECKING:
    from indexer.store.records import VideoRecord

logger = logging.getLogger(__name__)

VIDEO_EXTENSIONS: Final = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogg", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
"""Of files in folders, those that are taken. A file that is named itself may have any extension."""

_FIELDS: Final = ("path", "id", "title", "uri", "metadata")


@dataclass(frozen=True)
class VideoSource:
    """One file to index.

    Attributes:
        path: the file.
        id: chosen by the user, unique in the index; None for a new one.
        title: None for the file's name without its extension.
        metadata: any JSON object.
        uri: None for the file:// address of `path`.
        trusted: whether the operator trusts the file, so that decord may read it.
        record: of a video that is encoded again with another model: the video keeps what the record says, and
            a file of other bytes is refused.
    """

    path: Path
    id: str | None = None
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    uri: str | None = None
    trusted: bool = True
    record: VideoRecord | None = None


def find_videos(paths: Iterable[Path]) -> list[VideoSource]:
    """The files among `paths`, and below its folders those with a video's extension, sorted, each once.

    Hidden files and folders are left out; so are, with a warning in the log, folders that cannot be read.
    Links to folders are not followed.

    Raises:
        FileNotFoundError: a path does not exist; the message names it.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(sorted(_walk(path))))
        elif path.exists():
            found[path] = None
        else:
            raise FileNotFoundError(f"there is no file or folder {path}")
    return [VideoSource(path) for path in found]


def read_manifest(path: Path) -> list[VideoSource]:
    """The videos that a manifest lists; CSV where its name ends in .csv, else JSONL.

    Raises:
        ManifestError: it is not of this form; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _read_csv(file) if path.suffix.lower() == ".csv" else _read_json_lines(file)
            sources = [_to_source(number, row, path.parent) for number, row in rows]
    except OSError as error:
        raise ManifestError(f"the manifest {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ManifestError(f"the manifest {path} is not UTF-8 text") from None
    except csv.Error as error:
        raise ManifestError(f"the manifest {path} is not CSV: {error}") from None
    _check_ids(sources)
    return sources


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_log_unread):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_EXTENSIONS:
                yield Path(parent) / name


def _log_unread(error: OSError) -> None:
    """One folder that cannot be read does not stop the indexing of the others."""
    logger.warning("the folder %s is left out, it cannot be read: %s", error.filename, error.strerror)


def _read_json_lines(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"line {number} of the manifest is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ManifestError(f"line {number} of the manifest is not a JSON object")
        if unknown := sorted(set(row) - set(_FIELDS)):
            raise ManifestError(
                f"line {number} of the manifest has unknown fields {', '.join(unknown)};"
                f" the known ones are {', '.join(_FIELDS)}"
            )
        yield number, row


def _read_csv(lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    columns: Sequence[str] = reader.fieldnames or ()
    if "path" not in columns:
        raise ManifestError("the first line of a CSV manifest names its columns, `path` among them")
    for cells in reader:
        number = reader.line_num
        if None in cells or None in cells.values():
            raise ManifestError(f"line {number} of the manifest has not as many cells as its header")
        row: dict[str, Any] = {name: cells[name] or None for name in _FIELDS if name in columns}
        metadata: Any = {}
        if row.get("metadata"):
            try:
                metadata = json.loads(row["metadata"])
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"line {number}: the metadata is not JSON: {error}") from None
        if isinstance(metadata, dict):
            extra = {name: cells[name] for name in columns if name not in _FIELDS and cells[name]}
            metadata = {**extra, **metadata}
        yield number, {**row, "metadata": metadata}


def _to_source(number: int, row: Mapping[str, Any], folder: Path) -> VideoSource:
    for name in ("path", "id", "title", "uri"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise ManifestError(f"line {number} of the manifest: {name} is not a text")
    if not row.get("path"):
        raise ManifestError(f"line {number} of the manifest has no path")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ManifestError(f"line {number} of the manifest: metadata is not an object")
    return VideoSource(
        path=folder / row["path"],
        id=row.get("id"),
        title=row.get("title"),
        metadata=metadata,
        uri=row.get("uri"),
    )


def _check_ids(sources: Sequence[VideoSource]) -> None:
    seen: set[str] = set()
    for source in sources:
        if source.id is not None:
            if source.id in seen:
                raise ManifestError(f"the id {source.id!r} is in the manifest twice")
            seen.add(source.id)
