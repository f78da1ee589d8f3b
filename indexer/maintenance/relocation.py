"""Relocates the files of an index: one prefix of their addresses is replaced by another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from indexer.errors import InvalidRecordError
from indexer.ingest.library import absolute
from indexer.ingest.planning import plain_addresses
from indexer.ingest.video_files import local_path
from indexer.store.records import VideoRecord
from indexer.store.store import Store, open_store

_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*://")
_AT_ONCE: Final = 500


@dataclass
class RelocationReport:
    """What was relocated.

    Attributes:
        num_videos: whose addresses began with the old prefix.
        num_files: addresses that were known of files, those of duplicates among them.
        num_there: of the videos, those whose files are at their new addresses, as seen from here.
        num_all: videos of the index.
    """

    num_videos: int = 0
    num_files: int = 0
    num_there: int = 0
    num_all: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def relocate(index: str | Path, old: str, new: str, *, dry_run: bool = False) -> RelocationReport:
    """Let all addresses at or below `old` begin with `new` instead, at a boundary between names.

    Args:
        index: the index directory.
        old: a path, or an address such as https://host/folder.
        new: likewise.
        dry_run: whether it is only counted.

    Raises:
        InvalidRecordError: one lies within the other, or nothing is named.
        IndexNotFoundError: there is no index.
    """
    # A server may have stored a path as it was given, without file://.
    prefixes: dict[str, str] = {_address(old): _address(new)}
    if not _SCHEME.match(old) and not _SCHEME.match(new):
        plain = (plain_addresses(Path(absolute(place))) for place in (old, new))
        prefixes.update(zip(*plain, strict=False))
    if any(a == b for a, b in prefixes.items()):
        raise InvalidRecordError("the old and the new folder are the same")
    report = RelocationReport()
    with open_store(index) as catalog:
        report.num_all = catalog.num_videos
        for before, after in prefixes.items():
            _relocate(catalog, before, after, report, dry_run)
    return report


def _relocate(catalog: Store[Any], old: str, new: str, report: RelocationReport, dry_run: bool) -> None:
    """Changes what is listed first, so that one place may lie within the other."""
    table = catalog.files
    videos = list(_videos_at(catalog, old))
    files = [*table.find([old]).values(), *table.below(old)]
    report.num_videos += len(videos)
    report.num_files += len(files)
    there = {video.id: _is_there(new + (video.uri or "")[len(old) :]) for video in videos}
    report.num_there += sum(there.values())
    if dry_run:
        return
    for first in range(0, len(videos), _AT_ONCE):
        with catalog.transaction() as transaction:
            for video in videos[first : first + _AT_ONCE]:
                changes: dict[str, Any] = {"uri": new + (video.uri or "")[len(old) :]}
                if there[video.id]:
                    changes["missing_since"] = None
                catalog.update_video(video.id, transaction, **changes)
    with catalog.transaction() as transaction:
        table.forget([file.uri for file in files], transaction)
        table.remember([replace(file, uri=new + file.uri[len(old) :]) for file in files], transaction)


def _videos_at(catalog: Store[Any], address: str) -> Iterator[VideoRecord]:
    yield from catalog.find_by_uris([address]).get(address, ())
    yield from catalog.videos_below(address)


def _address(place: str) -> str:
    """The address of a path, or the address itself, without a slash at its end."""
    if _SCHEME.match(place):
        return place.removesuffix("/")
    if not place:
        raise InvalidRecordError("name a folder")
    return Path(absolute(place)).as_uri().removesuffix("/")


def _is_there(uri: str) -> bool:
    path = local_path(uri)
    return path is not None and path.exists()
