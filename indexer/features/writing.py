"""Makes the feature file from the store, and keeps it in line: appends, marks what is deleted, compacts.

One process writes at a time (`features.lock`, released when it dies); others go on reading. What a writer
that was killed left behind the last record is written over by the next one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from indexer.atomic_files import DERIVED_FILE_MODE
from indexer.errors import ChangesForgottenError, IndexDamagedError
from indexer.features import Precision
from indexer.features.feature_file import (
    MANIFEST_FILE,
    RECORD,
    FeatureFile,
    FeatureFileUnusableError,
    Manifest,
    Table,
    new_file_name,
    records_of,
)
from indexer.store.records import SegmentFeatures
from indexer.store.store import SearchedStore
from model.atomic_files import fsync_directory

if sys.platform != "win32":
    import fcntl

LOCK_FILE: Final = "features.lock"
MIN_PENDING: Final = 256
"""Segments that the file lacks before it is worth writing: they are read from the store in a few
milliseconds."""

MIN_DELETED: Final = 4096
"""Deleted segments, and a tenth of the file, before it is compacted."""

KEPT_FREE_BYTES: Final = 256 << 20
"""Left of the disk for what cannot be made again."""

_SEGMENTS_AT_ONCE: Final = 1024

ShouldStop = Callable[[], bool]


class WritingStoppedError(Exception):
    """The writing was asked to stop; the file is what it was before."""


def open_feature_file(catalog: SearchedStore, former: FeatureFile | None = None) -> FeatureFile:
    """The feature file of a store, of its history: `mark_deleted` and appended records may be left to do.

    former: an earlier opening, see `FeatureFile`. Raises FeatureFileUnusableError.
    """
    for last_try in (False, True):
        manifest = Manifest.read(catalog.directory)
        expected = (catalog.fingerprint, catalog.embedding_dim, catalog.num_frames)
        if (manifest.fingerprint, manifest.embedding_dim, manifest.num_frames) != expected:
            raise FeatureFileUnusableError("it is of another index")
        if catalog.change_token(manifest.sequence) != manifest.token:
            raise FeatureFileUnusableError("the change log does not cover it")
        try:
            return FeatureFile(catalog.directory, manifest, former)
        except FeatureFileUnusableError:
            # Another process may have replaced it between the two readings.
            if last_try or Manifest.read(catalog.directory) == manifest:
                raise
    raise AssertionError("the second try returns or raises")


def update_feature_file(
    catalog: SearchedStore,
    *,
    damaged: str | None = None,
    precision: Precision | None = None,
    should_stop: ShouldStop = lambda: False,
) -> bool:
    """Bring the feature file in line with the store; make it where there is none that can be used.

    Args:
        catalog: The store.
        damaged: The name of the file that shall be made again, where it is still that one.
        precision: Of its frames; None keeps that of the file that is there, or makes one in float16.
        should_stop: Asked between blocks.

    Returns:
        False where another process is at it.

    Raises:
        OSError: The disk refused a write, or has too little space; the file is what it was before.
        IndexDamagedError: What the store holds is damaged.
        WritingStoppedError: As asked for.
    """
    with _locked(catalog.directory) as is_ours:
        if not is_ours:
            return False
        try:
            file = open_feature_file(catalog)
            if file.manifest.file == damaged:
                raise FeatureFileUnusableError("a record is damaged")
            if precision not in (None, file.manifest.precision):
                raise FeatureFileUnusableError("another precision is asked for")
            manifest = _append(catalog, file, should_stop)
            if _is_sparse(FeatureFile(catalog.directory, manifest)):
                raise FeatureFileUnusableError("many of its segments are deleted")
        except (FeatureFileUnusableError, ChangesForgottenError):
            manifest = _make(catalog, precision or _precision(catalog), should_stop)
            with contextlib.suppress(ChangesForgottenError):
                _append(catalog, FeatureFile(catalog.directory, manifest), should_stop)
    return True


def save_feature_file(catalog: SearchedStore, *, anew: bool = False) -> None:
    """Bring the feature file in line, so that the next search or server finds it so.

    A disk that refuses is no error: searches read the store then. Nor are few segments worth a file.

    Args:
        catalog: The store.
        anew: Whether a file that is there is made again.

    Raises:
        IndexDamagedError: What the store holds is damaged.
    """
    former: str | None = None
    with contextlib.suppress(FeatureFileUnusableError):
        former = Manifest.read(catalog.directory).file
    if not catalog.is_read_only and (former or catalog.num_segments >= MIN_PENDING):
        with contextlib.suppress(OSError):
            update_feature_file(catalog, damaged=former if anew else None)


def feature_file_problems(catalog: SearchedStore) -> Iterator[str]:
    """What is wrong with the feature file of a store, each in a sentence. Reads all of both.

    None is no damage, nor is one of another history (the catalog was restored from a backup).
    """
    if not (catalog.directory / MANIFEST_FILE).exists():
        return
    try:
        file = open_feature_file(catalog)
    except FeatureFileUnusableError as error:
        with contextlib.suppress(FeatureFileUnusableError):
            if catalog.change_token(Manifest.read(catalog.directory).sequence) is None:
                return
        yield f"the feature file cannot be used: {error}"
        return
    try:
        for features in catalog.iterate_features(_SEGMENTS_AT_ONCE):
            for segment_id in _different(file, features):
                yield f"the record of segment {segment_id} is not what the catalog holds"
    except IndexDamagedError:
        return  # Of the catalog, and reported as such.


def _different(file: FeatureFile, features: SegmentFeatures) -> list[int]:
    """Ids of the segments whose record differs from what the store has read."""
    numbers, found = file.find(features.segment_ids)
    numbers, rows = numbers[found], np.flatnonzero(found)
    is_same = file.video_keys[numbers] == features.video_keys[rows]
    is_same &= file.num_frames[numbers] == features.num_frames[rows]
    frames = file.manifest.as_given(features.frames)
    stored: dict[Table, NDArray[Any]] = {"frames": frames, "videos": features.video}
    for name, theirs in stored.items():
        records, is_right = file.read_array(name, numbers)
        ours = records.reshape(len(rows), -1).view(np.uint8)
        is_same &= is_right & (ours == theirs[rows].reshape(len(rows), -1).view(np.uint8)).all(axis=1)
    different: list[int] = features.segment_ids[rows][~is_same].tolist()
    return different


def _is_sparse(file: FeatureFile) -> bool:
    return file.num_deleted > max(MIN_DELETED, len(file) // 10)


def _precision(catalog: SearchedStore) -> Precision:
    """Of the file that is there."""
    try:
        return Manifest.read(catalog.directory).precision
    except FeatureFileUnusableError:
        return "float16"


def _make(catalog: SearchedStore, precision: Precision, should_stop: ShouldStop) -> Manifest:
    """A new file of the whole store.

    The number of the last change is read first: what changes during the reading may be seen or not, and comes
    again when the log is followed from there.
    """
    sequence = catalog.sequence
    manifest = Manifest(
        sequence,
        catalog.change_token(sequence) or "",
        catalog.fingerprint,
        catalog.embedding_dim,
        catalog.num_frames,
        0,
        new_file_name(),
        precision=precision,
    )
    _check_space(manifest, catalog.directory, catalog.num_segments)
    with _Appender(catalog.directory, manifest) as appender:
        for features in catalog.iterate_features(_SEGMENTS_AT_ONCE):
            appender.add(features)
            _raise_if(should_stop)
        manifest = appender.finish(manifest.sequence, manifest.token)
    _remove_others(catalog.directory, manifest.file)
    return manifest


def _append(catalog: SearchedStore, file: FeatureFile, should_stop: ShouldStop) -> Manifest:
    """Take in what has changed since. Raises ChangesForgottenError."""
    manifest, last_id = file.manifest, file.last_id
    sequence, added, deleted = manifest.sequence, list[int](), list[int]()
    while changes := catalog.changes_since(sequence):
        added += [i for change in changes if change.kind == "add" for i in change.segment_ids if i > last_id]
        deleted += [i for change in changes if change.kind == "delete" for i in change.segment_ids]
        sequence = changes[-1].sequence
        _raise_if(should_stop)
    if sequence == manifest.sequence:
        return manifest
    _check_space(manifest, catalog.directory, len(added))
    with _Appender(catalog.directory, manifest) as appender:
        for first in range(0, len(added), _SEGMENTS_AT_ONCE):
            appender.add(catalog.segment_features(added[first : first + _SEGMENTS_AT_ONCE]))
            _raise_if(should_stop)
        appender.mark_deleted(file, deleted)
        return appender.finish(sequence, catalog.change_token(sequence) or "")


class _Appender:
    """Writes records behind those that the manifest counts; leaves nothing behind unless `finish` is
    called."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._directory = directory
        self._manifest = manifest
        self._num_records = manifest.num_records
        self._is_finished = False
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> _Appender:
        is_new = self._manifest.num_records == 0
        for suffix, size in self._manifest.record_bytes.items():
            path = self._manifest.path(self._directory, suffix)
            flags = os.O_RDWR | (os.O_CREAT if is_new else 0)
            file = os.fdopen(os.open(path, flags, DERIVED_FILE_MODE), "r+b")
            self._files[suffix] = file
            file.seek(self._num_records * size)
        return self

    def __exit__(self, *_: object) -> None:
        for suffix, size in self._manifest.record_bytes.items():
            with contextlib.suppress(OSError):  # What is left in its buffer, on a full disk.
                self._files[suffix].close()
            if not self._is_finished:
                # No process looks behind the records that the manifest counts.
                with contextlib.suppress(OSError):
                    os.truncate(
                        self._manifest.path(self._directory, suffix), self._manifest.num_records * size
                    )
        if not self._is_finished and self._manifest.num_records == 0:
            for suffix in self._files:
                self._manifest.path(self._directory, suffix).unlink(missing_ok=True)

    def add(self, features: SegmentFeatures) -> None:
        """Write records of segments whose ids are higher than all before. Raises OSError."""
        owners = np.stack([features.segment_ids, features.video_keys, features.num_frames], axis=1)
        video = np.ascontiguousarray(features.video, "<f4")
        frames = self._manifest.as_kept(features.frames)
        self._files["frames"].write(frames.data)
        self._files["videos"].write(video.data)
        self._files["rows"].write(records_of(owners, video, frames).tobytes())
        self._num_records += len(features)

    def mark_deleted(self, file: FeatureFile, segment_ids: Sequence[int]) -> None:
        """Note which segments are deleted; harmless where it does not reach the disk. Raises OSError."""
        numbers, found = file.find(np.unique(np.array(segment_ids, np.int64)))
        mark, (_, offset) = np.uint32(1).astype("<u4").tobytes(), RECORD.fields["is_deleted"][:2]  # type: ignore[index]
        for number in numbers[found].tolist():
            os.pwrite(self._files["rows"].fileno(), mark, number * RECORD.itemsize + offset)

    def finish(self, sequence: int, token: str) -> Manifest:
        """Bring all to disk, and then the manifest that counts it. Raises OSError."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        fsync_directory(self._directory)
        manifest = replace(self._manifest, sequence=sequence, token=token, num_records=self._num_records)
        manifest.write(self._directory)
        self._is_finished = True
        return manifest


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Whether this process may write the feature file; it is the only one then. Raises OSError."""
    descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, DERIVED_FILE_MODE)
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:  # A file system without locks.
                pass
        yield True
    finally:
        os.close(descriptor)


def _check_space(manifest: Manifest, directory: Path, num_segments: int) -> None:
    needed_bytes = num_segments * sum(manifest.record_bytes.values())
    if shutil.disk_usage(directory).free < needed_bytes + KEPT_FREE_BYTES:
        raise OSError(
            errno.ENOSPC,
            f"the feature file needs {needed_bytes:,} bytes, and {KEPT_FREE_BYTES:,} shall stay free",
            str(directory / MANIFEST_FILE),
        )


def _raise_if(should_stop: ShouldStop) -> None:
    if should_stop():
        raise WritingStoppedError


def _remove_others(directory: Path, name: str) -> None:
    """Remove older files, and what processes that were killed left unfinished. Processes that have an older
    one open keep it until they look for the new one."""
    for path in (*directory.glob("features-*.*"), *directory.glob(f".{MANIFEST_FILE}.*.new")):
        if path.stem != name:
            path.unlink(missing_ok=True)
