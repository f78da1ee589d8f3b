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
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.coarse.exact import CoarseKind, Found, GpuCopy, SegmentSet, Selection
from model.kernels.threads import allowed_threads

_faiss: Any = faiss  # Its stubs describe the C++ signatures, not those that Python sees.

LISTS_FACTOR = 4
"""An IVF has this many times sqrt(N) lists (nlist), as FAISS advises up to a million vectors
(github.com/facebookresearch/faiss/wiki/Guidelines-to-choose-an-index)."""

TRAINING_VECTORS_A_LIST = 40
"""FAISS's k-means wants at least 39 for each list (faiss Clustering.h, min_points_per_centroid)."""

PROBED_FACTOR = 12
"""nprobe is this many times the cube root of nlist: the nearest 200 of 10,000 segments lie in those lists but
for 3 in a thousand, of 100,000 but for 6 and of a million but for 7 (benchmarks/recall/coarse.py). With
the square root as many would be found of a million, for half as much work again, as of 10,000."""

FILTERED_FACTOR = 1.25
"""A search with a filter visits lists until they hold this many times the selected vectors that it wants, see
`ApproximateSearch._num_probed`: 1.0 would lose more than one in a hundred where a filter has to do with the
query, 1.5 finds few more (benchmarks/recall/coarse.py)."""

VECTORS_A_THREAD = 4_000
"""A search that is alone gets a further thread for as many vectors more in the lists that it visits: with two
they take less time from 100,000 segments on (benchmarks/recall/coarse.py)."""

ITERATIONS = 10
"""Of k-means. FAISS's 25 take twice as long and find no more afterwards (benchmarks/recall/coarse.py)."""

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


