"""What a person sees of a training run: a progress bar in a terminal, a line for each epoch everywhere."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.loop.events import (
    EpochDone,
    Note,
    Preparing,
    RunStarted,
    StepDone,
    TrainingEvent,
    ValidationStarted,
)

if TYPE_CHECKING:
    from training.loop.trainer import TrainingResult

_STEPS_OF_SPEED = 20
"""Steps over which speed and waiting are averaged."""


class TrainingDisplay:
    """Call it with every event of `training.loop.trainer.train`; a context manager that clears its bar."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("preparing", total=None, facts="")
        self._recent: deque[StepDone] = deque(maxlen=_STEPS_OF_SPEED)
        self._num_epochs = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal and not self._console.quiet:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def __call__(self, event: TrainingEvent) -> None:
        """Show an event."""
        if isinstance(event, Note):
            self.note(event.text)
        elif isinstance(event, Preparing):
            self._bar.update(
                self._task, description=event.what, completed=event.num_done, total=event.num_total
            )
        elif isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, ValidationStarted):
            self._bar.update(self._task, description=f"validating {event.num_clips} clips")
        else:
            self._epoch(event)

    def note(self, text: str) -> None:
        """Something that a person should know."""
        self._console.print(f"[yellow]note:[/] {escape(text)}", soft_wrap=True, highlight=False)

    def finish(self, result: TrainingResult) -> None:
        """The end of a run: what it found, where it is, where the time went."""
        self._end_bar()
        summary: dict[str, Any] = result.summary
        times = summary["times"]
        spent = ", ".join(
            f"{name.removesuffix('_seconds').replace('_', ' ')} {seconds:.0f}"
            for name, seconds in times.items()
            if name.endswith("_seconds")
        )
        fingerprint = summary["best"]["fingerprint"][:12]
        self._print(f"best: epoch {result.best_epoch}, {result.best} (fingerprint {fingerprint})")
        self._print(
            f"{summary['num_pairs_seen']} pairs in {summary['wall_seconds']:.0f} s"
            f" ({times['samples_per_second']:.1f} a second while training): {spent}"
        )

    def _end_bar(self) -> None:
        if self._console.is_terminal and not self._console.quiet:
            self._bar.stop()

    def _begin(self, event: RunStarted) -> None:
        self._num_epochs = event.num_epochs
        shared = f" shared by {event.world_size} processes" if event.world_size > 1 else ""
        self._print(
            f"{event.num_pairs} pairs of {event.num_clips} clips; {event.num_epochs}"
            f" epoch{'s' if event.num_epochs > 1 else ''},"
            f" {event.num_steps} steps of {event.batch_size} pairs{shared}; {event.device}"
        )
        if event.num_steps_done:
            self._print(f"going on after step {event.num_steps_done}")
        self._bar.reset(
            self._task,
            total=event.num_steps,
            completed=event.num_steps_done,
            description="training",
            facts="",
        )

    def _step(self, event: StepDone) -> None:
        self._recent.append(event)
        seconds = sum(step.seconds for step in self._recent)
        speed = sum(step.num_pairs for step in self._recent) / seconds
        waiting = sum(step.data_wait_seconds for step in self._recent) / seconds
        self._bar.update(
            self._task,
            completed=event.step,
            description=f"epoch {event.epoch}/{self._num_epochs}",
            facts=f"loss {event.loss:.3f}  {speed:.1f} pairs/s  waiting for data {waiting:.0%}",
        )

    def _epoch(self, event: EpochDone) -> None:
        row = event.row
        line = f"epoch {row['epoch']}/{self._num_epochs}  loss {row['loss']:.4f}"
        if row["validation"] is not None:
            for direction, name in (("text_to_video", "T2V"), ("video_to_text", "V2T")):
                found = row["validation"][direction]
                line += (
                    f"  {name} R@1 {found['recall_at_1']:.1f} R@5 {found['recall_at_5']:.1f}"
                    f" R@10 {found['recall_at_10']:.1f} median {found['median_rank']:g}"
                )
            line += "  best" if row["is_best"] else ""
        times = row["times"]
        line += f"  {times['samples_per_second']:.1f} pairs/s, waiting {times['data_wait_share']:.0%}"
        self._print(line)
        if row["num_skipped_steps"]:
            self.note(f"float16 skipped {row['num_skipped_steps']} steps of this epoch to find its scale")

    def _print(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True, highlight=False)
