"""`xclip-search export` and `import`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xclip_search.console import (
    GOES_ON,
    SOME_FAILED,
    IndexOption,
    JsonOption,
    trouble_explained,
    wrong_use_explained,
)

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.command("export")
def export_command(
    index: IndexOption,
    destination: Annotated[Path, typer.Argument(help="A folder that is empty or not there yet.")],
    without_frames: Annotated[
        bool,
        typer.Option(
            "--without-frames", help="Leave out frame features: smaller, but it cannot be imported."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write an index as Parquet files that other tools read, features and all. It may be in use.

    Examples:

      xclip-search export my-export --index my-index
    """
    with wrong_use_explained(), trouble_explained("nothing was exported"):
        from indexer.maintenance.exporting import export_index

        with _progress() as on_progress:
            report = export_index(index, destination, with_frames=not without_frames, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    typer.echo(
        f"exported to {destination}: {report.num_videos} videos, {report.num_segments} segments, change"
        f" {report.sequence}, {report.num_files} files, {report.size_bytes / 1e6:.1f} MB"
    )
    if without_frames:
        typer.echo("note: without frame features it can be analysed but not imported", err=True)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A folder that `export` made.")],
    index: IndexOption,
    as_json: JsonOption = False,
) -> None:
    """Add the videos of an export to an index, which is made where there is none. It may be in use meanwhile.

    What is in it already is skipped by content, so the same command again goes on after an interruption.
    Exit status: 0 all in, 1 the export is damaged, 3 some videos failed (they are listed), 2 wrong use.

    Examples:

      xclip-search import my-export --index other-index
    """
    with (
        wrong_use_explained(),
        trouble_explained(GOES_ON),
    ):
        from indexer.maintenance.importing import import_index

        with _progress() as on_progress:
            report = import_index(source, index, on_progress=on_progress)
        if report.num_added:
            _save_coarse_index(index)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "num_failed": report.num_failed}, indent=2))
    else:
        typer.echo(
            f"{report.num_added} added ({report.num_segments} segments), {report.num_skipped} were in"
            f" already, {report.num_failed} failed"
        )
        for video_id, reason in report.failures:
            typer.echo(f"failed: {video_id}: {reason}", err=True)
    if report.num_failed:
        raise typer.Exit(SOME_FAILED)


def _save_coarse_index(index: Path) -> None:
    """So that the next search or server starts at once. It makes its own where this fails."""
    from indexer.coarse.index import CoarseIndex
    from indexer.store.sqlite.catalog import Catalog

    with suppress(OSError), Catalog.open(index) as catalog:
        coarse = CoarseIndex.open(catalog)
        coarse.compact()
        coarse.save()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on the terminal for each stage of the work. Gives the callback that moves them."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield on_progress
