"""Seconds spent in the stages of a search, which may come by turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

Stage = Literal["encode", "coarse", "rerank"]


class StageTimes:
    """A stop watch for each stage, and one for all together, which runs from the start."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._seconds: dict[Stage, float] = {"encode": 0.0, "coarse": 0.0, "rerank": 0.0}

    @contextlib.contextmanager
    def measuring(self, stage: Stage) -> Iterator[None]:
        """Add what happens inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - started)

    def add(self, stage: Stage, seconds: float) -> None:
        """Add time measured elsewhere."""
        self._seconds[stage] += seconds

    def seconds(self, stage: Stage) -> float:
        """Of one stage, so far."""
        return self._seconds[stage]

    @property
    def total_seconds(self) -> float:
        """Since the start, stages or not."""
        return time.perf_counter() - self._started
