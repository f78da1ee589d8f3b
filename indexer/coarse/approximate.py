"""Snapshots for many segments: FAISS keeps the vectors compressed and looks at a part of them only.

| kind     | FAISS index            | a vector of D = 512 | made for |
| -------- | ---------------------- | ------------------- | -------- |
| `ivf-sq` | IVF, 8-bit scalars     | 520 bytes           | what `auto` takes above EXACT_LIMIT segments |
| `ivf-pq` | IVF, 64 8-bit products | 72 bytes            | where memory is short |
| `hnsw`   | HNSW, 8-bit scalars    | 780 bytes           | quick searches, slow to make |

An approximate search asks FAISS for more than is wanted, and orders those by their exact products, read from
the catalog: what it finds has the score that the exact search gives; it may miss some.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import (
    MIN_MARGIN,
    CoarseKind,
    KindChoice,
    MarkedIds,
    Vectors,
    canonical_products,
)

if TYPE_CHECKING:
    from indexer.coarse.exact import GpuCopy

_faiss: Any = faiss  # Its stubs describe the C++ signatures, not those that Python sees.

EXACT_LIMIT = 50_000
"""Up to here `auto` searches exactly (benchmarks/scaling.py measures what each kind costs)."""

MIN_APPROXIMATE = 1_000

LISTS_FACTOR = 4
"""An IVF has so many times sqrt(N) lists, as FAISS advises up to a million vectors
(github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index)."""

TRAINING_VECTORS_A_LIST = 40
"""FAISS's k-means wants at least 39 for each list (faiss Clustering.h, min_points_per_centroid)."""

PROBED_FACTOR = 4.5
"""So many times the square root of the number of lists are looked at: as much is found at 100,000 segments
as at a million, where a constant share would look at ever more (benchmarks/scaling.py measures it)."""

HNSW_LINKS = 32
"""Of each vector in the graph of an `hnsw`."""

LOOKED_AT_A_STEP = HNSW_LINKS
"""About so many others each step of a search through the graph looks at. Where no more are alive than all of
its steps would look at, as with a filter that lets few through, those are gone through one by one."""

