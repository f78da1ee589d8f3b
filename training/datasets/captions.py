"""The user's own captioned videos: a manifest of paths and texts.

JSONL, one object a line, or a table with a header line as spreadsheets save it (`indexer.ingest.tables`):

    path              the video, relative to the manifest (or to the folder of videos, where one is named)
    caption           the text of the clip; rows of one path and interval are several texts of one clip
    captions          a list of texts (in CSV, its JSON)
    id                unique; else the path, with its interval
    start_seconds     the interval of the file that is the clip; else all of it
    end_seconds
    split             train, val or test; where no row has one, every row is in the split that is asked for

A manifest made for `xclip-search index` serves too: what is not in a column of its own is taken from the
object `metadata`, and further columns of a CSV are left alone. Training uses every text of a clip. Evaluation
uses `caption` where a row has one, and else all its `captions`, as several queries for one clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

from indexer.errors import ManifestError
from indexer.ingest.tables import CSV_ENDINGS, parse_table, read_text
from training.datasets.annotation_files import (
    AnnotatedClip,
    checked_id,
    checked_text,
    parse_json,
    read_lines,
)
from training.datasets.split import SplitName
from training.errors import DatasetError

_FIELDS: Final = frozenset(
    {"path", "caption", "captions", "id", "start_seconds", "end_seconds", "split", "metadata"}
    | {"title", "uri"}  # Of `xclip-search index`; not used here.
)
_SPLITS: Final[tuple[str, ...]] = get_args(SplitName)


@dataclass(frozen=True)
class _Row:
    where: str
    split: str | None
    clip: AnnotatedClip


def find_manifest(directory: Path, split: SplitName) -> Path:
    """`directory` itself where it is a file; in a folder SPLIT.jsonl, SPLIT.csv, or manifest.jsonl, .csv.

    Raises DatasetError, which names the paths that were tried.
    """
    if directory.is_file():
        return directory
    names = [f"{stem}{ending}" for stem in (split, "manifest") for ending in (".jsonl", ".csv")]
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise DatasetError(
        f"there is no manifest of captions at {directory}: neither a file nor a folder with"
        f" {' or '.join(names)}; a manifest is expected like this:\n"
        '{"path": "clips/one.mp4", "caption": "a dog runs on a beach", "split": "train"}'
    )


def read_captions(manifest: Path, split: SplitName, videos: Path | None = None) -> list[AnnotatedClip]:
    """The clips of a split.

    Args:
        videos: Where paths begin, the manifest's folder by default.

    Raises:
        DatasetError: The manifest is not of the form above, or nothing in it belongs to the split; the
            message names the line.
    """
    is_csv = manifest.suffix.lower() in CSV_ENDINGS
    raw = _read_csv(manifest) if is_csv else _read_json_lines(manifest)
    folder = manifest.parent if videos is None else videos
    rows = [_to_row(where, values, folder, split) for where, values in raw]
    if not rows:
        raise DatasetError(f"{manifest} lists no video")
    labelled = [row for row in rows if row.split is not None]
    if labelled and len(labelled) < len(rows):
        unlabelled = next(row for row in rows if row.split is None)
        raise DatasetError(f"{unlabelled.where}: no split, but other rows have one")
    chosen = [row for row in rows if row.split in (None, split)]
    if not chosen:
        found = sorted({str(row.split) for row in rows})
        raise DatasetError(f"{manifest} has no row of the split {split}, only of {', '.join(found)}")
    return _group(chosen)


def _group(rows: list[_Row]) -> list[AnnotatedClip]:
    """Rows of one clip become one. Raises DatasetError where one id stands for two clips."""
    clips: dict[str, AnnotatedClip] = {}
    lines: dict[str, str] = {}
    for row in rows:
        clip = row.clip
        if (known := clips.get(clip.id)) is None:
            clips[clip.id], lines[clip.id] = clip, row.where
        elif _interval(known) == _interval(clip):
            clips[clip.id] = replace(known, texts=(*known.texts, *clip.texts))
        else:
            raise DatasetError(f"{row.where}: the id {clip.id!r} is that of another clip in {lines[clip.id]}")
    return list(clips.values())


def _interval(clip: AnnotatedClip) -> tuple[Path | None, float | None, float | None]:
    return clip.path, clip.start_seconds, clip.end_seconds


def _to_row(where: str, values: Mapping[str, Any], folder: Path, split: SplitName) -> _Row:
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise DatasetError(f"{where}: metadata is not an object")
    # A manifest for `index` has these fields in `metadata`; a field of the row itself comes first.
    values = {**metadata, **{name: value for name, value in values.items() if value is not None}}
    path, label = values.get("path"), values.get("split")
    if not isinstance(path, str) or not path.strip():
        raise DatasetError(f"{where}: no path")
    if label is not None and label not in _SPLITS:
        raise DatasetError(f"{where}: the split {label!r} is none of {', '.join(_SPLITS)}")
    start, end = (_seconds(values.get(name), name, where) for name in ("start_seconds", "end_seconds"))
    if end is not None and end <= (start or 0.0):
        raise DatasetError(f"{where}: the end, {end:g} s, is not after the start, {start or 0.0:g} s")
    name = values.get("id")
    if name is None:  # Several clips of one file need different ids.
        name = path if start is None and end is None else f"{path}#{_shown(start)}-{_shown(end)}"
    return _Row(
        where,
        label,
        AnnotatedClip(
            id=checked_id(name, where),
            texts=_texts(values, where, split),
            path=folder / path,
            start_seconds=start,
            end_seconds=end,
        ),
    )


def _texts(values: Mapping[str, Any], where: str, split: SplitName) -> tuple[str, ...]:
    one, several = values.get("caption"), values.get("captions")
    if several is not None and not isinstance(several, list):
        raise DatasetError(f"{where}: captions is not a list")
    if one is None and not several:
        raise DatasetError(f"{where}: neither caption nor captions")
    if several is None or (one is not None and split != "train"):
        texts = [one]
    else:
        texts = several if one is None else [one, *several]
    return tuple(dict.fromkeys(checked_text(text, where).strip() for text in texts))


def _seconds(value: object, name: str, where: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value)  # type: ignore[arg-type]  # what is not a number fails below
    except (TypeError, ValueError):
        seconds = math.nan
    if isinstance(value, bool) or not (math.isfinite(seconds) and seconds >= 0):
        raise DatasetError(f"{where}: {name} is {value!r}, not a number of seconds from 0 on")
    return seconds


def _shown(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:g}"


def _read_json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        values = parse_json(line, where)
        if not isinstance(values, dict):
            raise DatasetError(f"{where} is not a JSON object")
        if unknown := sorted(set(values) - _FIELDS):
            raise DatasetError(
                f"{where} has unknown fields {', '.join(unknown)};"
                f" the known ones are {', '.join(sorted(_FIELDS))}"
            )
        yield where, values


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        table = parse_table(read_text(path), _FIELDS)
    except ManifestError as error:
        raise DatasetError(f"{path}: {error}") from None
    for line, cells in table.rows:
        where = f"{path}, line {line}"
        values: dict[str, Any] = dict(cells)
        for name in {"captions", "metadata"} & set(values):
            values[name] = parse_json(values[name], f"{where}, {name}")
        yield where, values
