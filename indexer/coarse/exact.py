"""What an exact coarse search works on: sets of vectors that are never changed, only replaced.

A copy of a coarse snapshot's FAISS index on a GPU, for the searches that a GPU can do.

FAISS has `exact`, `ivf-sq` and `ivf-pq` on GPUs, not `hnsw`. Its GPU indexes know no selectors and give at
most 2,048 neighbours (github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU). Deleted segments are few: so
many more are asked for and these are dropped. Where that is too many, as for most filters, the processor
searches.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import faiss
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_faiss: Any = faiss  # Its stubs describe the C++ signatures, not those that Python sees.

CoarseKind = Literal["exact", "ivf-sq", "ivf-pq", "hnsw"]
"""How a snapshot keeps its vectors; all but `exact` are in `indexer.coarse.approximate`."""

KindChoice = CoarseKind | Literal["auto"]

MIN_MARGIN = 32
"""Neighbours asked of FAISS beyond the wanted ones: enough to tell, nearly always, that none was missed."""

ROWS_AT_ONCE = 8192
"""Of vectors that are worked on one stretch after the other: bounds what is held beside them."""


@dataclass(frozen=True, eq=False)
class MarkedIds:
    """N segment ids, some of them marked as deleted.

    ids: int64 [N], ascending. alive: bool [N], None where all are.
    """

    ids: NDArray[np.int64]
    alive: NDArray[np.bool_] | None = field(default=None, kw_only=True)
    num_deleted: int = field(default=0, kw_only=True)

    @property
    def num_alive(self) -> int:
        """Ids that a search can find."""
        return len(self.ids) - self.num_deleted

    def without(self, deleted_ids: NDArray[np.int64]) -> Self:
        """The same, with those of `deleted_ids` that are here marked."""
        places = self._places(deleted_ids)
        if not len(places):
            return self
        alive = np.ones(len(self.ids), bool) if self.alive is None else self.alive.copy()
        alive[places] = False
        return replace(self, alive=alive, num_deleted=len(alive) - int(np.count_nonzero(alive)))

    def only(self, ids: NDArray[np.int64]) -> Self:
        """The same, with all but those of `ids` marked as deleted. ids: ascending."""
        alive = np.zeros(len(self.ids), bool)
        alive[self._places(ids)] = True
        if self.alive is not None:
            alive &= self.alive
        return replace(self, alive=alive, num_deleted=len(alive) - int(np.count_nonzero(alive)))

    def alive_places(self, first: int = 0) -> NDArray[np.int64]:
        """Rows from `first` on that are not deleted, ascending."""
        if self.alive is None:
            return np.arange(first, len(self.ids))
        return first + np.flatnonzero(self.alive[first:])

    def _places(self, ids: NDArray[np.int64]) -> NDArray[np.intp]:
        """Rows of those of `ids` that are here."""
        places = np.searchsorted(self.ids, ids)
        inside = places < len(self.ids)
        found: NDArray[np.intp] = places[inside][self.ids[places[inside]] == ids[inside]]
        return found


@dataclass(frozen=True, eq=False)
class Vectors(MarkedIds):
    """N vectors under ids.

    vectors: float32 [N, D]. max_norm: of the longest vector. owner: what must live as long as the memory of
    `vectors`.
    """

    vectors: NDArray[np.float32]
    max_norm: float
    owner: object = None

    def living(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Ids and vectors that are not deleted, in blocks."""
        for first in range(0, len(self.ids), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            if self.alive is None:
                yield self.ids[rows], self.vectors[rows]
            else:
                yield self.ids[rows][self.alive[rows]], self.vectors[rows][self.alive[rows]]

    def products(self, query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products with `query`, float32 [N], up to rounding; -inf for deleted vectors."""
        products: NDArray[np.float32] = self.vectors @ query
        if self.alive is not None:
            products[~self.alive] = -np.inf
        return products


@dataclass(frozen=True, eq=False)
class ExactSnapshot:
    """Vectors in a FAISS index, as the catalog had them after the change `sequence` (with that `token`).

    index: `faiss.IndexIDMap` around `flat`, a `faiss.IndexFlatIP`; one file can hold it. Searches ask `flat`,
    or its copy on a GPU.
    """

    index: Any
    flat: Any
    rows: Vectors
    sequence: int
    token: str
    gpu: GpuCopy | None = None
    kind: ClassVar[CoarseKind] = "exact"
    _parameters: Any = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
        num_vectors: int,
        embedding_dim: int,
        sequence: int,
        token: str,
    ) -> Self:
        """A snapshot of blocks of (ids, vectors), ids ascending, `num_vectors` in all."""
        all_ids = np.empty(num_vectors, np.int64)
        index = faiss.IndexIDMap(faiss.IndexFlatIP(embedding_dim))
        if num_vectors:
            # FAISS makes room for zeros that cost no memory here, then the rows are written into its storage:
            # adding block by block would leave up to as much unused room again.
            index.add_with_ids(np.zeros((num_vectors, embedding_dim), np.float32), all_ids)
        storage = _storage(faiss.downcast_index(index.index))
        start = 0
        for ids, vectors in blocks:
            all_ids[start : start + len(ids)], storage[start : start + len(ids)] = ids, vectors
            start += len(ids)
        faiss.copy_array_to_vector(all_ids, index.id_map)
        return cls.around(index, sequence, token)

    @classmethod
    def around(cls, index: Any, sequence: int, token: str) -> Self:
        """A snapshot of a filled `faiss.IndexIDMap` of a `faiss.IndexFlatIP`, ids ascending."""
        flat = faiss.downcast_index(index.index)
        storage = _storage(flat)
        rows = Vectors(faiss.vector_to_array(index.id_map), storage, longest(storage), owner=index)
        return cls(index, flat, rows, sequence, token)

    def without(self, deleted_ids: NDArray[np.int64]) -> Self:
        """The same, with those of `deleted_ids` that are here marked."""
        rows = self.rows.without(deleted_ids)
        return self if rows is self.rows else self._with(rows)

    def only(self, ids: NDArray[np.int64]) -> Self:
        """The same, with all but those of `ids` marked as deleted. ids: ascending."""
        return self._with(self.rows.only(ids))

    def _with(self, rows: Vectors) -> Self:
        if rows.alive is None:
            return self
        selector = _faiss.IDSelectorBitmap(np.packbits(rows.alive, bitorder="little"))
        return replace(self, rows=rows, _parameters=_faiss.SearchParameters(sel=selector))

    def nearest(
        self, query: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The `count` highest products, descending, and their places; `count` is at most `rows.num_alive`."""
        if count == 0:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        found = None if self.gpu is None else self.gpu.search(query, count, self.rows)
        if found is not None:
            return found[0][:count], found[1][:count]
        products, places = self.flat.search(query[None], count, params=self._parameters)
        return products[0], places[0]


def longest(vectors: NDArray[np.float32]) -> float:
    """Length of the longest row of float32 [N, D]; 0 where there is none."""
    squares = [
        float(np.einsum("nd,nd->n", rows, rows).max())
        for rows in (vectors[first : first + ROWS_AT_ONCE] for first in range(0, len(vectors), ROWS_AT_ONCE))
    ]
    return float(np.sqrt(max(squares, default=0.0)))


def search_exactly(
    snapshot: ExactSnapshot, delta: Vectors, query: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best `count` of both: scores float32 [count], descending, equal ones by ascending id, and ids
    int64.

    `count` is at most the number of living vectors. FAISS and BLAS add in orders that depend on where a
    vector is stored, so equal vectors get products that differ in the last bits. They only choose who takes
    part; the order comes from products computed anew, each in the same way. Of the vectors within rounding of
    the last place none is
    left out: where FAISS may have kept one back, all products are computed.
    """
    # Bound on the rounding of a float32 inner product (Higham, Accuracy and Stability, section 3.1).
    rounding = (
        len(query) * 2.0**-24 * float(np.linalg.norm(query)) * max(snapshot.rows.max_norm, delta.max_norm)
    )
    later = delta.products(query)
    wanted = min(count + max(MIN_MARGIN, count // 8), snapshot.rows.num_alive)
    products, places = snapshot.nearest(query, wanted)
    threshold = _threshold(products, later, count) - 2 * rounding
    if wanted < snapshot.rows.num_alive and products[-1] >= threshold:
        products = snapshot.rows.products(query)
        places = np.arange(len(products))
        threshold = _threshold(products, later, count) - 2 * rounding
    places = places[products >= threshold]
    later_places = np.flatnonzero(later >= threshold)
    ids = np.concatenate([snapshot.rows.ids[places], delta.ids[later_places]])
    scores = np.concatenate(
        [
            canonical_products(snapshot.rows.vectors, places, query),
            canonical_products(delta.vectors, later_places, query),
        ]
    )
    order = np.lexsort((ids, -scores))[:count]
    return scores[order], ids[order]


def _threshold(products: NDArray[np.float32], later: NDArray[np.float32], count: int) -> float:
    """The `count`-th highest of both."""
    both = np.concatenate([products, later])
    return float(np.partition(both, len(both) - count)[len(both) - count])


def canonical_products(
    vectors: NDArray[np.float32], places: NDArray[np.int64], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """float32 inner products of the rows at `places`, the same for the same vector wherever it is."""
    products = np.empty(len(places), np.float32)
    wide_query = query.astype(np.float64)
    for first in range(0, len(places), ROWS_AT_ONCE):
        rows = vectors[places[first : first + ROWS_AT_ONCE]].astype(np.float64)
        rows *= wide_query
        products[first : first + ROWS_AT_ONCE] = rows.sum(axis=1)
    return products


def _storage(index: Any) -> NDArray[np.float32]:
    """float32 [N, D]: the memory of a flat index, valid as long as the index lives and nothing is added."""
    if index.ntotal == 0:
        return np.empty((0, index.d), np.float32)
    flat: NDArray[np.float32] = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d)
    return flat.reshape(index.ntotal, index.d)


# Its stubs do not know the GPU.

logger = logging.getLogger(__name__)

MAX_NEIGHBOURS = 2048
"""That a GPU index gives, and lists that it looks at."""


class GpuCopy:
    """A FAISS index on a GPU, or, in tests, any that searches as one there."""

    def __init__(self, index: Any, resources: Any = None) -> None:
        """resources: what must live as long as the index."""
        self._index = index
        self._resources = resources
        self._lock = threading.Lock()  # GPU indexes are not for several threads.

    def search(
        self, query: NDArray[np.float32], count: int, rows: MarkedIds, *, num_probed: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """The highest products, descending, and what the index calls their vectors; None where this is not
        for a GPU.

        count: how many living ones are wanted; more may come, and where lists are probed, fewer. rows: which
        live; num_probed: lists to look at, and then the index calls its vectors by their ids, else by their
        place in `rows`.
        """
        num_asked = min(count + rows.num_deleted, len(rows.ids))
        if num_asked > MAX_NEIGHBOURS or (num_probed or 0) > MAX_NEIGHBOURS:
            return None
        with self._lock:
            if num_probed is not None:
                self._index.nprobe = num_probed
            found = self._index.search(query[None], num_asked)
        products, names = found[0][0], found[1][0]
        keep = names >= 0
        if rows.alive is not None:
            places = names if num_probed is None else np.searchsorted(rows.ids, names)
            keep &= rows.alive[np.where(keep, places, 0)]
        return products[keep], names[keep]


def copy_to_gpu(index: Any, kind: CoarseKind, device: torch.device | None) -> GpuCopy | None:
    """A copy on that GPU; None where it is none, or FAISS, the machine or the kind cannot.

    index: a flat one for `exact`.
    """
    if device is None or device.type != "cuda" or kind == "hnsw" or index.ntotal == 0:
        return None
    gpu = device.index or 0
    if not hasattr(_faiss, "StandardGpuResources") or _faiss.get_num_gpus() <= gpu:
        logger.info("the coarse index stays on the processor: this FAISS has no GPU %d", gpu)
        return None
    try:
        resources, options = _faiss.StandardGpuResources(), _faiss.GpuClonerOptions()
        # 64 tables of 256 float32 are more than the shared memory of a multiprocessor.
        options.useFloat16 = kind == "ivf-pq"
        return GpuCopy(_faiss.index_cpu_to_gpu(resources, gpu, index, options), resources)
    except RuntimeError as error:
        logger.warning("the coarse index stays on the processor: %s", error)
        return None
