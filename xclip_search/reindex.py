"""`xclip-search reindex`. Heavy imports happen inside the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xclip_search.console import (
    SOME_FAILED,
    BatchSizeOption,
    DecodeTimeoutOption,
    DeviceOption,
    IndexOption,
    JsonOption,
    ReportOption,
    WorkersOption,
    errors_explained,
    make_app,
    require_report_file,
    stop,
    stored_spec,
    video_progress,
    write_report,
)

if TYPE_CHECKING:
    from indexer.ingest.pipeline import IndexEvent, IndexingPipeline
    from indexer.maintenance.reindexing import MakePipeline, Progress, ReindexReport
    from indexer.media.sampling import Sampling
    from indexer.store.sqlite.catalog import Catalog
    from model import XClip

app = make_app()


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
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = "auto",
    decode_timeout_seconds: DecodeTimeoutOption = 300.0,
    report: ReportOption = None,
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
    with errors_explained(kept), _progress() as progress:
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
    with errors_explained():
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
    """A bar whose end moves on while videos come in."""
    from indexer.maintenance.reindexing import Progress

    num_total = 0
    with video_progress("reindexing") as count:

        def on_total(num_videos: int) -> None:
            nonlocal num_total
            num_total += num_videos

        def on_event(event: IndexEvent) -> None:
            count(num_total, event.outcome == "failed")

        yield Progress(on_total, on_event)
