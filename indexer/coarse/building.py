"""From the catalog to a snapshot of the coarse index."""

from __future__ import annotations

import os

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.coarse.approximate import ApproximateSnapshot, num_lists, num_training_vectors
from indexer.coarse.exact import CoarseKind, ExactSnapshot
from indexer.coarse.snapshots import Snapshot
from indexer.errors import IndexDamagedError
from indexer.store.sqlite.catalog import Catalog

_SAMPLE_SEED = 0


def make_snapshot(catalog: Catalog, kind: CoarseKind, former: ApproximateSnapshot | None = None) -> Snapshot:
    """A snapshot of the whole catalog.

    former: what it replaces; of the same kind and about the same size, it is not learnt anew how to compress.
    The number of the last change is read first: what changes during the reading may be seen or not, and comes
    again when the log is followed from there. Raises IndexDamagedError.
    """
    sequence = catalog.sequence
    token = catalog.change_token(sequence) or ""
    snapshot: Snapshot
    if kind == "exact":
        snapshot = _exact(catalog, sequence, token)
    else:
        snapshot = _approximate(catalog, kind, sequence, token, former)
    num_read = len(snapshot.rows.ids)
    if num_read != catalog.num_segments and catalog.sequence == sequence:
        raise IndexDamagedError(
            f"the catalog {catalog.path} is damaged: of its {catalog.num_segments} segments {num_read} are"
            " found; run verify to learn more"
        )
    return snapshot


def _approximate(
    catalog: Catalog, kind: CoarseKind, sequence: int, token: str, former: ApproximateSnapshot | None
) -> ApproximateSnapshot:
    num_segments = catalog.num_segments
    trained = former if former is not None and _still_fits(former, kind, num_segments) else None
    sample = None if trained else _sample(catalog, num_training_vectors(kind, num_segments))
    return ApproximateSnapshot.of(
        kind,
        catalog.iterate_video_features(),
        sample,
        num_segments,
        sequence,
        token,
        trained=None if trained is None else trained.index,
    )


def leave_room_for_searches() -> None:
    """Let FAISS use half of the processors for what this thread asks of it: searches want the others."""
    faiss.omp_set_num_threads(max(1, (os.cpu_count() or 1) // 2))


def _exact(catalog: Catalog, sequence: int, token: str) -> ExactSnapshot:
    blocks = list(catalog.iterate_video_features())
    num_vectors = sum(len(ids) for ids, _ in blocks)
    blocks.reverse()
    # Popped, so that each block's memory is free again as soon as it is copied.
    in_order = (blocks.pop() for _ in range(len(blocks)))
    return ExactSnapshot.of(in_order, num_vectors, catalog.embedding_dim, sequence, token)


def _still_fits(former: ApproximateSnapshot, kind: CoarseKind, num_segments: int) -> bool:
    """Whether lists learnt for what there was serve what there is: twice or half as many at most."""
    if former.kind != kind:
        return False
    return kind == "hnsw" or 0.5 <= former.index.nlist / num_lists(num_segments) <= 2.0


def _sample(catalog: Catalog, size: int) -> NDArray[np.float32]:
    """Video features of about `size` segments, float32 [S, D], the same ones for the same catalog."""
    with catalog.connections.reading() as connection:
        ids = np.fromiter((i for (i,) in connection.execute("SELECT id FROM segments ORDER BY id")), np.int64)
    chosen = np.random.default_rng(_SAMPLE_SEED).choice(ids, min(size, len(ids)), replace=False)
    _, vectors = catalog.video_features(np.sort(chosen))
    return vectors