class SelectedPerList:
    """How many of a filter's segments lie in each list of an IVF. Safe to use from several threads.

    Counted when a filter is first used, and kept as long as its matches are.
    """

    def __init__(self, index: Any) -> None:
        """index: `faiss.IndexIVF`, filled."""
        self._index = index
        self._kept: WeakKeyDictionary[SegmentSet, NDArray[np.int64]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def counts(self, segments: SegmentSet) -> NDArray[np.int64]:
        """int64 [nlist]. What was deleted since the index was filled counts; what came later does not."""
        with self._lock:
            found = self._kept.get(segments)
            if found is None:
                numbers = self._numbers
                inside = segments.ids[: np.searchsorted(segments.ids, len(numbers))]
                # Number -1, of ids that are in no list, comes first.
                found = np.bincount(numbers[inside] + 1, minlength=self._index.nlist + 1)[1:]
                self._kept[segments] = found
            return found

    @cached_property
    def _numbers(self) -> NDArray[np.int32]:
        """The list that each id is in, int32 [highest id + 1]; -1 for none."""
        lists = list(_ids_by_list(self._index))
        numbers = np.full(max((int(ids.max()) for ids in lists if len(ids)), default=0) + 1, -1, np.int32)
        for number, ids in enumerate(lists):
            numbers[ids] = number
        return numbers


def num_probed(num_lists: int) -> int:
    """Lists that a search without a filter visits."""
    return min(num_lists, math.ceil(PROBED_FACTOR * math.cbrt(num_lists)))


def num_compared(kind: CoarseKind, count: int) -> int:
    """How many of the highest products of compressed vectors hold the `count` highest exact ones.

    8-bit scalars nearly keep the order: of 10, 200 or 5,000 this loses none (benchmarks/recall/coarse.py).
    """
    return 4 * count + 64 if kind == "ivf-pq" else count + count // 8 + 32


@dataclass(frozen=True, eq=False)
class ApproximateSearch:
    """Searches of one filled index, `faiss.IndexIVF` or `faiss.IndexIDMap` of a `faiss.IndexHNSW`.

    ids: int64 [N], all of its ids, ascending. fetch: the exact vectors. per_list: of an IVF. gpu: a copy of
    it on a GPU.
    """

    kind: CoarseKind
    index: Any
    ids: NDArray[np.int64]
    fetch: Fetch
    per_list: SelectedPerList
    gpu: GpuCopy | None = None

    def search(
        self, queries: NDArray[np.float32], count: int, selection: Selection, *, exact: bool = True
    ) -> Found:
        """About the `count` selected vectors with the highest products for each query float32 [T, D].

        count: at most `selection.num_selected`; as many come. exact: whether products are, for which more
        vectors are compared; else they are those of compressed vectors.
        """
        wanted = min(num_compared(self.kind, count), selection.num_selected) if exact else count
        products = np.empty((len(queries), count), np.float32)
        ids = np.empty((len(queries), count), np.int64)
        for row, query in enumerate(queries if count else ()):
            found = self._nearest(query, wanted, selection)
            products[row], ids[row] = self._rescored(query, *found, count) if exact else found
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
            probed = self.index.nlist if effort == math.inf else self._num_probed(query, selection)
            if self.gpu is not None:
                on_gpu = self.gpu.search(query[None], count, selection, num_probed=probed)
                if on_gpu is not None:
                    return _only_found(*on_gpu)
            return self._visit(query, count, selection, probed)
        return _only_found(*self.index.search(query[None], count, params=parameters))

    def _visit(
        self, query: NDArray[np.float32], count: int, selection: Selection, num_probed: int
    ) -> FoundByOne:
        """As `_search`, in so many lists of an IVF."""
        parameters = _faiss.SearchParametersIVF(sel=selection.selector(), nprobe=num_probed)
        self.index.parallel_mode = 1  # One query's lists are divided; FAISS's files do not keep it.
        num_visited = num_probed * self.index.ntotal // self.index.nlist
        most = min(faiss.omp_get_max_threads(), 1 + num_visited // VECTORS_A_THREAD)
        num_threads = allowed_threads(most)
        if num_threads > 1:
            with _faiss_threads(num_threads):
                products, ids = self.index.search(query[None], count + 1, params=parameters)
            # Which of two equal products is the last one depends on the threads.
            if products[0, count] < products[0, count - 1] or ids[0, count] < 0:
                return _only_found(products[:, :count], ids[:, :count])
        with _faiss_threads(1):
            return _only_found(*self.index.search(query[None], count, params=parameters))

    def _num_probed(self, query: NDArray[np.float32], selection: Selection) -> int:
        """Lists to visit for one query: more where a filter leaves few vectors in the nearest ones.

        A filter may have much to do with the query, as that for one camera: its segments can lie anywhere.
        Lists are visited until they hold the share of the selected vectors that an unfiltered search compares
        of all, times the square root of `num_rows / num_selected`: the neighbours of a sparser set are
        further away, while the number of compared vectors still falls.
        """
        index, least = self.index, num_probed(self.index.nlist)
        if selection.allowed is None:
            return least
        counts = self.per_list.counts(selection.allowed)
        wanted = (
            FILTERED_FACTOR * least / index.nlist * math.sqrt(selection.num_selected * selection.num_rows)
        )
        for num_ordered in (min(4 * least, index.nlist), index.nlist):
            _, lists = index.quantizer.search(query[None], num_ordered)
            seen = np.cumsum(counts[lists[0]])
            if seen[-1] >= wanted:
                return max(least, int(np.searchsorted(seen, wanted)) + 1)
        return int(index.nlist)

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


@contextmanager
def _faiss_threads(num_threads: int) -> Iterator[None]:
    """What this thread has FAISS do meanwhile takes so many."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


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
    ids = faiss.vector_to_array(index.id_map) if kind == "hnsw" else np.concatenate(list(_ids_by_list(index)))
    ascending = np.sort(ids)
    is_wrong = len(ids) != index.ntotal or np.any(np.diff(ascending, prepend=0) < 1)  # From 1, each once.
    if is_wrong or (kind == "hnsw" and np.any(ids != ascending)):
        raise ValueError("its ids do not fit its vectors")
    return ascending


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
        if kind != "hnsw":
            index.cp.niter = ITERATIONS
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


def _ids_by_list(index: Any) -> Iterator[NDArray[np.int64]]:
    """The ids in each list of an IVF."""
    lists = index.invlists
    for number in range(index.nlist):
        size = lists.list_size(number)
        yield faiss.rev_swig_ptr(lists.get_ids(number), size).copy() if size else np.empty(0, np.int64)
