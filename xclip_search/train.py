"""`xclip-search train`. Heavy imports happen inside the command."""

from __future__ import annotations

import json
import shlex
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, Self

import typer

from training.loop.events import (
    EpochDone,
    Note,
    Preparing,
    RunStarted,
    StepDone,
    TrainingEvent,
    ValidationStarted,
)
from xclip_search.console import FAILED, INTERRUPTED, echo, explain_error, make_app, printable, stop

if TYPE_CHECKING:
    from rich.console import Console

    from training.loop.run_directory import Existing
    from training.loop.trainer import TrainingResult

app = make_app()


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(help="A TOML file, or the name of a built-in config (--list)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The run directory.", show_default="runs/ and the config's name"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; sets data.directory.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of its videos; sets data.videos.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change one value; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the last checkpoint; CONFIG may be omitted.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing run.")] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: GPUs where there are any.")
    ] = "auto",
    list_configs: Annotated[bool, typer.Option("--list", help="List the built-in configs.")] = False,
) -> None:
    """Train a model: one config, one run directory, checkpoints that can be resumed.

    Several processes: torchrun --nproc-per-node N -m xclip_search train CONFIG --output DIR. The batch size
    of the config is that of all processes together. See docs/training.md.
    Exit status: 0 done, 1 failed, 2 wrong use, 130 or 143 stopped by Ctrl-C or SIGTERM.
    """
    if list_configs:
        _list_configs()
        return
    if resume and overwrite:
        stop("--resume keeps a run and --overwrite removes it: choose one")
    if config is None:
        if not resume or output is None:
            stop("which config? A TOML file or a name of --list; or --resume with --output")
        config = str(output / "config.toml")
    directory = output or Path("runs") / Path(config).name.removesuffix(".toml")
    folders = {"directory": data, "videos": videos}
    sets = [f"data.{field}={json.dumps(str(path))}" for field, path in folders.items() if path is not None]
    with _errors_explained(directory) as show:
        from training.config import find_config

        chosen = find_config(config, [*(changes or []), *sets])
        from training.loop.trainer import train as run

        existing: Existing = "resume" if resume else "overwrite" if overwrite else "refuse"
        show.finish(run(chosen, directory, existing=existing, device=device, on_event=show))


@contextmanager
def _errors_explained(directory: Path) -> Iterator[TrainingDisplay]:
    """Show progress; turn errors that the user can act on into one message, of the first process alone."""
    from rich.console import Console
    from torch import distributed

    from training.loop.stopping import TrainingStoppedError

    is_first = distributed.get_node_local_rank(fallback_rank=0) == 0

    def end(message: str, status: int) -> NoReturn:
        if is_first:
            echo(message, err=True, keep_lines=True)
        raise typer.Exit(status)

    command = ["xclip-search", "train", "--output", str(directory), "--resume"]
    resuming = f"resume with: {shlex.join(command)}"
    try:
        with TrainingDisplay(Console(quiet=not is_first)) as show, warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: show.note(str(message))
            yield show
    except TrainingStoppedError as stopped:
        end(f"{stopped}\n{resuming}", 128 + stopped.signal_number)
    except KeyboardInterrupt:
        end(f"stopped immediately\n{resuming}", INTERRUPTED)
    except Exception as error:
        explained = explain_error(error, FAILED)
        if explained is None:
            raise
        end(f"error: {explained[0]}", explained[1])


def _list_configs() -> None:
    from rich.console import Console
    from rich.table import Table

    from training.config import find_config, shipped_configs

    table = Table(box=None, pad_edge=False)
    for title in ("config", "starts from", "words", "frames", "epochs", "batch size"):
        table.add_column(
            title, justify="left" if title in ("config", "starts from") else "right", no_wrap=True
        )
    for name in shipped_configs():
        config = find_config(name)
        numbers = (
            config.model.num_words,
            config.model.num_frames,
            config.training.epochs,
            config.training.batch_size,
        )
        table.add_row(name, config.model.start, *map(str, numbers))
    Console(width=120).print(table)


_STEPS_OF_SPEED = 20
"""Steps over which speed and waiting are averaged."""


class TrainingDisplay:
    """Shows a run: a progress bar in a terminal, a line for each epoch everywhere.

    Call it with every event of `training.loop.trainer.train`; a context manager that clears its bar.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
        """Print something that the user should know."""
        from rich.markup import escape

        self._console.print(f"[yellow]note:[/] {escape(printable(text))}", soft_wrap=True, highlight=False)

    def finish(self, result: TrainingResult) -> None:
        """Print what the finished run found and where its time went."""
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
            self._print(f"resuming after step {event.num_steps_done}")
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
        self._console.print(printable(text, keep_lines=True), soft_wrap=True, markup=False, highlight=False)
