"""Files that are called videos, and stand-ins for what reads them: libraries of many files in no time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import FetchError, KeptOutError, NotAVideoError, UnsupportedMediaError
from indexer.ingest import synchronisation
from indexer.ingest.local_copies import LocalCopies
from indexer.ingest.manifest import VideoSource
from indexer.ingest.remote_files import RemoteFile
from indexer.ingest.synchronisation import Progress, Synchronisation, SyncOptions, SyncReport
from indexer.media.decode_messages import HashedFile
from indexer.store.records import AddOutcome
from indexer.store.sqlite.catalog import Catalog
from tests.support.catalog_builders import make_segment, new_video

HEAD = b"\x00\x00\x00\x18ftypisom"
BROKEN, PARTIAL = b"broken ", b"partial "


def write_file(path: Path, content: bytes | str = "", *, head: bytes = HEAD) -> Path:
    """A file whose first bytes are those of an MP4, unless others are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + (content.encode() if isinstance(content, str) else content))
    return path


def hash_of(path: Path) -> HashedFile:
    content, status = path.read_bytes(), path.stat()
    stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return HashedFile(hashlib.sha256(content).hexdigest(), stamp)


class StandInPool:
    """In the place of the DecodePool that hashes: notes in `read` which files it was asked for."""

    read: list[Path]

    def __init__(self, num_workers: int, timeout_seconds: float) -> None:
        pass

    def __enter__(self) -> StandInPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit_hash(self, path: Path) -> Future[HashedFile]:
        self.read.append(Path(path))
        future: Future[HashedFile] = Future()
        try:
            future.set_result(hash_of(Path(path)))
        except OSError:
            future.set_exception(NotAVideoError("it cannot be read"))
        return future


class StandInEncoder:
    """In the place of a VideoEncoder: what a file's bytes say decides what becomes of it."""

    decode_seconds = encode_seconds = 0.0
    encoded: list[Path | RemoteFile]

    def __enter__(self) -> StandInEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def encoder(self) -> StandInEncoder:
        return self

    def encode(
        self, sources: Iterable[VideoSource], find_known: Callable[[VideoSource, HashedFile], Any]
    ) -> Iterator[tuple[VideoSource, Any]]:
        with LocalCopies(1) as copies:
            for source in sources:
                self.encoded.append(source.path)
                try:
                    is_remote = isinstance(source.path, RemoteFile)
                    path = copies.fetch(source.path) if is_remote else source.path
                except FetchError as error:
                    yield source, error
                else:
                    yield source, self._encode(source, path, find_known)

    def _encode(
        self, source: VideoSource, path: Path, find_known: Callable[[VideoSource, HashedFile], Any]
    ) -> Any:
        hashed = hash_of(path)
        try:
            known = find_known(source, hashed)
        except KeptOutError as error:
            return error
        if known is not None:
            return AddOutcome(known.id, created=False)
        content = path.read_bytes().removeprefix(HEAD)
        if content.startswith(BROKEN):
            return UnsupportedMediaError("a codec that we do not read")
        is_partial = content.startswith(PARTIAL)
        random = np.random.default_rng(list(bytes.fromhex(hashed.content_sha256)))
        return new_video(
            0,
            [make_segment(random)],
            id=None,
            content_sha256=hashed.content_sha256,
            size_bytes=path.stat().st_size,
            partial=is_partial,
            fraction_read=0.4 if is_partial else 1.0,
        )


class StandInLibrary:
    """An index and what is done to it, with all that reads stood in for."""

    def __init__(self, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
        self.catalog = catalog
        self.read: list[Path] = []
        self.encoded: list[Path | RemoteFile] = []
        monkeypatch.setattr(StandInPool, "read", self.read, raising=False)
        monkeypatch.setattr(StandInEncoder, "encoded", self.encoded, raising=False)
        monkeypatch.setattr(synchronisation, "DecodePool", StandInPool)

    def sync(
        self,
        *paths: Path | str,
        sources: Iterable[VideoSource] = (),
        progress: Progress | None = None,
        **options: Any,
    ) -> SyncReport:
        self.read.clear()
        self.encoded.clear()
        make_pipeline: Any = StandInEncoder
        run = Synchronisation(self.catalog, make_pipeline, SyncOptions(**options), progress)
        report = run.run(paths, sources)
        check_sum(report)
        return report

    def addresses(self) -> dict[str, str]:
        """By the title of each video, the path that it is said to have."""
        return {video.title or "": (video.uri or "") for video in self.catalog.list_videos(1000)}


def check_sum(report: SyncReport) -> None:
    """Every file is accounted for once."""
    kinds = ("added", "moved", "updated", "duplicate", "unchanged", "failed", "left_out", "waiting")
    assert report.num_files == sum(getattr(report, f"num_{kind}") for kind in kinds)
    assert report.num_left_out == sum(report.left_out.values())
    for name in ("failures", "partial", "moved", "updated", "duplicates", "missing"):
        number = {"failures": "failed", "duplicates": "duplicate"}.get(name, name)
        assert len(getattr(report, name)) == getattr(report, f"num_{number}"), name


def counts(report: SyncReport) -> dict[str, int]:
    """The numbers of a report that are not 0, by name."""
    found = {
        name.removeprefix("num_"): value for name, value in vars(report).items() if name.startswith("num_")
    }
    for name in ("files", "segments"):
        found.pop(name)
    return {name: value for name, value in found.items() if value}


def touch(path: Path, seconds: float) -> None:
    """Let a file have been modified at this time."""
    os.utime(path, (seconds, seconds))
