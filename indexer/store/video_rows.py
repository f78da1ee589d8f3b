"""Videos between records and rows, the same in every store: which columns there are, and what is in them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypedDict

from indexer.errors import IndexDamagedError, InvalidRecordError
from indexer.store.checksums import checksum_of_row
from indexer.store.records import (
    NewVideo,
    SegmentInfo,
    VideoRecord,
    check_count,
    check_number,
    check_sha256,
    check_text,
    check_time,
    check_title,
    check_video_id,
    merge_patch,
    metadata_to_json,
)
from indexer.store.segment_rows import INFO_COLUMNS, segment_info

COLUMNS: Final = (
    "id, content_sha256, uri, title, metadata, duration_seconds, width, height, frame_rate, codec,"
    " size_bytes, partial, fraction_read, trusted, added_at, sequence, media_start_seconds, recorded_at,"
    " missing_since"
)
"""Of a video, in the order of the fields of `VideoRecord`, which is that of its checksum."""

SEGMENT_AND_VIDEO: Final = ", ".join(
    [INFO_COLUMNS, *(f"videos.{name}" for name in f"{COLUMNS}, row_crc32".split(", "))]
)
"""Of segments joined with their videos, as `segment_and_video` reads them."""

NUM_SEGMENT_COLUMNS: Final = len(INFO_COLUMNS.split(", "))
"""How many of them are the segment's; they come first."""

URI_POSITION: Final = COLUMNS.split(", ").index("uri")
_METADATA, _PARTIAL, _TRUSTED = map(COLUMNS.split(", ").index, ("metadata", "partial", "trusted"))

Metadata = Mapping[str, Any]
Values = dict[str, str | float | None]
"""Columns of a video, and what they shall hold."""


class VideoChanges(TypedDict, total=False):
    """Of a video, what `update_video` changes; see `VideoRecord`. All else comes out of its file."""

    title: str | None
    uri: str | None
    metadata: Metadata | None
    missing_since: float | None
    recorded_at: float | None


CHANGEABLE_FIELDS: Final = tuple(VideoChanges.__annotations__)


def row_of_new_video(video: NewVideo, now: float) -> dict[str, Any]:
    """The columns of a video but `sequence`, which the store gives.

    now: seconds since 1970, when it is added. Raises InvalidRecordError.
    """
    return {
        "id": uuid.uuid4().hex if video.id is None else check_video_id(video.id),
        "content_sha256": check_sha256(video.content_sha256),
        "uri": check_text("uri", video.uri),
        "title": check_title(video.title),
        "metadata": metadata_to_json(video.metadata),
        "duration_seconds": check_number("duration_seconds", video.duration_seconds),
        "width": check_count("width", video.width),
        "height": check_count("height", video.height),
        "frame_rate": check_number("frame_rate", video.frame_rate),
        "codec": check_text("codec", video.codec),
        "size_bytes": check_count("size_bytes", video.size_bytes),
        "partial": int(video.partial),
        "fraction_read": check_number("fraction_read", video.fraction_read, most=1.0),
        "trusted": int(video.trusted),
        "added_at": check_number("added_at", now if video.added_at is None else video.added_at),
        "media_start_seconds": check_number("media_start_seconds", video.media_start_seconds),
        "recorded_at": check_time("recorded_at", video.recorded_at),
        "missing_since": check_time("missing_since", video.missing_since),
    }


def values_of_changes(changes: VideoChanges) -> Values:
    """The columns that `update_video` sets. Raises InvalidRecordError."""
    values: Values = {}
    if "title" in changes:
        values["title"] = check_title(changes["title"])
    if "uri" in changes:
        values["uri"] = check_text("uri", changes["uri"])
    if "metadata" in changes:
        values["metadata"] = metadata_to_json(changes["metadata"])
    if "missing_since" in changes:
        values["missing_since"] = check_time("missing_since", changes["missing_since"])
    if "recorded_at" in changes:
        values["recorded_at"] = check_time("recorded_at", changes["recorded_at"])
    return values


def check_patch(patch: Metadata) -> None:
    """Raise InvalidRecordError unless `patch` is one that `patch_video` takes."""
    if unknown := patch.keys() - {"title", "metadata", "recorded_at"}:
        raise InvalidRecordError(f"{', '.join(sorted(unknown))} cannot be patched")
    if not isinstance(patch.get("title"), str | None):
        raise InvalidRecordError("title must be a text or None")
    if not isinstance(patch.get("metadata"), Mapping | None):
        raise InvalidRecordError("metadata must be an object or None")
    if not isinstance(patch.get("recorded_at"), float | int | None):
        raise InvalidRecordError("recorded_at must be a number of seconds or None")


def values_of_patch(record: VideoRecord, patch: Metadata, check: Callable[[Metadata], Metadata]) -> Values:
    """The columns that differ once a checked patch is applied to this record. Raises what `check` raises, and
    InvalidRecordError."""
    values: Values = {}
    if "title" in patch and patch["title"] != record.title:
        values["title"] = check_title(patch["title"])
    if "metadata" in patch:
        of_metadata = patch["metadata"]
        merged = {} if of_metadata is None else merge_patch(record.metadata, of_metadata)
        as_json = metadata_to_json(check(merged))
        if as_json != metadata_to_json(record.metadata):
            values["metadata"] = as_json
    if "recorded_at" in patch and patch["recorded_at"] != record.recorded_at:
        values["recorded_at"] = check_time("recorded_at", patch["recorded_at"])
    return values


def video_record(row: Sequence[Any]) -> VideoRecord:
    """The record in the columns COLUMNS and row_crc32. Raises IndexDamagedError."""
    *values, checksum = row
    if checksum_of_row(values) != checksum:
        raise IndexDamagedError(
            "the catalog is damaged: the record of a video is not what was written; run verify to learn"
            " which, delete it and index it again, or restore a backup"
        )
    values[_METADATA] = json.loads(values[_METADATA])
    values[_PARTIAL], values[_TRUSTED] = bool(values[_PARTIAL]), bool(values[_TRUSTED])
    return VideoRecord(*values)


def segment_and_video(row: Sequence[Any]) -> tuple[SegmentInfo, VideoRecord]:
    """What stands in a row of SEGMENT_AND_VIDEO. Raises IndexDamagedError."""
    return segment_info(row[:NUM_SEGMENT_COLUMNS]), video_record(row[NUM_SEGMENT_COLUMNS:])
