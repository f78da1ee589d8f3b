"""Exact coarse vectors in FAISS, which of them a search considers, and copies of an index on a GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
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
class SegmentSet:
    """Segments as a list and as a bitmap, which is made when it is first asked for and then kept.

    ids: int64 [N], ascending, at least 0. Neither may be written to.
    """

    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def bitmap(self) -> NDArray[np.uint8]:
        """uint8 [highest id // 8 + 1]: the bit `id % 8` of the byte `id // 8`, as FAISS takes it."""
        bits = np.zeros(int(self.ids[-1]) + 1 if len(self.ids) else 0, bool)
        bits[self.ids] = True
        return np.packbits(bits, bitorder="little")

    def holds(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some ids, at least 0, are in it."""
        return in_bitmap(self.bitmap, ids)


def in_bitmap(bitmap: NDArray[np.uint8], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of some ids, at least 0, have their bit set."""
    is_inside = ids < 8 * len(bitmap)
    places = np.where(is_inside, ids, 0)
    if not is_inside.any():
        return is_inside
    found: NDArray[np.bool_] = (bitmap[places >> 3] >> (places & 7).astype(np.uint8)) & 1 != 0
    return found & is_inside


@dataclass(frozen=True, eq=False)
class Selection:
    """Which rows of an index a search considers.

    num_selected: of `num_rows`. bitmap: of the selected ids, as in `SegmentSet`; None where all rows are.
    allowed: what a filter lets through, among other segments too; None without a filter.
    """

    num_selected: int
    num_rows: int
    bitmap: NDArray[np.uint8] | None = None
    allowed: SegmentSet | None = None

    @classmethod
    def of(cls, rows: SegmentSet, deleted: SegmentSet | None = None) -> Self:
        """The rows of an index less those of its ids in `deleted`."""
        if deleted is None or not len(deleted):
            return cls(len(rows), len(rows))
        bitmap = rows.bitmap.copy()
        bitmap[: len(deleted.bitmap)] &= ~deleted.bitmap
        return cls(len(rows) - len(deleted), len(rows), bitmap)

    def among(self, rows: SegmentSet, allowed: SegmentSet) -> Self:
        """The selected ones of `rows`, which this selection is of, that are also in `allowed`.

        Bytes of bitmaps are combined, 125 kB for a million segments: nothing is kept that a change of the
        index could make wrong.
        """
        ours = rows.bitmap if self.bitmap is None else self.bitmap
        num_bytes = min(len(ours), len(allowed.bitmap))
        bitmap = ours[:num_bytes] & allowed.bitmap[:num_bytes]
        num_selected = int(np.bitwise_count(bitmap).sum())
        is_all = num_selected == self.num_rows
        return type(self)(num_selected, self.num_rows, None if is_all else bitmap, allowed)

    def selector(self) -> Any:
        """The `faiss.IDSelector`, None where every row is selected."""
        return None if self.bitmap is None else _faiss.IDSelectorBitmap(self.bitmap)


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
    parameters = None if selection.bitmap is None else _faiss.SearchParameters(sel=selection.selector())
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
        if selection.bitmap is not None:
            found &= in_bitmap(selection.bitmap, np.where(found, ids, 0))
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