Blocks = Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]
Fetch = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Ids to (ids that exist, ascending, and their vectors)."""


def choose_kind(choice: KindChoice, num_segments: int, current: CoarseKind = "exact") -> CoarseKind:
    """The kind that a snapshot of so many segments should be of.

    choice: a kind, or `auto`: exact up to EXACT_LIMIT; an approximate one that shrinks stays as it is down to
    half of that. Below MIN_APPROXIMATE segments there is nothing to learn from: always exact.
    """
    if num_segments < MIN_APPROXIMATE:
        return "exact"
    if choice != "auto":
        return choice
    if current == "exact":
        return "ivf-sq" if num_segments > EXACT_LIMIT else "exact"
    return current if num_segments > EXACT_LIMIT // 2 else "exact"


def num_lists(num_segments: int) -> int:
    """Lists of an IVF over so many vectors: at least one, and few enough to be trained."""
    wanted = int(LISTS_FACTOR * math.sqrt(num_segments))
    return max(1, min(wanted, num_segments // TRAINING_VECTORS_A_LIST))


@dataclass(frozen=True, eq=False)
class ApproximateSnapshot:
    """A filled FAISS index whose ids are segment ids, as the catalog had them after the change `sequence`.

    index: `faiss.IndexIVF` or `faiss.IndexIDMap` of a `faiss.IndexHNSW`. rows: the ids in it. gpu: a copy of
    an IVF on a GPU.
    """

    kind: CoarseKind
    index: Any
    rows: MarkedIds
    sequence: int
    token: str
    gpu: GpuCopy | None = None
    _selector: Any = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        kind: CoarseKind,
        blocks: Blocks,
        sample: NDArray[np.float32] | None,
        num_vectors: int,
        sequence: int,
        token: str,
        trained: Any = None,
    ) -> Self:
        """A snapshot of blocks of (ids, vectors), ids ascending.

        sample: float32 [S, D], vectors to learn the lists and the compression from, with FAISS's fixed seed;
        S is `num_training_vectors(kind, num_vectors)`. trained: in place of it, an index of this kind to take
        what it has learnt from; it is not changed.
        """
        if trained is not None:
            index = faiss.clone_index(trained)
            index.reset()
        else:
            assert sample is not None
            index = _empty(kind, sample.shape[1], num_lists(num_vectors))
            index.train(sample)
        ids = [np.empty(0, np.int64)]
        for some_ids, vectors in blocks:
            index.add_with_ids(vectors, some_ids)
            ids.append(some_ids)
        return cls(kind, index, MarkedIds(np.concatenate(ids)), sequence, token)

    @classmethod
    def around(cls, kind: CoarseKind, index: Any, sequence: int, token: str) -> Self:
        """A snapshot of a filled index that was read from a file. Raises ValueError where it is none such."""
        # `index` itself is kept: what `downcast_index` gives does not keep the index alive.
        if kind == "hnsw":
            is_right = isinstance(index, faiss.IndexIDMap) and isinstance(
                faiss.downcast_index(index.index), faiss.IndexHNSWSQ
            )
        else:
            is_right = isinstance(
                index, faiss.IndexIVFScalarQuantizer if kind == "ivf-sq" else faiss.IndexIVFPQ
            )
        if not is_right:
            raise ValueError("it is another kind of FAISS index")
        ids = faiss.vector_to_array(index.id_map) if kind == "hnsw" else _ids_of_lists(index)
        is_wrong = len(ids) != index.ntotal or len(np.unique(ids)) != len(ids) or (len(ids) and ids.min() < 1)
        if is_wrong or (kind == "hnsw" and np.any(np.diff(ids) < 0)):
            raise ValueError("its ids do not fit its vectors")
        return cls(kind, index, MarkedIds(np.sort(ids)), sequence, token)

    def without(self, deleted_ids: NDArray[np.int64]) -> Self:
        """The same, with those of `deleted_ids` that are here marked."""
        rows = self.rows.without(deleted_ids)
        return self if rows is self.rows else self._with(rows)

    def only(self, ids: NDArray[np.int64]) -> Self:
        """The same, with all but those of `ids` marked as deleted. ids: ascending."""
        return self._with(self.rows.only(ids))

    def _with(self, rows: MarkedIds) -> Self:
        bits = np.zeros(int(rows.ids[-1]) + 1 if len(rows.ids) else 1, bool)
        bits[rows.ids if rows.alive is None else rows.ids[rows.alive]] = True
        return replace(
            self, rows=rows, _selector=_faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
        )

    def nearest(
        self, query: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """About the `count` highest products, descending, and their ids. Fewer only where no more are alive.

        Products are those of the compressed vectors.
        """
        count = min(count, self.rows.num_alive)
        if count == 0:
            return np.empty(0, np.float32), np.empty(0, np.int64)
        # Where few are alive, more has to be looked at to find as many.
        effort = len(self.rows.ids) / self.rows.num_alive
        products, ids = self._search(query, count, effort)
        if len(ids) < count:
            # A filter may leave a graph without a way to all that is alive.
            is_graph = self.kind == "hnsw"
            products, ids = self._scan(query, count) if is_graph else self._search(query, count, math.inf)
        return products, ids

    def _search(
        self, query: NDArray[np.float32], count: int, effort: float
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if self.kind == "hnsw":
            beam = min(self.index.ntotal, max(256, math.ceil(effort * 2 * count)))
            if self.rows.num_alive <= LOOKED_AT_A_STEP * beam:
                return self._scan(query, count)
            parameters = _faiss.SearchParametersHNSW(sel=self._selector, efSearch=beam)
        else:
            num_all = self.index.nlist
            probed = min(num_all, math.ceil(min(effort, num_all) * PROBED_FACTOR * math.sqrt(num_all)))
            if self.gpu is not None:
                found_there = self.gpu.search(query, count, self.rows, num_probed=probed)
                if found_there is not None:
                    return found_there[0][:count], found_there[1][:count]
            parameters = _faiss.SearchParametersIVF(sel=self._selector, nprobe=probed)
        products, ids = self.index.search(query[None], count, params=parameters)
        found = ids[0] >= 0
        return products[0][found], ids[0][found]

    def _scan(self, query: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `_search`, past the graph: the product of every living vector of an HNSW."""
        graph: Any = faiss.downcast_index(self.index.index)
        storage = faiss.downcast_index(graph.storage)
        alive = None
        if self._selector is not None:
            alive = _faiss.IDSelectorTranslated(self.index.id_map, self._selector)
        products, places = storage.search(query[None], count, params=_faiss.SearchParameters(sel=alive))
        found = places[0] >= 0
        return products[0][found], self.rows.ids[places[0][found]]


