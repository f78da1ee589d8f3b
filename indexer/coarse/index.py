"""The coarse index: inner products with every segment's video feature, derived from the store.

Searches see an immutable snapshot (FAISS), small exact indexes of later segments, and which of the snapshot's
segments were deleted. Adding to a FAISS index during searches is not safe (an HNSW crashed in a trial), so
nothing is added to one that is in use: later segments go into a copy of the last small index, and `compact`
makes a new snapshot and then swaps it in. Up to `EXACT_LIMIT` segments it is exact, beyond it approximate.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.coarse.approximate import (
    ApproximateSearch,
    Fetch,
    SelectedPerList,
    empty_approximate_index,
    num_compared,
    num_training_vectors,
    still_fits,
)
from indexer.coarse.exact import (
    ROWS_AT_ONCE,
    CoarseKind,
    Found,
    KindChoice,
    SegmentSet,
    Selection,
    choose_kind,
    copy_to_gpu,
    empty_exact_index,
    search_exact,
    vector_blocks,
)
from indexer.coarse.snapshots import Snapshot, SnapshotUnusableError, load_snapshot, save_snapshot
from indexer.errors import ChangesForgottenError, IndexDamagedError
from indexer.store.records import Change
from indexer.store.store import SearchedStore

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DELTA_ROWS = 1024
"""Later segments in one small index: what is copied, 2 MiB at D = 512, when another one comes."""

_SAMPLE_SEED = 0


@dataclass(frozen=True, eq=False)
class _Delta:
    """Segments that came after the snapshot: an exact index and its ids int64 [N], ascending. Never
    changed."""

    index: Any
    ids: NDArray[np.int64]

    @cached_property
    def rows(self) -> SegmentSet:
        """Its ids, for filters."""
        return SegmentSet(self.ids)

    def changed(
        self,
        gone: NDArray[np.int64],
        ids: NDArray[np.int64] | None = None,
        vectors: NDArray[np.float32] | None = None,
    ) -> _Delta:
        """A copy without those of `gone`, and with further rows, whose ids are higher than all here."""
        index: Any = faiss.clone_index(self.index)
        keep = ~np.isin(self.ids, gone)
        if not keep.all():
            index.remove_ids(self.ids[~keep])
        if ids is None:
            return _Delta(index, self.ids[keep])
        index.add_with_ids(vectors, ids)
        return _Delta(index, np.concatenate([self.ids[keep], ids]))


@dataclass(frozen=True, eq=False)
class _State:
    """All that one search sees: the store after the change `sequence` (with that `token`).

    rows, per_list: of the snapshot, for filters. deleted: ids of the snapshot that are deleted, ascending.
    deltas: later segments, ids ascending.
    """

    snapshot: Snapshot
    rows: SegmentSet
    per_list: SelectedPerList
    deleted: NDArray[np.int64]
    deltas: tuple[_Delta, ...]
    sequence: int
    token: str

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        rows, per_list = SegmentSet(snapshot.ids), SelectedPerList(snapshot.index)
        return cls(snapshot, rows, per_list, np.empty(0, np.int64), (), snapshot.sequence, snapshot.token)

    @property
    def num_later(self) -> int:
        return sum(len(delta.ids) for delta in self.deltas)

    @property
    def num_segments(self) -> int:
        return len(self.snapshot.ids) - len(self.deleted) + self.num_later

    @property
    def num_pending(self) -> int:
        return self.num_later + len(self.deleted)

    @cached_property
    def live(self) -> Selection:
        """Of the snapshot, what is not deleted; kept, because a search would take longer to make it."""
        return Selection.of(self.rows, SegmentSet(self.deleted))

    @property
    def live_ids(self) -> NDArray[np.int64]:
        return np.delete(self.snapshot.ids, np.searchsorted(self.snapshot.ids, self.deleted))

    @property
    def last_id(self) -> int:
        """The highest segment id that was ever taken in, or 0."""
        return max(_last(self.snapshot.ids), *(_last(delta.ids) for delta in self.deltas), 0)


class CoarseIndex:
    """Top-k by inner product over the segments of a catalog.

    Made by `open` (the saved snapshot where it is usable, else as `build`) or `build` (from the catalog).
    Safe to use from several threads: searches never wait for changes; changes wait for each other.

    fetch: where an approximate search reads exact vectors by their segments' ids. The store, until its owner
    has something quicker that gives the same.
    """

    fetch: Fetch
    _state: _State

    def __init__(
        self,
        catalog: SearchedStore,
        snapshot: Snapshot,
        *,
        kind: KindChoice,
        saved: bool,
        max_pending: int,
        device: torch.device | None,
    ) -> None:
        """See `open` and `build`."""
        self._catalog = catalog
        self._kind = kind
        self._max_pending = max_pending
        self._device = device
        self.fetch = catalog.video_features
        self._writing = threading.Lock()
        self._compacting = threading.Lock()
        self._saving = threading.Lock()
        self._saved_sequence = snapshot.sequence if saved else None
        self._state = _State.of(self._placed(snapshot))

    @classmethod
    def open(
        cls,
        catalog: SearchedStore,
        *,
        kind: KindChoice = "auto",
        max_pending: int = 4096,
        device: torch.device | None = None,
    ) -> Self:
        """The snapshot saved next to the catalog with later changes replayed, or else what `build` makes.

        A snapshot that is missing, damaged, of another fingerprint or kind, or of a history that the change
        log does not hold is not used; the reason is logged. Where `auto` then means an approximate one, an
        exact one is made first, because that is quicker, and `needs_compaction` is true.
        max_pending: how many segments added or deleted since the snapshot make `needs_compaction` true.
        device: a GPU here searches what it can, see `indexer.coarse.exact`.
        """
        try:
            snapshot = load_snapshot(catalog.directory, catalog.fingerprint, catalog.embedding_dim)
            if catalog.change_token(snapshot.sequence) != snapshot.token:
                raise SnapshotUnusableError("the change log does not cover the saved snapshot")
            wanted = choose_kind(kind, catalog.num_segments, snapshot.kind)
            if kind != "auto" and wanted != snapshot.kind:
                raise SnapshotUnusableError(f"the saved snapshot is of the kind {snapshot.kind}, not {kind}")
        except SnapshotUnusableError as error:
            logger.info("making the coarse index of %s from the catalog: %s", catalog.directory, error)
            first = make_snapshot(catalog, _quick_kind(catalog, kind))
            index = cls(catalog, first, kind=kind, saved=False, max_pending=max_pending, device=device)
        else:
            index = cls(catalog, snapshot, kind=kind, saved=True, max_pending=max_pending, device=device)
        index.follow()
        return index

    @classmethod
    def build(
        cls,
        catalog: SearchedStore,
        *,
        kind: KindChoice = "auto",
        max_pending: int = 4096,
        device: torch.device | None = None,
    ) -> Self:
        """An index of all that the catalog holds. kind: `auto` chooses by the number of segments; max_pending
        and device as in `open`."""
        snapshot = make_snapshot(catalog, choose_kind(kind, catalog.num_segments))
        index = cls(catalog, snapshot, kind=kind, saved=False, max_pending=max_pending, device=device)
        index.follow()
        return index

    # Facts

    @property
    def sequence(self) -> int:
        """Number of the last catalog change that searches see."""
        return self._state.sequence

    @property
    def num_segments(self) -> int:
        """Segments that a search can find."""
        return self._state.num_segments

    @property
    def kind(self) -> CoarseKind:
        """How the snapshot in use keeps its vectors."""
        return self._state.snapshot.kind

    @property
    def num_pending(self) -> int:
        """Segments added or deleted since the snapshot: what `compact` merges into it."""
        return self._state.num_pending

    @property
    def needs_compaction(self) -> bool:
        """Whether there is more pending than `max_pending` and a tenth of the snapshot, or the snapshot
        should be of another kind."""
        state = self._state
        if self._wanted_kind(state) != state.snapshot.kind:
            return True
        return state.num_pending > max(self._max_pending, len(state.snapshot.ids) // 10)

    @property
    def needs_saving(self) -> bool:
        """Whether the snapshot in use is worth a file and is not the one that this object last read or
        wrote."""
        snapshot = self._state.snapshot
        is_new = len(snapshot.ids) > 0 and self._saved_sequence != snapshot.sequence
        return is_new and not self._catalog.is_read_only

    # Searching

    def search(
        self,
        queries: NDArray[np.float32],
        num_candidates: int,
        allowed: SegmentSet | None = None,
        *,
        exact: bool = True,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best segments for each of T queries.

        Args:
            queries: float32 [T, D], of any length.
            num_candidates: how many are wanted.
            allowed: the only segments to consider; None for all.
            exact: whether scores are products with exact vectors. False for callers that compute those
            themselves: quicker, and so many more segments come that those which `exact` gives are among them.

        Returns:
            Scores float32 [T, k], descending, equal ones by ascending id, and segment ids int64 [T, k]; k is
            `num_candidates`, or the number of segments where there are fewer. Exact: scores are within
            float32 rounding. Approximate: some of the best may be missing, the last ones most likely.

        Raises:
            ValueError: the queries have another shape.
        """
        state, kind = self._state, self._state.snapshot.kind
        if not exact and kind in ("ivf-sq", "hnsw"):  # So many of `ivf-pq` would cost a caller more.
            num_candidates = num_compared(kind, num_candidates)
        else:
            exact = True
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self._catalog.embedding_dim:
            raise ValueError(f"queries must be [T, {self._catalog.embedding_dim}], not {list(queries.shape)}")
        parts = [self._search_snapshot(state, queries, num_candidates, allowed, exact)]
        for delta in state.deltas:
            selection = Selection.of(delta.rows)
            if allowed is not None:
                selection = selection.among(delta.rows, allowed)
            count = max(0, min(num_candidates, selection.num_selected))
            parts.append(search_exact(delta.index, queries, count, selection))
        scores = np.concatenate([scores for scores, _ in parts], axis=1)
        ids = np.concatenate([ids for _, ids in parts], axis=1)
        order = np.lexsort((ids, -scores), axis=-1)[:, : max(0, num_candidates)]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def _search_snapshot(
        self,
        state: _State,
        queries: NDArray[np.float32],
        count: int,
        allowed: SegmentSet | None,
        exact: bool,
    ) -> Found:
        snapshot, selection = state.snapshot, state.live
        if allowed is not None:
            selection = selection.among(state.rows, allowed)
        count = max(0, min(count, selection.num_selected))
        if snapshot.kind == "exact":
            return search_exact(snapshot.index, queries, count, selection, snapshot.gpu)
        kind, faiss_index, ids = snapshot.kind, snapshot.index, snapshot.ids
        approximate = ApproximateSearch(kind, faiss_index, ids, self.fetch, state.per_list, snapshot.gpu)
        return approximate.search(queries, count, selection, exact=exact)

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32] | None]]:
        """All that a search can find now, in blocks: ids int64 [N], ascending, and vectors float32 [N, D], or
        None where they are kept compressed."""
        state = self._state
        if state.snapshot.kind == "exact":
            yield from _live_blocks(state.snapshot.index, state.snapshot.ids, state.deleted)
        else:
            ids = state.live_ids
            for first in range(0, len(ids), ROWS_AT_ONCE):
                yield ids[first : first + ROWS_AT_ONCE], None
        for delta in state.deltas:
            yield from _live_blocks(delta.index, delta.ids, np.empty(0, np.int64))

    def segment_ids(self) -> NDArray[np.int64]:
        """Ids of all that a search can find now, int64, ascending."""
        state = self._state
        return np.concatenate([state.live_ids, *(delta.ids for delta in state.deltas)])

    # Changing

    def follow(self, newest: int | None = None) -> bool:
        """Take in what has changed in the catalog; returns whether anything had.

        newest: the catalog's `sequence`; None to read it here, one number. Where the change log does not
        reach back far enough, the index is made from the catalog again.
        """
        if (self._catalog.sequence if newest is None else newest) == self._state.sequence:
            return False
        changed = False
        with self._writing:
            try:
                while changes := self._catalog.changes_since(self._state.sequence):
                    self._state = self._advanced(self._state, changes)
                    changed = True
            except ChangesForgottenError as error:
                logger.info(
                    "making the coarse index of %s from the catalog: %s", self._catalog.directory, error
                )
                kind = _quick_kind(self._catalog, self._kind)
                self._state = _State.of(self._placed(make_snapshot(self._catalog, kind)))
                changed = True
        return changed

    def compact(self) -> bool:
        """Make a new snapshot of everything, of the kind that it should be; False where another thread is at
        it or the index was made again meanwhile.

        Searches and `follow` go on meanwhile; only the exchange at the end holds up `follow`.
        """
        if not self._compacting.acquire(blocking=False):
            return False
        try:
            old = self._state
            kind = self._wanted_kind(old)
            snapshot = self._placed(make_snapshot(self._catalog, kind, old.snapshot))
            with self._writing:
                if self._state.snapshot is not old.snapshot:
                    return False
                # What changed while it was made is in the change log.
                state = _State.of(snapshot)
                try:
                    while changes := self._catalog.changes_since(state.sequence):
                        state = self._advanced(state, changes)
                except ChangesForgottenError:
                    return False
                self._state = state
            return True
        finally:
            self._compacting.release()

    def _wanted_kind(self, state: _State) -> CoarseKind:
        return choose_kind(self._kind, state.num_segments, state.snapshot.kind)

    def save(self) -> None:
        """Write the snapshot next to the catalog; what is pending is in the change log already. Raises
        OSError."""
        with self._saving:
            snapshot = self._state.snapshot
            save_snapshot(snapshot, self._catalog.directory, self._catalog.fingerprint)
            self._saved_sequence = snapshot.sequence

    def _placed(self, snapshot: Snapshot) -> Snapshot:
        """The same, with a copy on the GPU where that is wanted and possible."""
        gpu = copy_to_gpu(snapshot.index, snapshot.kind, snapshot.ids, self._device)
        return replace(snapshot, gpu=gpu)

    def _advanced(self, state: _State, changes: Sequence[Change]) -> _State:
        """`state` with changes that follow on it."""
        added = [i for change in changes if change.kind == "add" for i in change.segment_ids]
        deleted = [i for change in changes if change.kind == "delete" for i in change.segment_ids]
        # Segment ids increase from commit to commit, so what is new has a higher id than all that is known.
        # What a reading of the whole store has seen already comes here again, and is left out.
        last_id = state.last_id
        ids, vectors = self._catalog.video_features([i for i in added if i > last_id])
        gone = np.unique(np.array(deleted, np.int64))
        deltas = [d.changed(gone) if np.isin(d.ids, gone).any() else d for d in state.deltas]
        sequence = changes[-1].sequence
        return _State(
            state.snapshot,
            state.rows,
            state.per_list,
            np.union1d(state.deleted, _common(state.snapshot.ids, gone)),
            _with_rows(deltas, ids, vectors),
            sequence,
            self._catalog.change_token(sequence) or "",
        )


