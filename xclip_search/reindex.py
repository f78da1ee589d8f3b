"""`xclip-search reindex`. Heavy imports happen inside the command."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xclip_search.console import (
    SOME_FAILED,
    IndexOption,
    JsonOption,
    require_report_file,
    stop,
    stored_spec,
    trouble_explained,
    write_report,
    wrong_use_explained,
)

if TYPE_CHECKING:
    from indexer.ingest.pipeline import IndexEvent, IndexingPipeline
    from indexer.maintenance.reindexing import MakePipeline, Progress, ReindexReport
    from indexer.media.sampling import Sampling
    from indexer.store.sqlite.catalog import Catalog
    from model import XClip

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
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
        typer.Option(help="Frames looked at per second of video.", show_default="the index's own"),
    ] = None,
    max_segment_seconds: Annotated[
        float | None,
        typer.Option(help="Cut longer videos into segments; 0: never.", show_default="the index's own"),
    ] = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Go back to the generation that was current before.")
    ] = False,
    discard_old: Annotated[
        bool,
        typer.Option(
            "--discard-old", help="At the end, remove all other generations: there is no way back then."
        ),
    ] = False,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Switch though some videos cannot be read any more."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that decode.", show_default="by the number of processors"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Segments encoded at once.", show_default="8, on a GPU 32")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")] = (
        "auto"
    ),
    decode_timeout_seconds: Annotated[
        float, typer.Option(min=1, help="Seconds that decoding one file may take.")
    ] = 300.0,
    report: Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Encode all videos anew, with another model or sampling, beside the index as it is, and switch to that.

    The index may be served and changed meanwhile: nothing that is added, changed or deleted is lost, and the
    servers change over by themselves. After an interruption the same command goes on.
    Exit status: 0 switched, or there was nothing to do; 3 some videos cannot be read (they are listed), and
    without --allow-missing nothing was switched; 2 wrong use.

    Examples:

      xclip-search reindex --index my-index --model openclip:ViT-B-32-quickgelu/openai

      xclip-search reindex --index my-index --rollback
    """
    if rollback and (model or frames_per_second is not None or max_segment_seconds is not None):
        stop("--rollback goes back to what there was: it takes no model and no sampling")
    require_report_file(report)
    kept = "what is encoded is kept, and the same command goes on from there"
    with wrong_use_explained(), trouble_explained(kept), _progress() as progress:
        from dataclasses import replace

        from indexer.media.sampling import Sampling
        from model import XClip

        former_spec, sampling_json = _read_facts(index, of_former=rollback)
        spec = model or former_spec
        loaded = XClip.load(spec, device)
        changes: dict[str, Any] = {"num_frames": loaded.config.num_frames}
        if frames_per_second is not None:
            changes["frames_per_second"] = frames_per_second
        if max_segment_seconds is not None:
            changes["max_segment_seconds"] = max_segment_seconds

        def make_pipeline(catalog: Catalog) -> IndexingPipeline:
            from indexer.ingest.pipeline import IndexingPipeline

            return IndexingPipeline(
                catalog,
                loaded,
                Sampling.from_json(catalog.sampling_json),
                num_workers=workers,
                batch_size=batch_size,
                decode_timeout_seconds=decode_timeout_seconds,
            )

        sampling = replace(Sampling.from_json(sampling_json), **changes)
        done = _run(index, loaded, spec, sampling, make_pipeline, allow_missing, rollback, progress)
    discarded = _discard(index) if discard_old and not (done.missing and not done.switched) else []
    content = {**done.to_dict(), "discarded": discarded}
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    else:
        _print(done, discarded)
    write_report(report, content)
    if done.missing:
        raise typer.Exit(SOME_FAILED)


def _run(
    index: Path,
    model: XClip,
    spec: str,
    sampling: Sampling,
    make_pipeline: MakePipeline,
    allow_missing: bool,
    rollback: bool,
    progress: Progress,
) -> ReindexReport:
    from indexer.ingest.encoding import index_fingerprint
    from indexer.maintenance.reindexing import reindex, roll_back

    if rollback:
        return roll_back(index, make_pipeline=make_pipeline, allow_missing=allow_missing, progress=progress)
    return reindex(
        index,
        fingerprint=index_fingerprint(model, sampling),
        model_spec=stored_spec(spec),
        embedding_dim=model.config.embedding_dim,
        sampling=sampling,
        make_pipeline=make_pipeline,
        allow_missing=allow_missing,
        progress=progress,
    )


def _read_facts(index: Path, *, of_former: bool) -> tuple[str, str]:
    """Model spec and sampling of the current generation, or of the one before it."""
    from indexer.maintenance.reindexing import former_generation
    from indexer.store.sqlite.catalog import Catalog

    with Catalog.open(index) as current:
        if not of_former:
            return current.model_spec, current.sampling_json
        number = former_generation(index, current)
    if number is None:
        stop(f"the index in {index} has no former generation to go back to")
    with Catalog.open_generation(index, number) as former:
        return former.model_spec, former.sampling_json


def _discard(index: Path) -> list[int]:
    with wrong_use_explained():
        from indexer.maintenance.reindexing import discard_others

        return discard_others(index)


def _print(done: ReindexReport, discarded: list[int]) -> None:
    if done.switched:
        typer.echo(
            f"generation {done.generation} is current now: {done.num_encoded} videos encoded"
            f" ({done.num_segments} segments), {done.num_kept} were there already,"
            f" {done.num_deleted} deleted, {done.num_jobs} jobs carried over"
        )
        typer.echo(f"fingerprint {done.fingerprint}, before {done.former_fingerprint}")
    elif not done.missing:
        typer.echo(
            f"nothing to do: the index has been made with this model and sampling ({done.fingerprint})"
        )
    for video_id, reason in done.missing:
        typer.echo(f"missing: {video_id}: {reason}", err=True)
    if done.missing and not done.switched:
        typer.echo(
            f"{len(done.missing)} videos cannot be encoded, so nothing was switched: bring their files back,"
            " delete them, or leave them behind with --allow-missing; what is encoded is kept",
            err=True,
        )
    for number in discarded:
        typer.echo(f"generation {number} was removed")


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the terminal with videos/s, failures and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from indexer.maintenance.reindexing import Progress

    columns = (
        TextColumn("reindexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} videos/s"),
        TextColumn("{task.fields[failed]} failed"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    counts = {"total": 0, "done": 0, "failed": 0}
    console = Console(stderr=True)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reindexing", total=None, rate=0.0, failed=0)

        def on_total(num_videos: int) -> None:
            counts["total"] += num_videos
            bar.update(task, total=counts["total"])

        def on_event(event: IndexEvent) -> None:
            counts["done"] += 1
            counts["failed"] += event.outcome == "failed"
            rate = counts["done"] / max(1e-6, time.monotonic() - started)
            bar.update(task, advance=1, rate=rate, failed=counts["failed"])

        yield Progress(on_total, on_event)
