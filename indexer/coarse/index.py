"""The coarse index: inner products with every segment's video feature, derived from the catalog.

Searches see an immutable snapshot (FAISS), a small delta of later segments (numpy) and marks on deleted ones.
Adding to a FAISS index beside searches is not safe, so nothing is ever added to one that is in use: `compact`
makes a new snapshot and then swaps it in. Up to `EXACT_LIMIT` segments it is exact, beyond it approximate.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from indexer.coarse.approximate import ApproximateSnapshot, choose_kind, search_approximately
from indexer.coarse.building import make_snapshot
from indexer.coarse.exact import (
    ROWS_AT_ONCE,
    CoarseKind,
    ExactSnapshot,
    KindChoice,
    MarkedIds,
    Vectors,
    copy_to_gpu,
    longest,
    search_exactly,
)
from indexer.coarse.snapshots import Snapshot, SnapshotUnusableError, load_snapshot, save_snapshot
from indexer.errors import ChangesForgottenError
from indexer.store.records import Change
from indexer.store.sqlite.catalog import Catalog

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _State:
    """All that one search sees: the catalog after the change `sequence` (with that `token`)."""

    snapshot: Snapshot
    delta: Vectors
    sequence: int
    token: str

    @property
    def num_segments(self) -> int:
        return self.snapshot.rows.num_alive + self.delta.num_alive

    @property
    def num_pending(self) -> int:
        return len(self.delta.ids) + self.snapshot.rows.num_deleted


class CoarseIndex:
    """Top-k by inner product over the segments of a catalog.

    Made by `open` (the saved snapshot where it is usable, else as `build`) or `build` (from the catalog).
    Safe to use from several threads: searches never wait for changes; changes wait for each other.
    """

    _state: _State

    def __init__(
        self,
        catalog: Catalog,
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
        self._writing = threading.Lock()
        self._compacting = threading.Lock()
        self._saving = threading.Lock()
        self._saved_sequence = snapshot.sequence if saved else None
        self._start_over(_first_state(self._placed(snapshot)))

    @classmethod
    def open(
        cls,
        catalog: Catalog,
        *,
        kind: KindChoice = "auto",
        max_pending: int = 4096,
        device: torch.device | None = None,
    ) -> Self:
        """The snapshot saved beside the catalog with later changes replayed, or else what `build` makes.

        A snapshot that is missing, damaged, of another fingerprint or kind, or of a history that the change
        log does not hold is not used; the reason is logged. Where `auto` then means an approximate one, an
        exact one is made first, because that is quicker, and `needs_compaction` is true.
        max_pending: how many later and deleted segments beside a snapshot make `needs_compaction` true.
        device: a GPU here searches what it can, see `indexer.coarse.exact`.
        """
        try:
            snapshot = load_snapshot(catalog.directory, catalog.fingerprint, catalog.embedding_dim)
            if catalog.change_token(snapshot.sequence) != snapshot.token:
                raise SnapshotUnusableError(
                    "the saved snapshot is of a history that the change log does not hold"
                )
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
        catalog: Catalog,
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
        """Later segments and marks on deleted ones beside the snapshot: what `compact` does away with."""
        return self._state.num_pending

    @property
    def needs_compaction(self) -> bool:
        """Whether there is more pending than `max_pending` and a tenth of the snapshot, or the snapshot
        should be of another kind."""
        state = self._state
        if self._wanted_kind(state) != state.snapshot.kind:
            return True
        return state.num_pending > max(self._max_pending, len(state.snapshot.rows.ids) // 10)

    @property
    def needs_saving(self) -> bool:
        """Whether the snapshot in use is worth a file and is not the one that this object last read or
        wrote."""
        snapshot = self._state.snapshot
        return len(snapshot.rows.ids) > 0 and self._saved_sequence != snapshot.sequence

    # Searching

    def search(
        self,
        queries: NDArray[np.float32],
        num_candidates: int,
        allowed: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best segments for each of T queries: scores float32 [T, k] and segment ids int64 [T, k].

        queries: float32 [T, D], of any length. k is `num_candidates`, or the number of segments where there
        are fewer. allowed: ids of the only segments to look at, int64, ascending; None for all.
        Higher scores first, equal scores by ascending id. A score does not depend on where a segment is
        stored. Exact: the answer before and after `compact`, saving or a rebuild is the same to the last bit.
        Approximate: some of the best may be missing, the last ones most likely.
        """
        state = self._state
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self._catalog.embedding_dim:
            raise ValueError(f"queries must be [T, {self._catalog.embedding_dim}], not {list(queries.shape)}")
        snapshot, delta = state.snapshot, state.delta
        if allowed is not None:
            snapshot, delta = snapshot.only(allowed), delta.only(allowed)
        count = max(0, min(num_candidates, snapshot.rows.num_alive + delta.num_alive))
        scores = np.empty((len(queries), count), np.float32)
        ids = np.empty((len(queries), count), np.int64)
        for row, query in enumerate(queries if count else ()):
            if isinstance(snapshot, ExactSnapshot):
                scores[row], ids[row] = search_exactly(snapshot, delta, query, count)
            else:
                scores[row], ids[row] = search_approximately(
                    snapshot, delta, query, count, self._catalog.video_features
                )
        return scores, ids

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32] | None]]:
        """All that a search can find now, in blocks: ids int64 [N], ascending, and vectors float32 [N, D], or
        None where they are kept compressed."""
        state = self._state
        if isinstance(state.snapshot, ExactSnapshot):
            yield from state.snapshot.rows.living()
        else:
            ids = state.snapshot.rows.ids[state.snapshot.rows.alive_places()]
            for first in range(0, len(ids), ROWS_AT_ONCE):
                yield ids[first : first + ROWS_AT_ONCE], None
        yield from state.delta.living()

    def segment_ids(self) -> NDArray[np.int64]:
        """Ids of all that a search can find now, int64, ascending."""
        state = self._state
        return np.concatenate([rows.ids[rows.alive_places()] for rows in (state.snapshot.rows, state.delta)])

    # Changing

    def follow(self) -> bool:
        """Take in what has changed in the catalog; returns whether anything had.

        Cheap where nothing has: one number is read. Where the change log does not reach back far enough, the
        index is made from the catalog again.
        """
        if self._catalog.sequence == self._state.sequence:
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
                self._start_over(_first_state(self._placed(make_snapshot(self._catalog, kind))))
                changed = True
        return changed

    def compact(self) -> bool:
        """Make a new snapshot of everything, of the kind that it should be; False where another thread is at
        it or the index was made anew.

        Searches and `follow` go on meanwhile; only the exchange at the end holds up `follow`.
        """
        if not self._compacting.acquire(blocking=False):
            return False
        try:
            old = self._state
            kind = self._wanted_kind(old)
            if kind == "exact" and isinstance(old.snapshot, ExactSnapshot):
                return self._compact_exact(old, old.snapshot)
            former = old.snapshot if isinstance(old.snapshot, ApproximateSnapshot) else None
            return self._exchange(old, self._placed(make_snapshot(self._catalog, kind, former)))
        finally:
            self._compacting.release()

    def _wanted_kind(self, state: _State) -> CoarseKind:
        return choose_kind(self._kind, state.num_segments, state.snapshot.kind)

    def _compact_exact(self, old: _State, old_snapshot: ExactSnapshot) -> bool:
        """From what is in memory, without reading the catalog."""
        made = ExactSnapshot.of(
            itertools.chain(old_snapshot.rows.living(), old.delta.living()),
            old.num_segments,
            self._catalog.embedding_dim,
            old.sequence,
            old.token,
        )
        snapshot = self._placed(made)
        with self._writing:
            now = self._state
            if now.snapshot.index is not old.snapshot.index:
                return False
            deleted = np.concatenate(
                [
                    _deleted_since(old.snapshot.rows, now.snapshot.rows),
                    _deleted_since(old.delta, now.delta),
                ]
            )
            later = now.delta.alive_places(first=len(old.delta.ids))
            delta = Vectors(now.delta.ids[later], now.delta.vectors[later], now.delta.max_norm)
            self._start_over(_State(snapshot.without(deleted), delta, now.sequence, now.token))
        return True

    def _exchange(self, old: _State, snapshot: Snapshot) -> bool:
        """Take a snapshot that was read from the catalog, with what has changed since it was."""
        with self._writing:
            now = self._state
            if now.snapshot.index is not old.snapshot.index:
                return False
            state = _first_state(snapshot)
            try:
                while changes := self._catalog.changes_since(state.sequence):
                    state = self._advanced(state, changes)
            except ChangesForgottenError:
                return False
            self._start_over(state)
        return True

    def save(self) -> None:
        """Write the snapshot beside the catalog; what is pending is in the change log already. Raises
        OSError."""
        with self._saving:
            snapshot = self._state.snapshot
            save_snapshot(snapshot, self._catalog.directory, self._catalog.fingerprint)
            self._saved_sequence = snapshot.sequence

    def _placed(self, snapshot: Snapshot) -> Snapshot:
        """The same, with a copy on the GPU where that is wanted and possible."""
        index = snapshot.flat if isinstance(snapshot, ExactSnapshot) else snapshot.index
        return replace(snapshot, gpu=copy_to_gpu(index, snapshot.kind, self._device))

    def _start_over(self, state: _State) -> None:
        """Take a state whose delta shares no memory with the one before."""
        self._buffer, self._buffer_ids = state.delta.vectors, state.delta.ids
        self._buffer_used = len(state.delta.ids)
        self._state = state

    def _advanced(self, state: _State, changes: Sequence[Change]) -> _State:
        """`state` with changes that follow on it."""
        added = [i for change in changes if change.kind == "add" for i in change.segment_ids]
        deleted = [i for change in changes if change.kind == "delete" for i in change.segment_ids]
        # Segment ids increase from commit to commit, so what is new has a higher id than all that is known.
        # What a reading of the whole catalog has seen already comes here again, and is left out.
        known = max(_last(state.snapshot.rows.ids), _last(state.delta.ids))
        ids, vectors = self._catalog.video_features([i for i in added if i > known])
        gone = np.array(deleted, np.int64)
        sequence = changes[-1].sequence
        return _State(
            state.snapshot.without(gone),
            self._extended(state.delta, ids, vectors).without(gone),
            sequence,
            self._catalog.change_token(sequence) or "",
        )

    def _extended(self, delta: Vectors, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> Vectors:
        """`delta` with more rows. It is the start of a larger buffer, whose rows are written once."""
        if not len(ids):
            return delta
        size, needed = len(delta.ids), len(delta.ids) + len(ids)
        # Rows of the buffer that another delta than its owner's last one shows must not be written again.
        is_owner = size == self._buffer_used and np.shares_memory(delta.ids, self._buffer_ids)
        if not (is_owner or size == 0 == self._buffer_used) or needed > len(self._buffer_ids):
            capacity = max(needed, 2 * size, 64)
            buffer, buffer_ids = (
                np.empty((capacity, vectors.shape[1]), np.float32),
                np.empty(capacity, np.int64),
            )
            buffer[:size], buffer_ids[:size] = delta.vectors, delta.ids
            self._buffer, self._buffer_ids = buffer, buffer_ids
        self._buffer[size:needed], self._buffer_ids[size:needed] = vectors, ids
        self._buffer_used = needed
        return Vectors(
            self._buffer_ids[:needed],
            self._buffer[:needed],
            max(delta.max_norm, longest(vectors)),
            alive=None if delta.alive is None else np.concatenate([delta.alive, np.ones(len(ids), bool)]),
            num_deleted=delta.num_deleted,
        )


def _quick_kind(catalog: Catalog, kind: KindChoice) -> CoarseKind:
    """What to make while searches wait."""
    return "exact" if kind == "auto" else choose_kind(kind, catalog.num_segments)


def _first_state(snapshot: Snapshot) -> _State:
    nothing = Vectors(np.empty(0, np.int64), np.empty((0, snapshot.index.d), np.float32), 0.0)
    return _State(snapshot, nothing, snapshot.sequence, snapshot.token)


def _deleted_since(old: MarkedIds, now: MarkedIds) -> NDArray[np.int64]:
    """Ids that live in `old` and not in `now`, which has the same rows and perhaps more."""
    if now.alive is None:
        return np.empty(0, np.int64)
    gone = ~now.alive[: len(old.ids)]
    if old.alive is not None:
        gone &= old.alive
    return old.ids[gone]


def _last(ids: NDArray[np.int64]) -> int:
    return int(ids[-1]) if len(ids) else 0
