"""Snapshots for many segments: FAISS keeps the vectors compressed and visits a part of them only.

| kind     | FAISS index            | a vector of D = 512 | made for |
| -------- | ---------------------- | ------------------- | -------- |
| `ivf-sq` | IVF, 8-bit scalars     | 520 bytes           | what `auto` takes above EXACT_LIMIT segments |
| `ivf-pq` | IVF, 64 8-bit products | 72 bytes            | where memory is short |
| `hnsw`   | HNSW, 8-bit scalars    | 780 bytes           | quick searches, slow to make |

An approximate search asks FAISS for more than is wanted, and orders those by their exact products with the
vectors of the store: what it finds has the exact score; it may miss some.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import CoarseKind, Found, GpuCopy, Selection

_faiss: Any = faiss  # Its stubs describe the C++ signatures, not those that Python sees.

LISTS_FACTOR = 4
"""An IVF has this many times sqrt(N) lists (nlist), as FAISS advises up to a million vectors
(github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index)."""

TRAINING_VECTORS_A_LIST = 40
"""FAISS's k-means wants at least 39 for each list (faiss Clustering.h, min_points_per_centroid)."""

PROBED_FACTOR = 4.5
"""nprobe is this many times the square root of nlist: recall at 100,000 segments
equals that at a million, where a constant share would probe ever more (benchmarks/scaling.py measures it)."""

HNSW_LINKS = 32
"""Of each vector in the graph of an `hnsw`."""

VISITED_PER_STEP = HNSW_LINKS
"""Vectors that each step of a search through the graph visits, about. Where no more are selected than all of
its steps would visit, as with a filter that lets few through, those are scanned."""

FoundByOne = tuple[NDArray[np.float32], NDArray[np.int64]]
"""For one query, products float32 [k], descending, and ids int64 [k]."""

