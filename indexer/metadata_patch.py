"""Changing what a person says about a video: a merge patch (RFC 7396), as one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from indexer import catalog_videos
from indexer.catalog import Catalog
from indexer.catalog_checks import check_text, metadata_to_json
from indexer.catalog_records import VideoRecord
from indexer.change_log import write_change
from indexer.errors import InvalidRecordError, VideoNotFoundError

Metadata = Mapping[str, Any]


def patch_video(
    catalog: Catalog,
    video_id: str,
    patch: Mapping[str, Any],
    *,
    check: Callable[[Metadata], Metadata] = lambda merged: merged,
) -> VideoRecord:
    """Apply a merge patch to the title and metadata of a video; returns the record as it then is.

    Read, merged and written in one transaction: of two patches at once neither undoes the other. Logged as an
    `update`, unless nothing changes.
    patch: `title` and `metadata`, or one of them; None for a title erases it, for metadata makes it empty.
    check: called with the metadata to be stored; what it raises leaves the video as it was.
    Raises VideoNotFoundError, InvalidRecordError.
    """
    if unknown := patch.keys() - {"title", "metadata"}:
        raise InvalidRecordError(f"{', '.join(sorted(unknown))} cannot be patched")
    if not isinstance(patch.get("title"), str | None):
        raise InvalidRecordError("title must be a text or None")
    if not isinstance(patch.get("metadata"), Mapping | None):
        raise InvalidRecordError("metadata must be an object or None")
    with catalog.connections.transaction() as connection:
        record = catalog_videos.read_by_ids(connection, [video_id]).get(video_id)
        if record is None:
            raise VideoNotFoundError(video_id)
        values: dict[str, str | None] = {}
        if "title" in patch and patch["title"] != record.title:
            values["title"] = check_text("title", patch["title"])
        if "metadata" in patch:
            of_metadata = patch["metadata"]
            merged = {} if of_metadata is None else merge_patch(record.metadata, of_metadata)
            as_json = metadata_to_json(check(merged))
            if as_json != metadata_to_json(record.metadata):
                values["metadata"] = as_json
        if values:
            number = catalog_videos.find_number(connection, video_id)
            catalog_videos.update_video(connection, number, values)
            write_change(connection, "update", video_id, (), catalog.clock())
            record = catalog_videos.read_by_ids(connection, [video_id])[video_id]
    return record


def merge_patch(target: Any, patch: Metadata) -> dict[str, Any]:
    """`target` with the members of `patch` set, those that it says null removed, objects merged likewise
    (RFC 7396 section 2). Neither is changed."""
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = merge_patch(merged.get(name), value)
        else:
            merged[name] = value
    return merged
