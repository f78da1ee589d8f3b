"""What a run records: where its time goes, TensorBoard scalars, the figures of a validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import distributed

from training.distributed import world_size
from training.errors import ConfigError
from training.evaluation.evaluation import RetrievalResult
from training.evaluation.metrics import DIRECTIONS, FIGURES
from training.loop.checkpoint import Progress
from training.loop.events import EpochDone, StepDone, TrainingEvent

TRAINING_PHASES: Final = ("data_wait", "forward_backward", "optimizer")
PHASES: Final = (*TRAINING_PHASES, "validation", "checkpoint", "preparation")


@contextmanager
def clocked(progress: Progress, phase: str) -> Iterator[None]:
    """Add the time that passes inside to a phase of the run and of its epoch."""
    started = time.perf_counter()
    try:
        yield
    finally:
        progress.add_seconds(phase, time.perf_counter() - started)


def times_of(seconds: dict[str, float], num_pairs: int) -> dict[str, float]:
    """Seconds by phase; the share of training that was waiting for data; pairs trained on per second.

    Training is what comes before validation, checkpoints and preparation (reading data and model).
    """
    training = sum(seconds.get(phase, 0.0) for phase in TRAINING_PHASES)
    return {
        **{f"{phase}_seconds": seconds.get(phase, 0.0) for phase in PHASES},
        "samples_per_second": num_pairs / training if training else 0.0,
        "data_wait_share": seconds.get("data_wait", 0.0) / training if training else 0.0,
    }


class TensorBoardLog:
    """Scalars of a run. Call it with every event, close it at the end.

    Args:
        first_step: Of this start; what an interrupted run wrote of later ones is hidden.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path, every_steps: int, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "TensorBoard is not installed: `make install` brings it, or pip install tensorboard;"
                " or set [log].tensorboard to false"
            ) from None
        self._writer: Any = SummaryWriter(str(directory), purge_step=first_step)
        self._every_steps = every_steps
        self._since: list[StepDone] = []

    def __call__(self, event: TrainingEvent) -> None:
        """Write the scalars of an event."""
        if isinstance(event, StepDone):
            self._since.append(event)
            if event.step % self._every_steps == 0:
                self._write_step()
        elif isinstance(event, EpochDone) and event.row["validation"] is not None:
            for direction in DIRECTIONS:
                for name, value in event.row["validation"][direction].items():
                    self._add(f"validation/{direction}/{name}", value, event.step)

    def close(self) -> None:
        """Write everything to disk."""
        self._writer.close()

    def _write_step(self) -> None:
        event, steps = self._since[-1], self._since
        seconds = sum(one.seconds for one in steps)
        self._add("train/loss", event.loss, event.step)
        self._add("train/gradient_norm", event.gradient_norm, event.step)
        self._add("train/logit_scale", event.logit_scale, event.step)
        for group, rate in event.learning_rates.items():
            self._add(f"learning_rate/{group}", rate, event.step)
        self._add("speed/samples_per_second", sum(one.num_pairs for one in steps) / seconds, event.step)
        self._add("speed/data_wait_share", sum(one.data_wait_seconds for one in steps) / seconds, event.step)
        self._since = []

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)


def figures_of(result: RetrievalResult) -> dict[str, Any]:
    """The figures of both directions, and the numbers of texts and clips, as JSON values."""
    figures: dict[str, Any] = {}
    for direction in DIRECTIONS:
        metrics = getattr(result, direction)
        figures[direction] = {name: getattr(metrics, name) for name in FIGURES}
        figures[direction]["num_queries"] = metrics.num_queries
    return {**figures, "num_texts": result.num_texts, "num_clips": result.num_clips}


def shared_figures(figures: dict[str, Any] | None, device: torch.device) -> dict[str, Any]:
    """The first process's figures, on all processes; the others give None."""
    if world_size() == 1:
        assert figures is not None
        return figures
    names = (*FIGURES, "num_queries")
    numbers = [0.0] * (len(DIRECTIONS) * len(names) + 2)
    if figures is not None:
        numbers = [float(figures[direction][name]) for direction in DIRECTIONS for name in names]
        numbers += [figures["num_texts"], figures["num_clips"]]
    sent = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.broadcast(sent, src=0)
    *rates, num_texts, num_clips = sent.tolist()
    rest = iter(rates)
    found: dict[str, Any] = {direction: {name: next(rest) for name in names} for direction in DIRECTIONS}
    for direction in DIRECTIONS:
        found[direction]["num_queries"] = int(found[direction]["num_queries"])
    return {**found, "num_texts": int(num_texts), "num_clips": int(num_clips)}