Fetch = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Ids to (ids that exist, ascending, and their vectors)."""


def num_lists(num_segments: int) -> int:
    """Lists of an IVF over `num_segments` vectors: at least one, and few enough to be trained."""
    wanted = int(LISTS_FACTOR * math.sqrt(num_segments))
    return max(1, min(wanted, num_segments // TRAINING_VECTORS_A_LIST))


@dataclass(frozen=True, eq=False)
class ApproximateSearch:
    """Searches of one filled index, `faiss.IndexIVF` or `faiss.IndexIDMap` of a `faiss.IndexHNSW`.

    ids: int64 [N], all of its ids, ascending. fetch: the exact vectors. gpu: a copy of an IVF on a GPU.
    """

    kind: CoarseKind
    index: Any
    ids: NDArray[np.int64]
    fetch: Fetch
    gpu: GpuCopy | None = None

    def search(self, queries: NDArray[np.float32], count: int, selection: Selection) -> Found:
        """About the `count` selected vectors with the highest products for each query float32 [T, D], with
        their exact products.

        count: at most `selection.num_selected`; as many come.
        """
        # 8-bit scalars nearly keep the order; each vector more is read from the store
        # (benchmarks/scaling.py).
        wanted = 4 * count if self.kind == "ivf-pq" else count + count // 4
        wanted = min(wanted + 64, selection.num_selected)
        products = np.empty((len(queries), count), np.float32)
        ids = np.empty((len(queries), count), np.int64)
        for row, query in enumerate(queries if count else ()):
            products[row], ids[row] = self._rescored(query, *self._nearest(query, wanted, selection), count)
        return products, ids

    def _rescored(
        self, query: NDArray[np.float32], products: NDArray[np.float32], ids: NDArray[np.int64], count: int
    ) -> FoundByOne:
        order = np.argsort(ids)
        ids, products = ids[order], products[order]
        exact_ids, vectors = self.fetch(ids)
        # What was deleted a moment ago keeps the product of its compressed vector: the page leaves it out.
        products[np.searchsorted(ids, exact_ids)] = vectors @ query
        best = np.lexsort((ids, -products))[:count]
        return products[best], ids[best]

    def _nearest(self, query: NDArray[np.float32], count: int, selection: Selection) -> FoundByOne:
        """About the `count` highest products of compressed vectors, and their ids."""
        # Where few are selected, more has to be visited to find as many.
        effort = selection.num_rows / selection.num_selected
        products, ids = self._search(query, count, selection, effort)
        if len(ids) < count:
            # A filter may leave a graph without a way to all that is selected.
            if self.kind == "hnsw":
                return self._scan(query, count, selection)
            return self._search(query, count, selection, math.inf)
        return products, ids

    def _search(
        self, query: NDArray[np.float32], count: int, selection: Selection, effort: float
    ) -> FoundByOne:
        if self.kind == "hnsw":
            beam = min(self.index.ntotal, max(256, math.ceil(effort * 2 * count)))
            if selection.num_selected <= VISITED_PER_STEP * beam:
                return self._scan(query, count, selection)
            parameters = _faiss.SearchParametersHNSW(sel=selection.selector(), efSearch=beam)
        else:
            num_all = self.index.nlist
            probed = min(num_all, math.ceil(min(effort, num_all) * PROBED_FACTOR * math.sqrt(num_all)))
            if self.gpu is not None:
                on_gpu = self.gpu.search(query[None], count, selection, num_probed=probed)
                if on_gpu is not None:
                    return _only_found(*on_gpu)
            parameters = _faiss.SearchParametersIVF(sel=selection.selector(), nprobe=probed)
        return _only_found(*self.index.search(query[None], count, params=parameters))

    def _scan(self, query: NDArray[np.float32], count: int, selection: Selection) -> FoundByOne:
        """As `_search`, past the graph: the product of every selected vector of an HNSW."""
        graph: Any = faiss.downcast_index(self.index.index)
        storage = faiss.downcast_index(graph.storage)
        selector = selection.selector()
        if selector is not None:
            selector = _faiss.IDSelectorTranslated(self.index.id_map, selector)
        parameters = _faiss.SearchParameters(sel=selector)
        products, rows = _only_found(*storage.search(query[None], count, params=parameters))
        return products, self.ids[rows]


def _only_found(products: NDArray[np.float32], ids: NDArray[np.int64]) -> FoundByOne:
    """The answer to one query, [1, k], without the padding behind what was found."""
    found = ids[0] >= 0
    return products[0][found], ids[0][found]


def ids_of(kind: CoarseKind, index: Any) -> NDArray[np.int64]:
    """The ids of an index that was read from a file, int64 [N], ascending.

    Raises ValueError where it is not an index of this kind or its ids do not fit its vectors.
    """
    # `index` itself is kept by the caller: what `downcast_index` gives does not own the index.
    if kind == "hnsw":
        is_right = isinstance(index, faiss.IndexIDMap) and isinstance(
            faiss.downcast_index(index.index), faiss.IndexHNSWSQ
        )
    else:
        is_right = isinstance(index, faiss.IndexIVFScalarQuantizer if kind == "ivf-sq" else faiss.IndexIVFPQ)
    if not is_right:
        raise ValueError("it is another kind of FAISS index")
    ids = faiss.vector_to_array(index.id_map) if kind == "hnsw" else _ids_of_lists(index)
    is_wrong = len(ids) != index.ntotal or len(np.unique(ids)) != len(ids) or (len(ids) and ids.min() < 1)
    if is_wrong or (kind == "hnsw" and np.any(np.diff(ids) < 0)):
        raise ValueError("its ids do not fit its vectors")
    return np.sort(ids)


def still_fits(kind: CoarseKind, index: Any, num_segments: int) -> bool:
    """Whether a trained index of this kind still serves `num_segments` segments: its lists, twice or half as
    many at most."""
    return kind == "hnsw" or bool(0.5 <= index.nlist / num_lists(num_segments) <= 2.0)


def empty_approximate_index(
    kind: CoarseKind, sample: NDArray[np.float32] | None, num_vectors: int, trained: Any = None
) -> Any:
    """A trained, empty index for `num_vectors` vectors.

    sample: float32 [S, D], vectors to learn the lists and the compression from, with FAISS's fixed seed; S is
    `num_training_vectors(kind, num_vectors)`. trained: instead, an index of this kind to copy
    what it has learned; it is not changed.
    """
    if trained is not None:
        index = faiss.clone_index(trained)
        index.reset()
    else:
        assert sample is not None
        index = _untrained(kind, sample.shape[1], num_lists(num_vectors))
        index.train(sample)
    return index


def num_training_vectors(kind: CoarseKind, num_vectors: int) -> int:
    """How many vectors an index of this kind over `num_vectors` vectors is trained with."""
    wanted = TRAINING_VECTORS_A_LIST * num_lists(num_vectors)
    if kind != "ivf-sq":
        wanted = max(wanted, 65_536)  # For the codebooks of 256 entries, and the ranges of the scalars.
    return min(num_vectors, wanted)


def _untrained(kind: CoarseKind, dimension: int, lists: int) -> Any:
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
