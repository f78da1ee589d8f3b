"""Reads features for searches: from the feature file what it has, all else from the store.

On a processor the operating system's cache of the file is the memory; on a GPU the first records live in a
table there, as many as its budget allows. Answers are the same to the last bit, wherever they come from.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer.errors import ChangesForgottenError
from indexer.features import Precision
from indexer.features.feature_file import (
    TABLES,
    FeatureFile,
    FeatureFileUnusableError,
    Table,
    manifest_state,
)
from indexer.features.resident import ResidentRecords
from indexer.features.scorable import ScorableSegments, SegmentsInPlace, frame_mask
from indexer.features.writing import (
    MIN_DELETED,
    MIN_PENDING,
    WritingStoppedError,
    open_feature_file,
    update_feature_file,
)
from indexer.store.store import SearchedStore
from model.features import VideoFeatures, VideoRecords

logger = logging.getLogger(__name__)

MEMORY_SHARE: Final = 0.5
"""Of the memory. More of the file would not stay there, beside the catalog: its records are read as
searches come to them, many at a time, which is quicker than to find those that were checked gone."""


class FeatureReader:
    """Features of the segments of a store. Safe to use from several threads."""

    def __init__(
        self,
        catalog: SearchedStore,
        *,
        device: torch.device,
        resident_bytes: int = 0,
        use_file: bool | Precision = True,
    ) -> None:
        """Open the feature file where there is one.

        Args:
            catalog: Where features are read that the file lacks.
            device: Where features are wanted, the model's.
            resident_bytes: What a table of the first records may take on `device`, for a GPU; taken as a
                whole at the start and filled by `update`.
            use_file: False reads everything from the store and writes nothing. A precision: in which the file
                is to keep frames; True leaves it as it is.

        Raises:
            torch.OutOfMemoryError: A GPU has less.
        """
        self._catalog = catalog
        self._device = device
        self._use_file = use_file is not False
        self._precision: Precision | None = None if isinstance(use_file, bool) else use_file
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._file: FeatureFile | None = None
        self._resident = ResidentRecords(catalog, resident_bytes, device)
        self._sequence = 0  # Deletions up to here are marked in the file that is open.
        self._num_pending = 0
        self._warned_of: FeatureFile | None = None
        self._manifest_state: tuple[int, int] | None = None
        self._open_newer()
        self.sync(catalog.sequence)

    def close(self) -> None:
        """Let an `update` under way stop soon, without an effect."""
        self._stopped.set()

    # Facts

    @property
    def resident_bytes(self) -> int:
        """What the records on the device take."""
        return self._resident.num_bytes

    @property
    def precision(self) -> Precision:
        """Of frames as they are given out: that of the file."""
        file = self._file
        return "float16" if file is None else file.manifest.precision

    @property
    def num_pending(self) -> int:
        """Segments of the store that the file lacked at the last `sync`."""
        return self._num_pending

    @property
    def needs_update(self) -> bool:
        """Whether `update` has something to do that is worth it."""
        if not self._use_file:
            return False
        file = self._file
        if file is not None and self._resident.has_room_for(file):
            return True
        if self._catalog.is_read_only:
            return False
        if file is not None and self._precision not in (None, file.manifest.precision):
            return True
        if file is not None and (file.is_damaged or file.num_deleted > max(MIN_DELETED, len(file) // 10)):
            return True
        # Where searches shall go on from copies on this machine, all of a small index too.
        return self.num_pending >= (1 if self._catalog.needs_copies else MIN_PENDING)

    @property
    def needs_check(self) -> bool:
        """Whether `check` has something to do that is worth it: what it reads has to stay in memory."""
        return bool(self._unchecked())

    def _unchecked(self) -> list[Table]:
        """Tables to check, video features first: of many videos their frames do not stay in memory as well,
        and the coarse stage reads those alone."""
        found: list[Table] = []
        if (file := self._file) is None:
            return found
        left_bytes = MEMORY_SHARE * _memory_bytes()
        for name in reversed(TABLES):
            left_bytes -= len(file) * file.manifest.record_bytes[name]
            if left_bytes >= 0 and name not in file.checked:
                found.append(name)
        return found

    @property
    def are_at_hand(self) -> bool:
        """Whether features are read from memory that this process has checked, a few more for next to
        nothing."""
        file = self._file
        return file is not None and file.checked.issuperset(TABLES)

    # Reading

    def get(self, segment_ids: NDArray[np.int64]) -> ScorableSegments:
        """Features of `segment_ids`, in the order asked; ids that did not exist at the last `sync` or do not
        exist any more may be left out.

        Raises IndexDamagedError.
        """
        file, numbers, is_held = self._find(segment_ids)
        if file is None or not is_held.any():
            return self._read(segment_ids)
        rows = numbers[is_held]
        (frames, is_right), (videos, are_right) = (self._resident.read(file, n, rows) for n in TABLES)
        held = self._scorable(file, rows, frames, videos)
        is_right &= are_right
        if not is_right.all():
            self._warn(file)
            held, is_held[is_held] = held[np.flatnonzero(is_right)], is_right
        if is_held.all():
            return held
        read = self._read(segment_ids[~is_held])
        # Where each id is in (held, read), which are in the order asked; -1 where it is in neither.
        exists = is_held.copy()
        exists[~is_held] = np.isin(segment_ids[~is_held], read.segment_ids)
        places = np.empty(len(segment_ids), np.intp)
        places[is_held] = np.arange(len(held))
        places[exists & ~is_held] = len(held) + np.arange(len(read))
        return ScorableSegments.joined([held, read], places[exists])

    def to_score(self, segment_ids: NDArray[np.int64]) -> ScorableSegments | SegmentsInPlace:
        """As `get`, for scores alone: on a processor records stay in the file, where all are there and this
        process has read them before.

        Raises IndexDamagedError.
        """
        if self._device.type != "cpu":
            return self.get(segment_ids)
        file, numbers, is_held = self._find(segment_ids)
        if file is None or not is_held.all() or not all(file.is_checked(name, numbers) for name in TABLES):
            return self.get(segment_ids)
        frames, videos = (file.view(name, slice(None)) for name in TABLES)
        mask = frame_mask(file.num_frames[numbers], self._catalog.num_frames, self._device)
        records = VideoRecords(videos, frames, numbers, mask)
        return SegmentsInPlace(file.segment_ids[numbers], file.video_keys[numbers], records)

    def blocks(
        self, segment_ids: NDArray[np.int64], block_size: int
    ) -> Iterator[ScorableSegments | SegmentsInPlace]:
        """`segment_ids` to be scored, in blocks of `block_size` of them; less what does not exist (any more).

        segment_ids: int64, ascending. Frames are the file's own, without a copy, where they were read before:
        a block is not to be written to. What is deleted after the last `sync` may still come.
        Raises IndexDamagedError.
        """
        for first in range(0, len(segment_ids), block_size):
            some = segment_ids[first : first + block_size]
            in_place = self._in_place(some)
            yield in_place if in_place is not None else self.to_score(some)

    def video_features(self, segment_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids int64 [N] of those that exist, ascending, and their video features float32 [N, D].

        Raises IndexDamagedError.
        """
        ids = np.unique(np.asarray(segment_ids, np.int64))
        file, numbers, is_held = self._find(ids)
        if file is None or not is_held.any():
            return self._catalog.video_features(ids)
        records, is_right = file.read("videos", numbers[is_held])
        held = records.numpy()
        if not is_right.all():
            self._warn(file)
            held, is_held[is_held] = held[is_right], is_right
        if is_held.all():
            return ids, held
        read_ids, read = self._catalog.video_features(ids[~is_held])
        found = np.concatenate([ids[is_held], read_ids])
        order = np.argsort(found)
        return found[order], np.concatenate([held, read])[order]

    def _read(self, segment_ids: NDArray[np.int64]) -> ScorableSegments:
        features = self._catalog.segment_features(segment_ids)
        if (file := self._file) is not None:
            # So that a segment has one score, whether the file has it yet or not.
            features = replace(features, frames=file.manifest.as_given(features.frames))
        return ScorableSegments.of(features, self._device)

    def _find(
        self, segment_ids: NDArray[np.int64]
    ) -> tuple[FeatureFile | None, NDArray[np.intp], NDArray[np.bool_]]:
        """The file, record numbers, and which segments have a record there."""
        file, numbers, found = self._numbers(segment_ids)
        if not found.all() and self._open_newer():
            file, numbers, found = self._numbers(segment_ids)
        return file, numbers, found

    def _warn(self, file: FeatureFile) -> None:
        if file is not self._warned_of:
            self._warned_of = file
            logger.warning(
                "the feature file in %s is damaged: what is wrong is read from the catalog, and the file is"
                " made again",
                self._catalog.directory,
            )

    def _numbers(
        self, segment_ids: NDArray[np.int64]
    ) -> tuple[FeatureFile | None, NDArray[np.intp], NDArray[np.bool_]]:
        file = self._file
        if file is None:
            return None, np.zeros(len(segment_ids), np.intp), np.zeros(len(segment_ids), bool)
        return file, *file.find(segment_ids)

    def _in_place(self, segment_ids: NDArray[np.int64]) -> ScorableSegments | None:
        """The records themselves, without a copy of frames, where all are there and follow one another."""
        file, numbers, found = self._find(segment_ids)
        if file is None or not found.all() or np.any(np.diff(numbers) != 1):
            return None
        records = self._resident.view(file, numbers)
        return None if records is None else self._scorable(file, numbers, *records)

    def _scorable(
        self, file: FeatureFile, numbers: NDArray[np.intp], frames: Tensor, videos: Tensor
    ) -> ScorableSegments:
        mask = frame_mask(file.num_frames[numbers], self._catalog.num_frames, self._device)
        features = VideoFeatures(videos, frames, mask)
        return ScorableSegments(file.segment_ids[numbers], file.video_keys[numbers], features)

    # Following

    def sync(self, sequence: int) -> None:
        """Give out no more what was deleted from the store. sequence: of its last change."""
        if sequence == self._sequence:
            return
        with self._lock:
            self._follow()

    def _follow(self) -> None:
        try:
            while self._file is not None and (changes := self._catalog.changes_since(self._sequence)):
                gone = [i for change in changes if change.kind == "delete" for i in change.segment_ids]
                self._file.mark_deleted(np.array(gone, np.int64))
                self._sequence = changes[-1].sequence
        except ChangesForgottenError:
            self._file = None
        if self._file is None:
            self._sequence = self._catalog.sequence
        num_held = 0 if self._file is None else len(self._file) - self._file.num_deleted
        self._num_pending = max(0, self._catalog.num_segments - num_held)

    def _open_newer(self) -> bool:
        """Open the file again where its manifest is another one now; whether it was."""
        state = manifest_state(self._catalog.directory) if self._use_file else None
        if state == self._manifest_state:
            return False
        with self._lock:
            if state == self._manifest_state:
                return True  # Another thread has.
            try:
                self._file = open_feature_file(self._catalog, self._file)
            except FeatureFileUnusableError as error:
                self._file = None
                logger.info("reading features of %s from the catalog: %s", self._catalog.directory, error)
            else:
                self._sequence = self._file.manifest.sequence
            self._manifest_state = state
            self._follow()
        return True

    def update(self) -> None:
        """Bring the file in line with the store, and the table on the device with the file.

        Takes as long as reading everything where the file has to be made; `close` ends it early. Raises what
        `update_feature_file` raises.
        """
        file = self._file
        try:
            if not self._catalog.is_read_only:
                damaged = file.manifest.file if file is not None and file.is_damaged else None
                update_feature_file(
                    self._catalog,
                    damaged=damaged,
                    precision=self._precision,
                    should_stop=self._stopped.is_set,
                )
            self._open_newer()
            if self._file is not None:
                self._resident.fill(self._file, self._stopped.is_set)
        except WritingStoppedError:
            logger.info("the feature file of %s is left for later", self._catalog.directory)

    def check(self) -> None:
        """Read the file into memory and compare it with its checksums, so that no search has to.

        Takes as long as reading all of it; `close` ends it early.
        """
        if (file := self._file) is not None:
            for name in self._unchecked():
                file.check(name, self._stopped.is_set)
            if file.is_damaged:
                self._warn(file)


@cache
def _memory_bytes() -> int:
    """Of the machine, or as much of it as this container may use (Linux, control groups of version 2)."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # There is none, or it says `max`.
        return physical
