"""Exact coarse vectors in FAISS, which of them a search considers, and copies of an index on a GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import faiss
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_faiss: Any = faiss  # Its stubs describe the C++ signatures, not those that Python sees, and know no GPU.

logger = logging.getLogger(__name__)

CoarseKind = Literal["exact", "ivf-sq", "ivf-pq", "hnsw"]
"""How a snapshot keeps its vectors; all but `exact` are in `indexer.coarse.approximate`."""

KindChoice = CoarseKind | Literal["auto"]

EXACT_LIMIT = 50_000
"""Up to here `auto` searches exactly (benchmarks/scaling.py measures what each kind costs)."""

MIN_APPROXIMATE = 1_000

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Products float32 [T, k], descending, and ids int64 [T, k]; where fewer were found, -inf and -1 at the
end."""

ROWS_AT_ONCE = 8192
"""Vectors copied out of an index at a time: bounds the memory of the copy."""

MAX_GPU_NEIGHBOURS = 2048
"""Neighbours that a GPU index gives, and lists that it probes
(github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU)."""


def choose_kind(choice: KindChoice, num_segments: int, current: CoarseKind = "exact") -> CoarseKind:
    """The kind that a snapshot of `num_segments` segments should be of.

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


def empty_exact_index(embedding_dim: int) -> Any:
    """A `faiss.IndexIDMap2` over float32 vectors of D = `embedding_dim`, by inner product.

    Half precision would scan a third quicker, but a copy of a video would then be 1.00003 similar to it: an
    exact score is within float32 rounding of the model's own.
    """
    return faiss.IndexIDMap2(faiss.IndexFlatIP(embedding_dim))


def is_exact_index(index: Any) -> bool:
    """Whether an index that was read from a file is such a one, or an `IndexIDMap`, which serves as well."""
    return isinstance(index, faiss.IndexIDMap) and isinstance(
        faiss.downcast_index(index.index), faiss.IndexFlatIP
    )


def vector_blocks(index: Any) -> Iterator[NDArray[np.float32]]:
    """The vectors of an exact index in blocks of float32 [N, D], in the order in which they were added."""
    for first in range(0, index.ntotal, ROWS_AT_ONCE):
        yield index.index.reconstruct_n(first, min(ROWS_AT_ONCE, index.ntotal - first))


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows of an index a search considers.

    num_selected: of `num_rows`. bits: bool [highest id + 1], true for a selected id; None where all are.
    """

    num_selected: int
    num_rows: int
    bits: NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, selected_ids: NDArray[np.int64], ids: NDArray[np.int64]) -> Self:
        """Those of `ids`, ascending, that are among `selected_ids`, of which all are in `ids`."""
        if len(selected_ids) == len(ids):
            return cls(len(ids), len(ids))
        bits = np.zeros(int(ids[-1]) + 1, bool)
        bits[selected_ids] = True
        return cls(len(selected_ids), len(ids), bits)

    def selector(self) -> Any:
        """The `faiss.IDSelector`, None where every row is selected."""
        if self.bits is None:
            return None
        return _faiss.IDSelectorBitmap(np.packbits(self.bits, bitorder="little"))


def search_exact(
    index: Any, queries: NDArray[np.float32], count: int, selection: Selection, gpu: GpuCopy | None = None
) -> Found:
    """The `count` selected vectors with the highest products for each query float32 [T, D].

    count: at most `selection.num_selected`; as many come.
    """
    if count == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    if gpu is not None and (found := gpu.search(queries, count, selection)) is not None:
        return found
    parameters = None if selection.bits is None else _faiss.SearchParameters(sel=selection.selector())
    products, ids = index.search(queries, count, params=parameters)
    return products, ids


class GpuCopy:
    """A copy of a snapshot's index on a GPU, or, in tests, any index that searches as one there.

    FAISS has `exact`, `ivf-sq` and `ivf-pq` on GPUs, not `hnsw`. Its GPU indexes support no selectors.
    Deleted segments are few: that many more neighbours are asked for and these are dropped. Where that is
    too many, as for most filters, the processor searches.
    """

    def __init__(self, index: Any, ids: NDArray[np.int64] | None = None, resources: Any = None) -> None:
        """ids: of the rows, where `index` only numbers them. resources: kept while `index` is in use."""
        self._index = index
        self._ids = ids
        self._resources = resources
        self._lock = threading.Lock()  # GPU indexes are not for several threads.

    def search(
        self, queries: NDArray[np.float32], count: int, selection: Selection, *, num_probed: int | None = None
    ) -> Found | None:
        """As `search_exact`; None where this is more than a GPU index gives.

        num_probed: lists that an IVF probes; fewer than `count` may be found then.
        """
        num_asked = min(count + selection.num_rows - selection.num_selected, selection.num_rows)
        if num_asked > MAX_GPU_NEIGHBOURS or (num_probed or 0) > MAX_GPU_NEIGHBOURS:
            return None
        with self._lock:
            if num_probed is not None:
                self._index.nprobe = num_probed
            products, ids = self._index.search(queries, num_asked)
        found = ids >= 0
        if self._ids is not None:
            ids = np.where(found, self._ids[np.where(found, ids, 0)], -1)
        if selection.bits is not None:
            found &= selection.bits[np.where(found, ids, 0)]
        products, ids = np.where(found, products, -np.inf).astype(np.float32), np.where(found, ids, -1)
        order = np.argsort(-products, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(products, order, axis=1), np.take_along_axis(ids, order, axis=1)


def copy_to_gpu(
    index: Any, kind: CoarseKind, ids: NDArray[np.int64], device: torch.device | None
) -> GpuCopy | None:
    """A copy on that GPU; None where it is none, or FAISS, the machine or the kind cannot.

    ids: of all rows of `index`, ascending.
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
        if kind == "exact":  # The map from rows to ids stays here.
            flat = faiss.downcast_index(index.index)
            return GpuCopy(_faiss.index_cpu_to_gpu(resources, gpu, flat, options), ids, resources)
        return GpuCopy(_faiss.index_cpu_to_gpu(resources, gpu, index, options), resources=resources)
    except RuntimeError as error:
        logger.warning("the coarse index stays on the processor: %s", error)
        return None
