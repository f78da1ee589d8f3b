"""`xclip-search verify`, `rebuild`, `backup`, `restore`, `export`, `import` and `reindex`.

Heavy imports happen inside the commands.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from indexer.store.postgres.address import PostgresAddress, is_postgres_address
from xclip_search.console import (
    DAMAGED,
    RESUMES,
    SOME_FAILED,
    BatchSizeOption,
    DecodeTimeoutOption,
    DeviceOption,
    IndexOption,
    JsonOption,
    ReportOption,
    RuntimeOption,
    WorkersOption,
    echo,
    errors_explained,
    index_address,
    index_directory,
    make_app,
    print_json,
    progress_bars,
    require_report_file,
    stop,
    video_progress,
    write_report,
)

if TYPE_CHECKING:
    from indexer.ingest.pipeline import IndexEvent
    from indexer.maintenance.backup import BackupReport
    from indexer.maintenance.exporting import ExportReport
    from indexer.maintenance.reindexing import MakePipeline, Progress, ReindexReport
    from indexer.store.records import IndexFacts

app = make_app()

DestinationArgument = Annotated[Path, typer.Argument(help="An empty folder, or one that does not exist yet.")]


@app.command()
def verify(
    index: IndexOption,
    files: Annotated[
        bool, typer.Option("--files", help="Look for the files of the videos too, and compare their sizes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read an index whole and compare it with its checksums. Exit 0 where it is clean, 1 where it is damaged.

    The index may be in use. What is derived is repaired by `rebuild`; the rest by a backup, or by deleting
    the videos named and indexing them again. The files of a backup are compared with their sha256 too.

    Examples:

      xclip-search verify --index my-index

      xclip-search verify --index my-index --files

      xclip-search verify --index backup-of-today
    """
    with errors_explained():
        from indexer.maintenance.verification import verify

        with progress_bars() as on_progress:
            report = verify(index_address(index), partial(on_progress, "verifying"), files=files)
    if as_json:
        print_json({**asdict(report), "is_clean": report.is_clean})
    else:
        for finding in report.findings:
            damaged = "" if finding.part.endswith(" files") else "damaged: "
            echo(f"{damaged}{finding.part}: {finding.problem}", err=True)
        if not report.complete:
            echo("and more that are not listed", err=True)
        state = "clean" if report.is_clean else f"{len(report.findings)} findings"
        echo(f"{report.num_videos} videos, {report.num_segments} segments: {state}")
        if any(finding.is_derived for finding in report.findings):
            echo(f"derived parts are rebuilt by: xclip-search rebuild --index {shlex.quote(index)}")
    if not report.is_clean:
        raise typer.Exit(DAMAGED)


