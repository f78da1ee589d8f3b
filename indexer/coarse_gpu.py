"""A copy of a coarse snapshot's FAISS index on a GPU, for the searches that a GPU can do.

FAISS has `exact`, `ivf-sq` and `ivf-pq` on GPUs, not `hnsw`. Its GPU indexes know no selectors and give at
most 2,048 neighbours (github.com/facebookresearch/faiss/wiki/Faiss-on-the-GPU). Deleted segments are few: so
many more are asked for and these are dropped. Where that is too many, as for most filters, the processor
searches.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.coarse_vectors import CoarseKind, MarkedIds

if TYPE_CHECKING:
    import torch

_faiss: Any = faiss  # Its stubs do not know the GPU.

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
