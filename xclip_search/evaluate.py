"""`xclip-search evaluate`. Heavy imports happen inside the command."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from training.datasets.split import MissingPolicy, SplitName
from training.evaluation import BANK_EXTRAS, DEFAULT_BANK_SIZE, DEFAULT_CANDIDATES, EXTRAS
from xclip_search.console import (
    FAILED,
    DeviceOption,
    RuntimeOption,
    errors_explained,
    make_app,
    printable,
    progress_bars,
    stop,
)

if TYPE_CHECKING:
    from model import XClip
    from training.data.frames import FrameReader, FrameRecipe
    from training.datasets.split import Split
    from training.evaluation.encoding import OnProgress

app = make_app()

FrameRule = Literal["official", "time"]


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
            " (xclip-search models lists them)"
            " or hf-hub:OWNER/NAME."
        ),
    ],
    videos: Annotated[
        Path | None, typer.Option(help="The folder of videos.", show_default="where the layout has it")
    ] = None,
    split: Annotated[SplitName, typer.Option(help="The part to evaluate on.")] = "test",
    candidates: Annotated[
        str, typer.Option(help="Sizes of shortlists for two-stage rows; an empty text for none.")
    ] = ",".join(map(str, DEFAULT_CANDIDATES)),
    extra: Annotated[str, typer.Option(help=f"Further rows, of: {', '.join(EXTRAS)}.")] = "",
    bank: Annotated[
        str, typer.Option(help="Queries to learn corrections from: train, val, or a file of one text a line.")
    ] = "train",
    bank_size: Annotated[
        int, typer.Option(min=1, help="Maximum number of queries in the bank, drawn with a fixed seed.")
    ] = (DEFAULT_BANK_SIZE),
    allow_test_queries: Annotated[
        bool, typer.Option("--allow-test-queries", help="Allow test queries in the bank; the row is marked.")
    ] = False,
    single_scores: Annotated[
        bool, typer.Option("--single-scores", help="Also print a row for each of the four scores.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this JSON file.")
    ] = None,
    frame_cache: Annotated[
        Path | None, typer.Option(help="A folder that caches decoded frames for later runs.")
    ] = None,
    missing: Annotated[
        MissingPolicy, typer.Option(help="Videos missing or unreadable: an error, or left out and counted.")
    ] = "error",
    sampling: Annotated[
        FrameRule | None,
        typer.Option(
            help="Frames as the official code chooses them, or by time.",
            show_default="as in the model's training where its directory says so, else official",
        ),
    ] = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Clips encoded together.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: this one.")] = 2,
    float16_features: Annotated[
        bool,
        typer.Option("--float16-features", help="Keep features in half the memory; scores change slightly."),
    ] = False,
) -> None:
    """Evaluate a model on a captioned data set, and print the paper's figures next to its own.

    Exit status: 0 done, 1 failed (a missing video, an unreadable checkpoint, scores that are not finite),
    2 wrong use.
    """
    sizes, extras = _parse_sizes(candidates), _parse_extras(extra)
    if json_file is not None and not json_file.absolute().parent.is_dir():
        stop(f"there is no folder for {json_file}")
    with errors_explained(failed=FAILED):
        from rich.console import Console

        from training.datasets.registry import NAMES, load_split

        if dataset not in NAMES:
            stop(f"there is no data set {dataset!r}; there are {', '.join(NAMES)}")
        with _warnings_kept() as notes, progress_bars() as on_progress:
            chosen = load_split(dataset, data, split, videos=videos, missing=missing)
            import torch

            from model import XClip
            from training.data.frames import FrameReader
            from training.errors import explained_if_full
            from training.evaluation.encoding import EncodingOptions
            from training.evaluation.evaluation import RowChoice, evaluate_fully
            from training.evaluation.hubness import make_bank
            from training.evaluation.report import make_report, print_report, to_json

            queries = None
            if set(extras) & set(BANK_EXTRAS):
                queries = make_bank(bank, chosen, data, size=bank_size, allow_test_queries=allow_test_queries)
            loaded = XClip.load(model, device, runtime)
            recipe = _recipe(model, loaded, sampling)
            reader = FrameReader(recipe, frame_cache)
            chosen = _readable(chosen, reader, missing, max(1, workers), on_progress)
            rows = RowChoice(sizes, extras, queries, single_scores)
            options = EncodingOptions(
                batch_size, workers, torch.float16 if float16_features else torch.float32
            )
            with explained_if_full(
                f"evaluating {len(chosen.texts)} texts and {len(chosen.clips)} clips",
                "--batch-size encodes fewer clips together, --float16-features halves what is kept of them",
            ):
                evaluation = evaluate_fully(loaded, chosen, reader, rows, options, on_progress)
        report = make_report(evaluation, chosen, loaded, model, recipe, notes)
        console = Console()
        print_report(report, console)
        if json_file is not None:
            json_file.write_text(to_json(report), encoding="utf-8")
            console.print(printable(f"written to {json_file}"), style="dim", markup=False, highlight=False)


def _recipe(spec: str, model: XClip, sampling: FrameRule | None) -> FrameRecipe:
    """Frames as the model's training took them, where its checkpoint says so; always in forward order."""
    from training.config import read_config
    from training.data.frames import FrameRecipe
    from training.data.splits import frame_recipe
    from training.loop.run_directory import CHECKPOINT_CONFIG_FILE

    recipe = FrameRecipe(model.config.num_frames, model.config.resizing)
    trained = Path(spec) / CHECKPOINT_CONFIG_FILE
    if trained.is_file():
        recipe = replace(frame_recipe(read_config(trained), model.config.resizing), order="forward")
    return recipe if sampling is None else replace(recipe, rule=sampling)


def _readable(
    split: Split, reader: FrameReader, missing: MissingPolicy, num_processes: int, on_progress: OnProgress
) -> Split:
    """The split without unreadable clips, or an error that lists them all, before hours of encoding."""
    from training.data.clip_checks import readable

    num_done = 0

    def one_done(num_clips: int) -> None:
        nonlocal num_done
        num_done += num_clips
        on_progress("clips checked", num_done, len(split.clips))

    return readable(split, reader, missing=missing, num_processes=num_processes, on_progress=one_done)


def _parse_sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        stop(f"--candidates takes numbers from 1 on, such as 50,100,200, not {text!r}")
    return [int(part) for part in parts]


def _parse_extras(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in EXTRAS]:
        stop(f"--extra knows no {', '.join(unknown)}; there are {', '.join(EXTRAS)}")
    return parts


@contextmanager
def _warnings_kept() -> Iterator[list[str]]:
    """Warnings of the project inside, as sentences to print with the table instead of lines of Python."""
    notes: list[str] = []

    def keep(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, UserWarning):
            notes.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = keep
        yield notes