def _with_rows(
    deltas: list[_Delta], ids: NDArray[np.int64], vectors: NDArray[np.float32]
) -> tuple[_Delta, ...]:
    """The small indexes with further rows: in a copy of the last one until it is full, then in new ones."""
    while len(ids):
        if not deltas or len(deltas[-1].ids) >= DELTA_ROWS:
            deltas.append(_Delta(empty_exact_index(vectors.shape[1]), np.empty(0, np.int64)))
        num_free = DELTA_ROWS - len(deltas[-1].ids)
        deltas[-1] = deltas[-1].changed(np.empty(0, np.int64), ids[:num_free], vectors[:num_free])
        ids, vectors = ids[num_free:], vectors[num_free:]
    return tuple(delta for delta in deltas if len(delta.ids))


def make_snapshot(catalog: SearchedStore, kind: CoarseKind, former: Snapshot | None = None) -> Snapshot:
    """A snapshot of the whole store.

    The number of the last change is read first: what changes during the reading may be seen or not, and comes
    again when the log is followed from there.

    Args:
        catalog: the store.
        kind: of the index.
        former: what it replaces; of the same kind and about the same size, its lists and compression are
        kept.

    Raises:
        IndexDamagedError: fewer or more segments are found than the store counts.
    """
    sequence = catalog.sequence
    token = catalog.change_token(sequence) or ""
    if kind == "exact":
        index = empty_exact_index(catalog.embedding_dim)
    else:
        num_segments, trained, sample = catalog.num_segments, None, None
        if former is not None and former.kind == kind and still_fits(kind, former.index, num_segments):
            trained = former.index
        else:
            sample = _sample(catalog, num_training_vectors(kind, num_segments))
        index = empty_approximate_index(kind, sample, num_segments, trained)
    all_ids = [np.empty(0, np.int64)]
    for ids, vectors in catalog.iterate_video_features():
        index.add_with_ids(vectors, ids)
        all_ids.append(ids)
    snapshot = Snapshot(kind, index, np.concatenate(all_ids), sequence, token)
    if len(snapshot.ids) != catalog.num_segments and catalog.sequence == sequence:
        raise IndexDamagedError(
            f"the catalog in {catalog.directory} is damaged: of its {catalog.num_segments} segments"
            f" {len(snapshot.ids)} are found; run verify to learn more"
        )
    return snapshot


