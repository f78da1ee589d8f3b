"""`xclip-search evaluate`. Heavy imports happen inside the command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from model import XClip
    from training.data.frames import FrameReader, FrameRecipe
    from training.datasets.split import Split
    from training.evaluation.encoding import OnProgress

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

FAILED, WRONG_USE = 1, 2
"""Exit statuses; 0 where all is well."""

ALL_EXTRAS = ("dual-softmax", "query-bank", "nearest-neighbour")


class SplitChoice(StrEnum):
    """Which part of the data set."""

    train = "train"
    val = "val"
    test = "test"


class MissingChoice(StrEnum):
    """What becomes of videos that are not there or cannot be read."""

    error = "error"
    warn = "warn"


class SamplingChoice(StrEnum):
    """How frames are chosen."""

    official = "official"
    time = "time"


@app.command()
def evaluate(
    dataset: Annotated[
        str,
        typer.Option(help="msrvtt-9k, msrvtt-7k, msvd, lsmdc, didemo, activitynet or captions."),
    ],
    data: Annotated[Path, typer.Option(help="Where the data set lies; for captions its manifest.")],
    model: Annotated[
        str,
        typer.Option(
            help="demo, a directory, an official checkpoint file, openclip:ARCHITECTURE/PRETRAINED"
            " or hf-hub:OWNER/NAME."
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option(help="The folder of videos.", show_default="where the layout has it")
    ] = None,
    split: Annotated[SplitChoice, typer.Option(help="What to judge on.")] = SplitChoice.test,
    candidates: Annotated[
        str, typer.Option(help="Sizes of shortlists for two-stage rows; an empty text for none.")
    ] = "50,100,200,500",
    extra: Annotated[
        str, typer.Option(help="Further rows, of: dual-softmax, query-bank, nearest-neighbour.")
    ] = "",
    bank: Annotated[
        str, typer.Option(help="Queries to learn corrections from: train, val, or a file of one text a line.")
    ] = "train",
    bank_size: Annotated[int, typer.Option(min=1, help="Most queries of the bank, drawn by a seed.")] = 5000,
    allow_test_queries: Annotated[
        bool, typer.Option("--allow-test-queries", help="Let test queries be in the bank; the row says so.")
    ] = False,
    single_scores: Annotated[
        bool, typer.Option("--single-scores", help="Rows for each of the four scores too.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this JSON file.")
    ] = None,
    frame_cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps decoded frames for the next time.")
    ] = None,
    missing: Annotated[
        MissingChoice, typer.Option(help="Videos missing or unreadable: an error, or left out and counted.")
    ] = MissingChoice.error,
    sampling: Annotated[
        SamplingChoice | None,
        typer.Option(
            help="Frames as the official code chooses them, or by time.",
            show_default="as in the model's training where its directory tells, else official",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")
    ] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips encoded together.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: this one.")] = 2,
    float16_features: Annotated[
        bool,
        typer.Option("--float16-features", help="Keep features in half the memory; scores move a little."),
    ] = False,
) -> None:
    """Judge a model on a captioned data set, and print the paper's figures beside.

    Exit status: 0 done, 1 failed (a missing video, an unreadable checkpoint, scores that are not finite),
    2 wrong use.
    """
    sizes = _parse_sizes(candidates)
    extras = _parse_extras(extra)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        _stop(f"there is no folder for {json_file}")
    with _errors_explained():
        from rich.console import Console

        from training.datasets.registry import NAMES, load_split

        if dataset not in NAMES:
            _stop(f"there is no data set {dataset!r}; there are {', '.join(NAMES)}")
        console = Console()
        with _warnings_kept() as told, _progress() as on_progress:
            chosen = load_split(dataset, data, split.value, videos=videos, missing=missing.value)
            import torch

            from model import XClip
            from training.data.frames import FrameReader
            from training.errors import explained_if_full
            from training.evaluation.evaluation import BANK_EXTRAS, evaluate_fully
            from training.evaluation.hubness import make_bank
            from training.evaluation.report import make_report, print_report, to_json

            queries = None
            if set(extras) & set(BANK_EXTRAS):
                queries = make_bank(bank, chosen, data, size=bank_size, allow_test_queries=allow_test_queries)
            loaded = XClip.load(model, device)
            recipe = _recipe(model, loaded, sampling)
            reader = FrameReader(recipe, frame_cache)
            chosen = _readable(chosen, reader, missing, max(1, workers), on_progress)
            with explained_if_full(
                f"judging {len(chosen.texts)} texts and {len(chosen.clips)} clips",
                "--batch-size encodes fewer clips at once, --float16-features halves what is kept of them",
            ):
                evaluation = evaluate_fully(
                    loaded,
                    chosen,
                    reader,
                    candidates=sizes,
                    extras=extras,
                    bank=queries,
                    single_scores=single_scores,
                    batch_size=batch_size,
                    num_workers=workers,
                    dtype=torch.float16 if float16_features else torch.float32,
                    on_progress=on_progress,
                )
        report = make_report(evaluation, chosen, loaded, model, recipe, told)
        print_report(report, console)
        if json_file is not None:
            json_file.write_text(to_json(report), encoding="utf-8")
            console.print(f"[dim]written to {json_file}", highlight=False)


def _recipe(spec: str, model: XClip, sampling: SamplingChoice | None) -> FrameRecipe:
    """Frames as the model's run took them, where a checkpoint of it is judged; in their order always."""
    from training.config import read_config
    from training.data.frames import FrameRecipe
    from training.data.splits import frame_recipe
    from training.loop.run_directory import CHECKPOINT_CONFIG_FILE

    recipe = FrameRecipe(model.config.num_frames, model.config.image_size)
    trained = Path(spec) / CHECKPOINT_CONFIG_FILE
    if trained.is_file():
        recipe = replace(frame_recipe(read_config(trained), model.config.image_size), order="forward")
    return recipe if sampling is None else replace(recipe, rule=sampling.value)


def _readable(
    split: Split, reader: FrameReader, missing: MissingChoice, num_processes: int, on_progress: OnProgress
) -> Split:
    """The split without unreadable clips, or an error that lists them all, before hours of encoding."""
    from training.data.clip_checks import readable

    num_done = 0

    def one_done(num_clips: int) -> None:
        nonlocal num_done
        num_done += num_clips
        on_progress("clips checked", num_done, len(split.clips))

    return readable(split, reader, missing=missing.value, num_processes=num_processes, on_progress=one_done)


def _parse_sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        _stop(f"--candidates takes numbers from 1 on, such as 50,100,200, not {text!r}")
    return [int(part) for part in parts]


def _parse_extras(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in ALL_EXTRAS]:
        _stop(f"--extra knows no {', '.join(unknown)}; there are {', '.join(ALL_EXTRAS)}")
    return parts


@contextmanager
def _errors_explained() -> Iterator[None]:
    """Errors that a person can do something about, as one line and an exit status."""
    from model.errors import ModelError, SpecError
    from training.errors import ConfigError, TrainingError

    try:
        yield
    except (ConfigError, SpecError) as error:
        _stop(str(error))
    except (TrainingError, ModelError) as error:
        _stop(str(error), FAILED)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), FAILED)


def _stop(message: str, status: int = WRONG_USE) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(status)


@contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """Warnings of the project inside, as sentences to print with the table instead of lines of Python."""
    told: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, UserWarning):
            told.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = keep
        yield told


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """Bars on the terminal, one for each thing that is counted."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, num_done: int, num_all: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=num_all)
            bars.update(tasks[what], completed=num_done)

        yield on_progress
