"""`xclip-search verify`, `rebuild`, `backup` and `restore`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xclip_search.console import DAMAGED, IndexOption, JsonOption, wrong_use_explained

if TYPE_CHECKING:
    from indexer.maintenance.backup import BackupReport

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.command()
def verify(index: IndexOption, as_json: JsonOption = False) -> None:
    """Read an index whole and compare it with its checksums. Exit 0 where it is clean, 1 where it is damaged.

    The index may be in use. What is derived is repaired by `rebuild`; the rest by a backup, or by deleting
    the videos named and indexing them again. The files of a backup are compared with their sha256 too.

    Examples:

      xclip-search verify --index my-index

      xclip-search verify --index backup-of-today
    """
    with wrong_use_explained():
        from indexer.maintenance.verification import verify

        with _progress("verifying") as on_progress:
            report = verify(index, on_progress)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "is_clean": report.is_clean}, indent=2))
    else:
        for finding in report.findings:
            typer.echo(f"damaged: {finding.part}: {finding.problem}", err=True)
        if not report.complete:
            typer.echo("and more; this is not all", err=True)
        state = "clean" if report.is_clean else f"{len(report.findings)} findings"
        typer.echo(f"{report.num_videos} videos, {report.num_segments} segments: {state}")
        if any(finding.is_derived for finding in report.findings):
            typer.echo(f"derived parts are made again by: xclip-search rebuild --index {index}")
    if not report.is_clean:
        raise typer.Exit(DAMAGED)


class KindName(StrEnum):
    """Kinds of the coarse index."""

    auto = "auto"
    exact = "exact"
    ivf_sq = "ivf-sq"
    ivf_pq = "ivf-pq"
    hnsw = "hnsw"


@app.command()
def rebuild(
    index: IndexOption,
    coarse_kind: Annotated[
        KindName,
        typer.Option(help="Kind of the coarse index; auto: exact up to 50,000 segments, then ivf-sq."),
    ] = KindName.auto,
) -> None:
    """Make again all that is derived from the catalog: SQLite's indexes, the totals, the coarse index.

    Examples:

      xclip-search rebuild --index my-index
    """
    with wrong_use_explained():
        from indexer.maintenance.verification import rebuild

        num_videos, num_segments = rebuild(index, coarse_kind.value)
    typer.echo(f"made again for {num_videos} videos, {num_segments} segments")


@app.command()
def backup(
    index: IndexOption,
    destination: Annotated[Path, typer.Argument(help="A folder that is empty or not there yet.")],
    as_json: JsonOption = False,
) -> None:
    """Copy an index, with the files that were uploaded to it. It may be in use meanwhile.

    Examples:

      xclip-search backup backups/monday --index my-index
    """
    with wrong_use_explained():
        from indexer.maintenance.backup import backup

        with _progress("copying") as on_progress:
            report = backup(index, destination, on_progress)
    _show(report, f"backed up to {destination}", as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `backup` made.")],
    index: IndexOption,
    as_json: JsonOption = False,
) -> None:
    """Bring a backup back as an index, into a folder that is empty or not there yet, checking every file.

    Examples:

      xclip-search restore backups/monday --index my-index-again
    """
    with wrong_use_explained():
        from indexer.maintenance.backup import restore

        with _progress("copying") as on_progress:
            report = restore(source, index, on_progress)
    _show(report, f"restored to {index}", as_json)


def _show(report: BackupReport, what: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    typer.echo(
        f"{what}: {report.num_videos} videos, {report.num_segments} segments, change {report.sequence},"
        f" {report.num_files} files, {report.size_bytes / 1e6:.1f} MB"
    )


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal. Gives the callback that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
