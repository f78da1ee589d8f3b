"""The coarse index: exact inner products with every segment's video feature, derived from the catalog.

Searches see an immutable snapshot (FAISS), a small delta of later segments (numpy) and marks on deleted ones.
Adding
to a FAISS index beside searches is not safe, so nothing is ever added to one that is in use: `compact` makes
a new snapshot and then swaps it in.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.coarse_files import SnapshotUnusableError, load_snapshot, save_snapshot
from indexer.coarse_vectors import Snapshot, Vectors, longest, search_exactly
from indexer.errors import ChangesForgottenError

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
    """Exact top-k by inner product over the segments of a catalog.

    Made by `open` (the saved snapshot where it is usable, else as `build`) or `build` (from the catalog).
    Safe to use
    from several threads: searches never wait for changes; changes wait for each other.
    """

    def __init__(self, catalog: Catalog, snapshot: Snapshot, *, saved: bool, max_pending: int) -> None:
        """See `open` and `build`."""
        self._catalog = catalog
        self._max_pending = max_pending
        self._writing = threading.Lock()
        self._compacting = threading.Lock()
        self._saving = threading.Lock()
        self._saved_sequence = snapshot.sequence if saved else None
        self._start_over(_first_state(snapshot))

    @classmethod
    def open(cls, catalog: Catalog, *, max_pending: int = 4096) -> Self:
        """The snapshot saved beside the catalog with later changes replayed, or else what `build` makes.

        A snapshot that is missing, damaged, of another fingerprint, or of a history that the change log does
        not hold is not used; the reason is logged.
        max_pending: how many later and deleted segments beside a snapshot make `needs_compaction` true.
        """
        try:
            snapshot = load_snapshot(catalog.directory, catalog.fingerprint, catalog.embedding_dim)
            if catalog.change_token(snapshot.sequence) != snapshot.token:
                raise SnapshotUnusableError(
                    "the saved snapshot is of a history that the change log does not hold"
                )
        except SnapshotUnusableError as error:
            logger.info("making the coarse index of %s from the catalog: %s", catalog.directory, error)
            return cls.build(catalog, max_pending=max_pending)
        index = cls(catalog, snapshot, saved=True, max_pending=max_pending)
        index.follow()
        return index

    @classmethod
    def build(cls, catalog: Catalog, *, max_pending: int = 4096) -> Self:
        """An index of all that the catalog holds."""
        index = cls(catalog, _read_catalog(catalog), saved=False, max_pending=max_pending)
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
    def num_pending(self) -> int:
        """Later segments and marks on deleted ones beside the snapshot: what `compact` does away with."""
        return self._state.num_pending

    @property
    def needs_compaction(self) -> bool:
        """Whether there is more pending than `max_pending` and a tenth of the snapshot."""
        state = self._state
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
        are fewer. allowed: ids of the only segments to look at, int64, ascending; None for all. Higher scores
        first, equal scores by ascending id. A score does not depend on where a
        segment is
        stored: the answer before and after `compact`, saving or a rebuild is the same to the last bit.
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
            scores[row], ids[row] = search_exactly(snapshot, delta, query, count)
        return scores, ids

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """All that a search can find now, in blocks: ids int64 [N], ascending, and vectors float32 [N, D]."""
        state = self._state
        yield from state.snapshot.rows.living()
        yield from state.delta.living()

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
                    added = [i for change in changes if change.kind == "add" for i in change.segment_ids]
                    deleted = [i for change in changes if change.kind == "delete" for i in change.segment_ids]
                    self._apply(added, deleted, changes[-1].sequence)
                    changed = True
            except ChangesForgottenError as error:
                logger.info(
                    "making the coarse index of %s from the catalog: %s", self._catalog.directory, error
                )
                self._start_over(_first_state(_read_catalog(self._catalog)))
                changed = True
        return changed

    def compact(self) -> bool:
        """Make a new snapshot of everything; False where another thread is at it or the index was made anew.

        Searches and `follow` go on meanwhile; only the exchange at the end holds up `follow`.
        """
        if not self._compacting.acquire(blocking=False):
            return False
        try:
            old = self._state
            snapshot = Snapshot.of(
                itertools.chain(old.snapshot.rows.living(), old.delta.living()),
                old.num_segments,
                self._catalog.embedding_dim,
                old.sequence,
                old.token,
            )
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
                self._start_over(
                    _State(
                        snapshot.without(deleted),
                        Vectors(now.delta.vectors[later], now.delta.ids[later], now.delta.max_norm),
                        now.sequence,
                        now.token,
                    )
                )
            return True
        finally:
            self._compacting.release()

    def save(self) -> None:
        """Write the snapshot beside the catalog; what is pending is in the change log already. Raises
        OSError."""
        with self._saving:
            snapshot = self._state.snapshot
            save_snapshot(snapshot, self._catalog.directory, self._catalog.fingerprint)
            self._saved_sequence = snapshot.sequence

    def _start_over(self, state: _State) -> None:
        """Take a state whose delta shares no memory with the one before."""
        self._buffer, self._buffer_ids = state.delta.vectors, state.delta.ids
        self._state = state

    def _apply(self, added: list[int], deleted: list[int], sequence: int) -> None:
        state = self._state
        # Segment ids increase from commit to commit, so what is new has a higher id than all that is known.
        # What a reading of the whole catalog has seen already comes here again, and is left out.
        known = max(_last(state.snapshot.rows.ids), _last(state.delta.ids))
        ids, vectors = self._catalog.video_features([i for i in added if i > known])
        gone = np.array(deleted, np.int64)
        self._state = _State(
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
        if needed > len(self._buffer_ids):
            capacity = max(needed, 2 * size, 64)
            buffer, buffer_ids = (
                np.empty((capacity, vectors.shape[1]), np.float32),
                np.empty(capacity, np.int64),
            )
            buffer[:size], buffer_ids[:size] = delta.vectors, delta.ids
            self._buffer, self._buffer_ids = buffer, buffer_ids
        self._buffer[size:needed], self._buffer_ids[size:needed] = vectors, ids
        return Vectors(
            self._buffer[:needed],
            self._buffer_ids[:needed],
            max(delta.max_norm, longest(vectors)),
            None if delta.alive is None else np.concatenate([delta.alive, np.ones(len(ids), bool)]),
            delta.num_deleted,
        )


def _first_state(snapshot: Snapshot) -> _State:
    dimension = snapshot.rows.vectors.shape[1]
    nothing = Vectors(np.empty((0, dimension), np.float32), np.empty(0, np.int64), 0.0)
    return _State(snapshot, nothing, snapshot.sequence, snapshot.token)


def _read_catalog(catalog: Catalog) -> Snapshot:
    """A snapshot of the whole catalog.

    The number of the last change is read first: what changes during the reading may be seen or not, and comes
    again when the log is followed from there.
    """
    sequence = catalog.sequence
    token = catalog.change_token(sequence) or ""
    blocks = list(catalog.iterate_video_features())
    num_vectors = sum(len(ids) for ids, _ in blocks)
    blocks.reverse()
    # Popped, so that each block's memory is free again as soon as it is copied.
    in_order = (blocks.pop() for _ in range(len(blocks)))
    return Snapshot.of(in_order, num_vectors, catalog.embedding_dim, sequence, token)


def _deleted_since(old: Vectors, now: Vectors) -> NDArray[np.int64]:
    """Ids that live in `old` and not in `now`, which has the same rows and perhaps more."""
    if now.alive is None:
        return np.empty(0, np.int64)
    gone = ~now.alive[: len(old.ids)]
    if old.alive is not None:
        gone &= old.alive
    return old.ids[gone]


def _last(ids: NDArray[np.int64]) -> int:
    return int(ids[-1]) if len(ids) else 0