def backup_in_postgres(index: str) -> str:
    """How an index in a database is backed up and restored; nothing for one in a directory."""
    return PostgresAddress.parse(index).backup_advice if is_postgres_address(index) else ""


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
    """Rebuild all that is derived from the catalog: SQLite's indexes, the totals, the coarse
    index, the feature file.

    Examples:

      xclip-search rebuild --index my-index
    """
    with errors_explained():
        from indexer.maintenance.verification import rebuild

        num_videos, num_segments = rebuild(index_address(index), coarse_kind.value)
    echo(f"rebuilt for {num_videos} videos, {num_segments} segments")


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

        directory = index_directory(index, backup_in_postgres(index))
        with progress_bars() as on_progress:
            report = backup(directory, destination, partial(on_progress, "copying"))
    _show(report, f"backed up to {destination}", as_json)


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A folder that `backup` made.")],
    index: IndexOption,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup as an index, into an empty or new folder; every file is checked.

    Examples:

      xclip-search restore backups/monday --index my-index-again
    """
    with errors_explained():
        from indexer.maintenance.backup import restore

        directory = index_directory(index, backup_in_postgres(index))
        with progress_bars() as on_progress:
            report = restore(source, directory, partial(on_progress, "copying"))
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
            report = export_index(
                index_address(index), destination, with_frames=not without_frames, on_progress=on_progress
            )
    _show(report, f"exported to {destination}", as_json)
    if without_frames and not as_json:
        echo("note: without frame features it can be analysed but not imported", err=True)


@app.command("import")
def import_command(
    source: Annotated[Path, typer.Argument(help="A folder that `export` made.")],
    index: IndexOption,
    as_json: JsonOption = False,
) -> None:
    """Add the videos of an export to an index, which is created if there is none. It may be in use meanwhile.

    What is in it already is skipped by content, so the same command resumes after an interruption.
    Exit status: 0 all indexed, 1 the export is damaged, 3 some videos failed (they are listed), 2 wrong use.

    Examples:

      xclip-search import my-export --index other-index
    """
    with errors_explained(RESUMES):
        from indexer.coarse.index import save_coarse_index
        from indexer.features.writing import save_feature_file
        from indexer.maintenance.importing import import_index
        from indexer.store.store import open_store

        with progress_bars() as on_progress:
            report = import_index(source, index_address(index), on_progress=on_progress)
        if report.num_added:
            with open_store(index_address(index)) as catalog:
                save_coarse_index(catalog)
                save_feature_file(catalog)
    if as_json:
        print_json({**asdict(report), "num_failed": report.num_failed})
    else:
        echo(
            f"{report.num_added} added ({report.num_segments} segments), {report.num_skipped}"
            f" already indexed, {report.num_failed} failed"
        )
        for video_id, reason in report.failures:
            echo(f"failed: {video_id}: {reason}", err=True)
    if report.num_failed:
        raise typer.Exit(SOME_FAILED)


def _show(report: BackupReport | ExportReport, what: str, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
        return
    echo(
        f"{what}: {report.num_videos} videos, {report.num_segments} segments, change {report.sequence},"
        f" {report.num_files} files, {report.size_bytes / 1e6:.1f} MB"
    )


@app.command()
def reindex(
    index: IndexOption,
    model: Annotated[
        str | None,
        typer.Option(help="The model to encode with.", show_default="the one that made the index"),
    ] = None,
    frames_per_second: Annotated[
        float | None,
        typer.Option(help="Frames sampled per second of video.", show_default="the index's own"),
    ] = None,
    max_segment_seconds: Annotated[
        float | None,
        typer.Option(help="Cut longer videos into segments; 0: never.", show_default="the index's own"),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Roll back to the generation that was current before.")
    ] = False,
    discard_old: Annotated[
        bool,
        typer.Option(
            "--discard-old", help="Remove all other generations at the end; a rollback is then impossible."
        ),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Roll back without asking for confirmation.")
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Switch even if some videos can no longer be read."),
    ] = False,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
    decode_timeout_seconds: DecodeTimeoutOption = 300.0,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Encode all videos again, with another model or sampling, and switch the index to the result.

    The index may be served and changed meanwhile: nothing that is added, changed or deleted before the switch
    is lost, and the servers switch by themselves. After an interruption the same command resumes.
    --rollback restores the index as it was at the last switch. What was added, changed or deleted since is
    not carried back: the command says how many videos that hides, and asks. They stay in the generation that
    is left: --rollback once more returns to it.
    Exit status: 0 switched, or there was nothing to do; 3 some videos cannot be read (they are listed), and
    without --allow-missing nothing was switched; 2 wrong use.

    Examples:

      xclip-search reindex --index my-index --model openclip:ViT-B-32-quickgelu/openai

      xclip-search reindex --index my-index --rollback
    """
    if rollback and (model or frames_per_second is not None or max_segment_seconds is not None):
        stop("--rollback goes back to what there was: it takes no model and no sampling")
    if rollback and discard_old:
        stop("--rollback keeps the generation that it leaves; look at the index, then run --discard-old")
    require_report_file(report)
    address = index_address(index)
    if rollback:
        done = _roll_back(address, yes)
    else:
        kept = "what is encoded is kept, and the same command resumes"
        with errors_explained(kept), _progress() as progress:
            from indexer.maintenance.reindexing import reindex

            encoding = _Encoding(model, frames_per_second, max_segment_seconds, device, runtime)
            sizes = {"num_workers": workers, "batch_size": batch_size}
            facts, make_pipeline = _load(address, encoding, sizes, decode_timeout_seconds)
            done = reindex(address, facts, make_pipeline, allow_missing=allow_missing, progress=progress)
    discarded = _discard(address) if discard_old and not (done.missing and not done.switched) else []
    content = {**done.to_dict(), "discarded": discarded}
    if as_json:
        print_json(content)
    elif rollback:
        _print_rollback(done)
    else:
        _print_reindexed(done, discarded)
    write_report(report, content)
    if done.missing:
        raise typer.Exit(SOME_FAILED)


