"""`xclip-search verify`, `rebuild`, `backup`, `restore`, `export` and `import`.

Heavy imports happen inside the commands.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xclip_search.console import (
    DAMAGED,
    GOES_ON,
    SOME_FAILED,
    IndexOption,
    JsonOption,
    errors_explained,
    make_app,
    progress_bars,
)

if TYPE_CHECKING:
    from indexer.maintenance.backup import BackupReport
    from indexer.maintenance.exporting import ExportReport

app = make_app()

DestinationArgument = Annotated[Path, typer.Argument(help="A folder that is empty or not there yet.")]


@app.command()
def verify(index: IndexOption, as_json: JsonOption = False) -> None:
    """Read an index whole and compare it with its checksums. Exit 0 where it is clean, 1 where it is damaged.

    The index may be in use. What is derived is repaired by `rebuild`; the rest by a backup, or by deleting
    the videos named and indexing them again. The files of a backup are compared with their sha256 too.

    Examples:

      xclip-search verify --index my-index

      xclip-search verify --index backup-of-today
    """
    with errors_explained():
        from indexer.maintenance.verification import verify

        with progress_bars() as on_progress:
            report = verify(index, partial(on_progress, "verifying"))
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
    with errors_explained():
        from indexer.maintenance.verification import rebuild

        num_videos, num_segments = rebuild(index, coarse_kind.value)
    typer.echo(f"made again for {num_videos} videos, {num_segments} segments")


@app.command()
def backup(
    index: IndexOption,
    destination: DestinationArgument,
    as_json: JsonOption = False,
) -> None:
    """Copy an index, with the files that were uploaded to it. It may be in use meanwhile.

    Examples:

      xclip-search backup backups/monday --index my-index
    """
    with errors_explained():
        from indexer.maintenance.backup import backup

        with progress_bars() as on_progress:
            report = backup(index, destination, partial(on_progress, "copying"))
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
    with errors_explained():
        from indexer.maintenance.backup import restore

        with progress_bars() as on_progress:
            report = restore(source, index, partial(on_progress, "copying"))
    _show(report, f"restored to {index}", as_json)


@app.command("export")
def export_command(
    index: IndexOption,
    destination: DestinationArgument,
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
    with errors_explained("nothing was exported"):
        from indexer.maintenance.exporting import export_index

        with progress_bars() as on_progress:
            report = export_index(index, destination, with_frames=not without_frames, on_progress=on_progress)
    _show(report, f"exported to {destination}", as_json)
    if without_frames and not as_json:
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
    with errors_explained(GOES_ON):
        from indexer.index import save_coarse_index
        from indexer.maintenance.importing import import_index
        from indexer.store.sqlite.catalog import Catalog

        with progress_bars() as on_progress:
            report = import_index(source, index, on_progress=on_progress)
        if report.num_added:
            with Catalog.open(index) as catalog:
                save_coarse_index(catalog)
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


def _show(report: BackupReport | ExportReport, what: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    typer.echo(
        f"{what}: {report.num_videos} videos, {report.num_segments} segments, change {report.sequence},"
        f" {report.num_files} files, {report.size_bytes / 1e6:.1f} MB"
    )
