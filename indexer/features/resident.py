"""The first records of a feature file in the memory of a GPU, as many as its budget allows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer.features.feature_file import TABLES, FeatureFile, Table
from indexer.store.store import SearchedStore

logger = logging.getLogger(__name__)

_COPIED_AT_ONCE: Final = 4096


class ResidentRecords:
    """A table of records 0 to `count` of one feature file on a device; other records come from the file.

    Safe to use from several threads, of which one fills.
    """

    def __init__(self, catalog: SearchedStore, size_bytes: int, device: torch.device) -> None:
        """size_bytes: what the table may take; 0 keeps nothing. Raises torch.OutOfMemoryError."""
        if size_bytes < 0:
            raise ValueError("size_bytes is at least 0")
        self._device = device
        self._shape = (catalog.num_frames, catalog.embedding_dim)
        self._capacity = size_bytes // record_bytes(*self._shape)
        self._table: _Resident | None = _Resident("", self._capacity, self._shape, device)

    @property
    def num_bytes(self) -> int:
        """What the records held take."""
        table = self._table
        return 0 if table is None else table.count * record_bytes(*self._shape)

    def has_room_for(self, file: FeatureFile) -> bool:
        """Whether `fill` would add something."""
        table, wanted = self._table, min(self._capacity, len(file))
        if wanted == 0 or table is None:
            return wanted > 0
        return table.file != file.manifest.file or table.count < wanted

    def fill(self, file: FeatureFile, should_stop: Callable[[], bool]) -> None:
        """Load what fits. Another file than before takes a new table, because searches may still read the
        old one; the memory of that is given back as they end."""
        if not self.has_room_for(file):
            return
        table = self._table
        if table is None or table.file not in ("", file.manifest.file):
            self._table = table = None
            table = _Resident("", self._capacity, self._shape, self._device)
        table.file = file.manifest.file
        self._table = table
        for first in range(table.count, min(self._capacity, len(file)), _COPIED_AT_ONCE):
            rows = slice(first, min(first + _COPIED_AT_ONCE, self._capacity, len(file)))
            for name in TABLES:
                records, is_right = file.read(name, np.arange(rows.start, rows.stop))
                if not is_right.all():
                    return  # The file is made again.
                table.of(name)[rows].copy_(records)
            table.count = rows.stop
            if should_stop():
                return

    def view(self, file: FeatureFile, numbers: NDArray[np.intp]) -> tuple[Tensor, Tensor] | None:
        """Frames and video features of records that follow one another, without a copy where they are on the
        device already; of a processor those of the file itself. None where they have to be read first.

        The video features are always a copy, aligned as all memory of torch: the last bits of a product may
        depend on it.
        """
        rows = slice(int(numbers[0]), int(numbers[-1]) + 1)
        table = self._table
        if table is not None and table.file == file.manifest.file and rows.stop <= table.count:
            return table.frames[rows], table.videos[rows].clone()
        if self._device.type != "cpu" or file.manifest.precision != "float16":
            return None
        if not file.is_checked("frames", numbers):
            return None
        videos, is_right = file.read("videos", numbers)
        return (file.view("frames", rows), videos) if is_right.all() else None

    def read(
        self, file: FeatureFile, name: Table, numbers: NDArray[np.intp]
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """A copy of records on the device, in the order of their numbers, and which of them are right."""
        table = self._table
        count = 0 if table is None or table.file != file.manifest.file else table.count
        is_here = numbers < count
        if table is None or not is_here.any():
            records, is_right = file.read(name, numbers)
            return records.to(self._device), is_right
        held = table.of(name).index_select(0, torch.from_numpy(numbers[is_here]).to(self._device))
        if is_here.all():
            return held, is_here
        others, is_right = file.read(name, numbers[~is_here])
        selected = held.new_empty((len(numbers), *held.shape[1:]))
        selected[torch.from_numpy(is_here).to(self._device)] = held
        selected[torch.from_numpy(~is_here).to(self._device)] = others.to(self._device)
        is_here[~is_here] = is_right
        return selected, is_here


class _Resident:
    """The table itself. file: the name of the file that it is of. count: how many records are there."""

    def __init__(self, file: str, capacity: int, shape: tuple[int, int], device: torch.device) -> None:
        self.file = file
        self.count = 0
        self.frames = torch.empty((capacity, *shape), dtype=torch.float16, device=device)
        self.videos = torch.empty((capacity, shape[1]), dtype=torch.float32, device=device)

    def of(self, name: Table) -> Tensor:
        return self.frames if name == "frames" else self.videos


def record_bytes(num_frames: int, embedding_dim: int) -> int:
    """What the features of a segment take."""
    return num_frames * embedding_dim * 2 + embedding_dim * 4