def num_training_vectors(kind: CoarseKind, num_vectors: int) -> int:
    """How many vectors an index of this kind over so many is trained with."""
    wanted = TRAINING_VECTORS_A_LIST * num_lists(num_vectors)
    if kind != "ivf-sq":
        wanted = max(wanted, 65_536)  # For the codebooks of 256 entries, and the ranges of the scalars.
    return min(num_vectors, wanted)


def search_approximately(
    snapshot: ApproximateSnapshot, delta: Vectors, query: NDArray[np.float32], count: int, fetch: Fetch
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """About the best `count` of both: scores float32 [count], descending, equal ones by ascending id, and ids
    int64.

    `count` is at most the number of living vectors, and as many come. fetch: the exact vectors.
    """
    # 8-bit scalars nearly keep the order; each vector more is read from the catalog (benchmarks/scaling.py).
    wanted = 4 * count if snapshot.kind == "ivf-pq" else count + count // 4
    products, ids = snapshot.nearest(query, wanted + 64)
    exact_ids, vectors = fetch(np.sort(ids))
    exact = canonical_products(vectors, np.arange(len(exact_ids)), query)
    # What was deleted a moment ago keeps the product of its compressed vector: the page leaves it out.
    order = np.argsort(ids)
    ids, products = ids[order], products[order]
    products[np.searchsorted(ids, exact_ids)] = exact
    later = _best_places(delta, query, count + MIN_MARGIN)
    ids = np.concatenate([ids, delta.ids[later]])
    products = np.concatenate([products, canonical_products(delta.vectors, later, query)])
    best = np.lexsort((ids, -products))[:count]
    return products[best], ids[best]


def _best_places(delta: Vectors, query: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Rows of the `count` living vectors with the highest products, up to rounding, in any order."""
    products = delta.products(query)
    places = np.flatnonzero(products > -np.inf)
    if len(places) > count:
        places = places[np.argpartition(-products[places], count)[:count]]
    return places


def _empty(kind: CoarseKind, dimension: int, lists: int) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "ivf-sq":
        return faiss.index_factory(dimension, f"IVF{lists},SQ8", metric)
    if kind == "ivf-pq":
        num_products = next(n for n in (64, 32, 16, 8, 4, 2, 1) if dimension % n == 0 and dimension >= 4 * n)
        # "np": no polysemous training, which takes minutes and serves another way of searching.
        index: Any = faiss.index_factory(dimension, f"IVF{lists},PQ{num_products}x8np", metric)
        # With fewer vectors the codebooks are poorer, which the exact scores make up for: no warning
        # on the standard output.
        index.pq.cp.min_points_per_centroid = 1
        return index
    if kind == "hnsw":
        return faiss.index_factory(dimension, f"IDMap,HNSW{HNSW_LINKS}_SQ8", metric)
    raise ValueError(f"{kind} is not approximate")


def _ids_of_lists(index: Any) -> NDArray[np.int64]:
    lists = index.invlists
    parts = [np.empty(0, np.int64)]
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            parts.append(faiss.rev_swig_ptr(lists.get_ids(number), size).copy())
    return np.concatenate(parts)