class _Encoding(NamedTuple):
    """What the user asked for; None for what the index has."""

    model: str | None
    frames_per_second: float | None
    max_segment_seconds: float | None
    device: str
    runtime: str


def _load(
    index: str | Path, asked: _Encoding, sizes: dict[str, Any], timeout_seconds: float
) -> tuple[IndexFacts, MakePipeline]:
    """The model and sampling that the user asked for."""
    from dataclasses import replace

    from indexer.index import absolute_spec
    from indexer.ingest.encoding import index_facts
    from indexer.ingest.pipeline import DecodeOptions, IndexingPipeline
    from indexer.media.probing import MediaLimits
    from indexer.media.sampling import Sampling
    from indexer.store.store import open_store
    from model import XClip

    with open_store(index) as current:
        spec, sampling = asked.model or current.model_spec, Sampling.from_json(current.sampling_json)
    loaded = XClip.load(spec, asked.device, asked.runtime)
    changes: dict[str, Any] = {"num_frames": loaded.config.num_frames}
    if asked.frames_per_second is not None:
        changes["frames_per_second"] = asked.frames_per_second
    if asked.max_segment_seconds is not None:
        changes["max_segment_seconds"] = asked.max_segment_seconds
    sampling = replace(sampling, **changes)
    facts = index_facts(loaded, absolute_spec(spec), sampling)
    # The length of each video was judged when it was added.
    decoding = DecodeOptions(timeout_seconds, MediaLimits(max_duration_seconds=math.inf))
    return facts, lambda catalog: IndexingPipeline(catalog, loaded, decoding=decoding, **sizes)


def _roll_back(index: str | Path, yes: bool) -> ReindexReport:
    """Go back, once the user knows what that hides."""
    with errors_explained():
        from indexer.maintenance.reindexing import roll_back, rollback_effect

        effect = rollback_effect(index)
        echo(
            f"going back to generation {effect.generation}, as it was at the switch: {effect.num_hidden}"
            " videos that it does not have will not be found any more,"
            f" {effect.num_returned} that only it has will be found again,"
            " and changes of titles and metadata made since will not be seen",
            err=True,
        )
        if effect.num_hidden and not yes:
            if not sys.stdin.isatty():
                stop(
                    f"{effect.num_hidden} videos would not be found any more; to go back all the same: --yes"
                )
            if not typer.confirm("Go back?", err=True):
                stop("nothing was changed")
        return roll_back(index)


def _discard(index: str | Path) -> list[int]:
    with errors_explained():
        from indexer.maintenance.reindexing import discard_others

        return discard_others(index)


def _print_rollback(done: ReindexReport) -> None:
    echo(
        f"generation {done.generation} is current again, as it was at the switch: {done.num_kept} videos,"
        f" {done.num_jobs} jobs carried over"
    )
    echo(f"fingerprint {done.fingerprint}, before {done.former_fingerprint}")
    if done.num_hidden:
        echo(
            f"{done.num_hidden} videos are in generation {done.former_generation} only:"
            " --rollback once more returns to it, --discard-old removes it"
        )


def _print_reindexed(done: ReindexReport, discarded: list[int]) -> None:
    if done.switched:
        echo(
            f"generation {done.generation} is current now: {done.num_encoded} videos encoded"
            f" ({done.num_segments} segments), {done.num_kept} were there already,"
            f" {done.num_deleted} deleted, {done.num_jobs} jobs carried over"
        )
        echo(f"fingerprint {done.fingerprint}, before {done.former_fingerprint}")
    elif not done.missing:
        echo(f"nothing to do: the index has been made with this model and sampling ({done.fingerprint})")
    for video_id, reason in done.missing:
        echo(f"missing: {video_id}: {reason}", err=True)
    if done.missing and not done.switched:
        echo(
            f"{len(done.missing)} videos cannot be encoded, so nothing was switched: bring their files back,"
            " delete them, or leave them behind with --allow-missing; what is encoded is kept",
            err=True,
        )
    for number in discarded:
        echo(f"generation {number} was removed")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar whose total grows while videos are added."""
    from indexer.maintenance.reindexing import Progress

    num_total = 0
    with video_progress("reindexing") as count:

        def on_total(num_videos: int) -> None:
            nonlocal num_total
            num_total += num_videos

        def on_event(event: IndexEvent) -> None:
            count(num_total, event.outcome == "failed")

        yield Progress(on_total, on_event)
