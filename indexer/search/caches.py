"""What searches keep in memory: features of segments where the model scores them, and matches of filters.

Features lie in one block of equal slots on the model's device, processor or GPU, up to a budget. Searches
fill it with what they read; once it is full, a segment that was not asked for again since the clock's hand
last passed is evicted (second chance: Corbato, A Paging Experiment with the Multics System, 1968). Features
of a segment never change, so only deletions have to be taken in, by `sync`. A scan of everything only fills
free slots, or it would evict what other searches need.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer.coarse.exact import SegmentSet
from indexer.errors import ChangesForgottenError
from indexer.store.filters import Filter
from indexer.store.records import Matches, SegmentFeatures
from indexer.store.store import SearchedStore
from model.features import VideoFeatures

_NOT_HELD = -1
_NO_SEGMENT = 0  # In a free slot: segment ids begin at 1.


@dataclass(frozen=True, eq=False)
class ScorableSegments:
    """Features of N segments on the model's device, row by row.

    segment_ids, video_keys: int64 [N]; rows of one video share its number. videos: frames as stored,
    float16, which scoring widens.
    """

    segment_ids: NDArray[np.int64]
    video_keys: NDArray[np.int64]
    videos: VideoFeatures

    def __len__(self) -> int:
        return len(self.segment_ids)

    def __getitem__(self, rows: NDArray[np.intp]) -> Self:
        videos = self.videos[torch.from_numpy(rows).to(self.videos.video.device)]
        return type(self)(self.segment_ids[rows], self.video_keys[rows], videos)

    @classmethod
    def of(cls, features: SegmentFeatures, device: torch.device) -> Self:
        """What the catalog has read, on `device`."""
        return cls(
            features.segment_ids,
            features.video_keys,
            VideoFeatures(
                # A copy, aligned as all memory of torch: the last bits of a product may depend on it.
                torch.from_numpy(features.video).to(device, copy=True),
                torch.from_numpy(features.frames).to(device),
                torch.from_numpy(features.frame_mask).to(device),
            ),
        )


class FeatureCache:
    """Features of the segments of a catalog. Safe to use from several threads."""

    def __init__(self, catalog: SearchedStore, *, size_bytes: int, device: torch.device) -> None:
        """Start empty.

        Args:
            catalog: Where features are read that are not held.
            size_bytes: What the cache may take on `device`; 0 keeps nothing. On a processor it takes as much
                as it holds, on a GPU all of it from the start. Additionally, on the processor, 4 bytes for
                each segment.
            device: The model's.

        Raises:
            torch.OutOfMemoryError: A GPU has less.
        """
        if size_bytes < 0:
            raise ValueError("size_bytes is at least 0")
        self._catalog = catalog
        self._device = device
        self._num_slots = num_slots = size_bytes // slot_bytes(catalog.num_frames, catalog.embedding_dim)
        shape = (num_slots, catalog.num_frames, catalog.embedding_dim)
        self._frames = torch.empty(shape, dtype=torch.float16, device=device)
        self._video = torch.empty((num_slots, shape[2]), dtype=torch.float32, device=device)
        self._mask = torch.empty(shape[:2], dtype=torch.bool, device=device)
        self._video_keys = np.zeros(num_slots, np.int64)
        self._ids = np.zeros(num_slots, np.int64)  # [slot]
        self._asked_again = np.zeros(num_slots, bool)
        self._slots = np.empty(0, np.int32)  # [segment id]: its slot, or _NOT_HELD.
        self._num_begun = 0  # Slots from here on were never used.
        self._freed: list[int] = []  # Slots whose segments were deleted.
        self._hand = 0
        self._num_scans = 0  # Readers of the slots themselves, not of copies.
        self._sequence = self._last_deletion = catalog.sequence
        self._lock = threading.Lock()

    @property
    def num_held(self) -> int:
        """Segments held."""
        return self._num_begun - len(self._freed)

    @property
    def held_bytes(self) -> int:
        """What the kept features take."""
        return self.num_held * slot_bytes(self._catalog.num_frames, self._catalog.embedding_dim)

    @property
    def num_slots(self) -> int:
        """Segments that fit."""
        return self._num_slots

    def get(self, segment_ids: NDArray[np.int64]) -> ScorableSegments:
        """Features of `segment_ids`, in the order asked; ids that did not exist at the last `sync` or do not
        exist any more may be left out.

        Raises IndexDamagedError.
        """
        if self._num_slots == 0:
            return self._read(segment_ids)
        return self._gather(segment_ids, may_evict=True)

    def blocks(self, segment_ids: NDArray[np.int64], block_size: int) -> Iterator[ScorableSegments]:
        """Features of `segment_ids` in blocks of `block_size` of them; less what does not exist (any more).

        segment_ids: int64, ascending. A block is valid until the next one is asked for. What is deleted
        after the last `sync` may still come. Raises IndexDamagedError.
        """
        with self._lock:
            self._num_scans += 1
        try:
            for first in range(0, len(segment_ids), block_size):
                some = segment_ids[first : first + block_size]
                if self._num_slots == 0:
                    yield self._read(some)
                    continue
                in_place = self._in_place(some)
                yield in_place if in_place is not None else self._gather(some, may_evict=False)
        finally:
            with self._lock:
                self._num_scans -= 1

    def _read(self, segment_ids: NDArray[np.int64]) -> ScorableSegments:
        return ScorableSegments.of(self._catalog.segment_features(segment_ids), self._device)

    # Out of the cache

    def _in_place(self, segment_ids: NDArray[np.int64]) -> ScorableSegments | None:
        """The slots themselves, without a copy, where they follow one another."""
        with self._lock:
            slots = self._slots_of(segment_ids)
            first, last = int(slots[0]), int(slots[-1])
            if first == _NOT_HELD or last - first != len(slots) - 1 or np.any(np.diff(slots) != 1):
                return None
            rows = slice(first, last + 1)
            # Not the video features: see `ScorableSegments.of`.
            videos = VideoFeatures(self._video[rows].clone(), self._frames[rows], self._mask[rows])
            return ScorableSegments(segment_ids, self._video_keys[rows].copy(), videos)

    def _gather(self, segment_ids: NDArray[np.int64], *, may_evict: bool) -> ScorableSegments:
        """A copy. may_evict: whether what has to be read may evict other segments."""
        with self._lock:
            slots = self._slots_of(segment_ids)
            is_held = slots != _NOT_HELD
            held = self._copy(slots[is_held])
            self._asked_again[slots[is_held]] |= may_evict
            sequence = self._sequence
        if is_held.all():
            return held
        read = self._read(segment_ids[~is_held])
        self._keep(read, sequence, may_evict)
        return _merged(segment_ids, is_held, held, read) if len(held) else read

    def _copy(self, slots: NDArray[np.int32]) -> ScorableSegments:
        rows = torch.from_numpy(slots).to(self._device)
        videos = VideoFeatures(
            *(table.index_select(0, rows) for table in (self._video, self._frames, self._mask))
        )
        return ScorableSegments(self._ids[slots], self._video_keys[slots], videos)

    def _slots_of(self, segment_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """int32 [N], _NOT_HELD for what is not held."""
        slots = np.full(len(segment_ids), _NOT_HELD, np.int32)
        known = (segment_ids > 0) & (segment_ids < len(self._slots))
        slots[known] = self._slots[segment_ids[known]]
        return slots

    # Into the cache

    def _keep(self, read: ScorableSegments, sequence: int, may_evict: bool) -> None:
        """Put in what was read when the cache was at change `sequence`."""
        with self._lock:
            if self._last_deletion > sequence:
                return  # It may be deleted by now, and that change would not come again.
            _, rows = np.unique(read.segment_ids, return_index=True)
            rows = rows[self._slots_of(read.segment_ids[rows]) == _NOT_HELD]
            slots = self._take_slots(len(rows), may_evict)
            if not len(slots):
                return
            rows = np.sort(rows)[: len(slots)]
            ids = read.segment_ids[rows]
            self._forget_ids(self._ids[slots])
            if ids.max() >= len(self._slots):
                larger = np.full(max(int(ids.max()) + 1, len(self._slots) * 5 // 4), _NOT_HELD, np.int32)
                larger[: len(self._slots)] = self._slots
                self._slots = larger
            self._slots[ids], self._ids[slots], self._video_keys[slots] = (
                slots,
                ids,
                read.video_keys[rows],
            )
            videos = read.videos if len(rows) == len(read) else read[rows].videos
            to = torch.from_numpy(slots).to(self._device)
            self._video.index_copy_(0, to, videos.video)
            self._frames.index_copy_(0, to, videos.frames)
            self._mask.index_copy_(0, to, videos.frame_mask)

    def _take_slots(self, count: int, may_evict: bool) -> NDArray[np.int64]:
        """At most `count` slots to write into, ascending as far as they are new."""
        num_new = min(count, self._num_slots - self._num_begun)
        slots = [np.arange(self._num_begun, self._num_begun + num_new)]
        self._num_begun += num_new
        count -= num_new
        if self._num_scans == 0:  # A scan may still read slots that were in use, even if freed since.
            num_freed = min(count, len(self._freed))
            slots.append(np.array([self._freed.pop() for _ in range(num_freed)], np.int64))
            if may_evict:
                slots.append(self._evict(min(count - num_freed, self._num_slots - num_new - num_freed)))
        return np.concatenate(slots)

    def _evict(self, count: int) -> NDArray[np.int64]:
        """Choose `count` slots in use (there are as many) that were not asked for since the hand passed."""
        chosen: list[NDArray[np.int64]] = []
        while count > 0:
            window = np.arange(self._hand, min(self._hand + count, self._num_slots))
            victims = window[~self._asked_again[window] & (self._ids[window] != _NO_SEGMENT)]
            self._asked_again[window] = False
            self._asked_again[victims] = True  # Not twice in one call.
            chosen.append(victims)
            count -= len(victims)
            self._hand = (self._hand + len(window)) % self._num_slots
        slots = np.concatenate([np.empty(0, np.int64), *chosen])
        self._asked_again[slots] = False
        return slots

    # Deletions

    def sync(self, sequence: int) -> None:
        """Drop what was deleted from the catalog. sequence: of its last change."""
        if self._num_slots == 0 or sequence == self._sequence:
            return
        with self._lock:
            try:
                while changes := self._catalog.changes_since(self._sequence):
                    gone = [i for change in changes if change.kind == "delete" for i in change.segment_ids]
                    self._forget(np.array(gone, np.int64))
                    self._sequence = changes[-1].sequence
                    if gone:
                        self._last_deletion = self._sequence
            except ChangesForgottenError:
                self._sequence = self._last_deletion = self._catalog.sequence
                self._forget(self._ids[self._ids != _NO_SEGMENT])

    def _forget(self, segment_ids: NDArray[np.int64]) -> None:
        slots = self._slots_of(segment_ids)
        slots = slots[slots != _NOT_HELD]
        self._forget_ids(self._ids[slots])
        self._ids[slots] = _NO_SEGMENT
        self._freed.extend(slots.tolist())

    def _forget_ids(self, segment_ids: NDArray[np.int64]) -> None:
        self._slots[segment_ids[segment_ids != _NO_SEGMENT]] = _NOT_HELD


def slot_bytes(num_frames: int, embedding_dim: int) -> int:
    """What a segment takes in memory: features, mask, and what is kept about a slot."""
    return num_frames * embedding_dim * 2 + embedding_dim * 4 + num_frames + 17


def _merged(
    segment_ids: NDArray[np.int64], is_held: NDArray[np.bool_], held: ScorableSegments, read: ScorableSegments
) -> ScorableSegments:
    """Rows of both in the order of `segment_ids`, less what is in neither.

    is_held: bool, for each of `segment_ids` whether it is in `held`. Both are in that order already.
    """
    is_read = ~is_held
    is_read[is_read] = np.isin(segment_ids[is_read], read.segment_ids)
    exists = is_held | is_read
    video_keys = np.empty(len(exists), np.int64)
    video_keys[is_held], video_keys[is_read] = held.video_keys, read.video_keys
    device = held.videos.video.device
    rows = [torch.from_numpy(np.flatnonzero(which[exists])).to(device) for which in (is_held, is_read)]

    def joined(ours: Tensor, theirs: Tensor) -> Tensor:
        table = ours.new_empty((len(ours) + len(theirs), *ours.shape[1:]))
        return table.index_copy_(0, rows[0], ours).index_copy_(0, rows[1], theirs)

    videos = VideoFeatures(
        joined(held.videos.video, read.videos.video),
        joined(held.videos.frames, read.videos.frames),
        joined(held.videos.frame_mask, read.videos.frame_mask),
    )
    return ScorableSegments(segment_ids[exists], video_keys[exists], videos)


class FilterCache:
    """The segments that the filters used last match. Safe to use from several threads.

    max_filters: how many filters are kept, at 8 bytes a matching segment and a bit for each segment.
    """

    def __init__(self, catalog: SearchedStore, max_filters: int = 16) -> None:
        self._catalog = catalog
        self._max_filters = max_filters
        self._lock = threading.Lock()
        self._kept: OrderedDict[Filter, tuple[Matches, SegmentSet]] = OrderedDict()

    def matching(self, chosen: Filter) -> SegmentSet:
        """The segments whose videos fulfil `chosen` now; the same object as long as nothing has changed.

        Raises IndexDamagedError.
        """
        with self._lock:
            former, segments = self._kept.get(chosen, (None, None))
        matches = self._catalog.matching(chosen, former)
        if segments is None or matches is not former:
            segments = SegmentSet(matches.segment_ids)
        with self._lock:
            newest = self._kept.get(chosen)
            # Another thread may have kept later matches meanwhile.
            if newest is None or newest[0].sequence <= matches.sequence:
                self._kept[chosen] = matches, segments
            self._kept.move_to_end(chosen)
            while len(self._kept) > self._max_filters:
                self._kept.popitem(last=False)
        return segments