def save_coarse_index(catalog: SearchedStore) -> None:
    """Save the coarse index, so that the next search or server starts without building it.

    A disk that refuses is no error: the next search makes its own.
    """
    with suppress(OSError):
        coarse = CoarseIndex.open(catalog)
        coarse.compact()
        coarse.save()


def limit_faiss_threads() -> None:
    """Let FAISS use half of the processors in this thread, so that searches have the others."""
    faiss.omp_set_num_threads(max(1, (os.cpu_count() or 1) // 2))


def _sample(catalog: SearchedStore, size: int) -> NDArray[np.float32]:
    """Video features of about `size` segments, float32 [S, D], the same ones for the same store."""
    ids = catalog.segment_ids()
    chosen = np.random.default_rng(_SAMPLE_SEED).choice(ids, min(size, len(ids)), replace=False)
    _, vectors = catalog.video_features(np.sort(chosen))
    return vectors


def _quick_kind(catalog: SearchedStore, kind: KindChoice) -> CoarseKind:
    """What to make while searches wait."""
    return "exact" if kind == "auto" else choose_kind(kind, catalog.num_segments)


def _live_blocks(
    index: Any, ids: NDArray[np.int64], deleted: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Ids and vectors of an exact index, in blocks, without those deleted."""
    first = 0
    for vectors in vector_blocks(index):
        some = ids[first : first + len(vectors)]
        first += len(vectors)
        live = ~np.isin(some, deleted)
        yield some[live], vectors[live]


def _common(ids: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of `others` that are in `ids`; both ascending."""
    positions = np.searchsorted(ids, others)
    inside = positions < len(ids)
    found: NDArray[np.int64] = others[inside][ids[positions[inside]] == others[inside]]
    return found


def _last(ids: NDArray[np.int64]) -> int:
    return int(ids[-1]) if len(ids) else 0
