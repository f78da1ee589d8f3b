"""`xclip-search reindex`. Heavy imports happen inside the command."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

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
    video_progress,
    write_report,
)

if TYPE_CHECKING:
    from indexer.ingest.pipeline import IndexEvent
    from indexer.maintenance.reindexing import Encoder, Progress, ReindexReport

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
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Go back without asking, whatever is found no more then.")
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
    """Encode all videos again, with another model or sampling, and switch the index to the result.

    The index may be served and changed meanwhile: nothing that is added, changed or deleted before the switch
    is lost, and the servers change over by themselves. After an interruption the same command goes on.
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
    if rollback:
        done = _roll_back(index, yes)
    else:
        kept = "what is encoded is kept, and the same command goes on from there"
        with errors_explained(kept), _progress() as progress:
            from indexer.maintenance.reindexing import reindex

            encoding = _Encoding(model, frames_per_second, max_segment_seconds, device)
            decoding = {
                "num_workers": workers,
                "batch_size": batch_size,
                "decode_timeout_seconds": decode_timeout_seconds,
            }
            encoder = _make_encoder(index, encoding, decoding)
            done = reindex(index, encoder, allow_missing=allow_missing, progress=progress)
    discarded = _discard(index) if discard_old and not (done.missing and not done.switched) else []
    content = {**done.to_dict(), "discarded": discarded}
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    elif rollback:
        _print_rollback(done)
    else:
        _print(done, discarded)
    write_report(report, content)
    if done.missing:
        raise typer.Exit(SOME_FAILED)


class _Encoding(NamedTuple):
    """What the user asked for; None for what the index has."""

    model: str | None
    frames_per_second: float | None
    max_segment_seconds: float | None
    device: str


def _make_encoder(index: Path, asked: _Encoding, decoding: dict[str, Any]) -> Encoder:
    from dataclasses import replace

    from indexer.index import absolute_spec
    from indexer.ingest.encoding import index_fingerprint
    from indexer.ingest.pipeline import IndexingPipeline
    from indexer.maintenance.reindexing import Encoder
    from indexer.media.sampling import Sampling
    from indexer.store.sqlite.catalog import Catalog
    from model import XClip

    with Catalog.open(index) as current:
        spec, sampling = asked.model or current.model_spec, Sampling.from_json(current.sampling_json)
    loaded = XClip.load(spec, asked.device)
    changes: dict[str, Any] = {"num_frames": loaded.config.num_frames}
    if asked.frames_per_second is not None:
        changes["frames_per_second"] = asked.frames_per_second
    if asked.max_segment_seconds is not None:
        changes["max_segment_seconds"] = asked.max_segment_seconds
    sampling = replace(sampling, **changes)
    return Encoder(
        fingerprint=index_fingerprint(loaded, sampling),
        model_spec=absolute_spec(spec),
        embedding_dim=loaded.config.embedding_dim,
        sampling=sampling,
        make_pipeline=lambda catalog: IndexingPipeline(catalog, loaded, **decoding),
    )


def _roll_back(index: Path, yes: bool) -> ReindexReport:
    """Go back, once the user knows what that hides."""
    with errors_explained():
        from indexer.maintenance.reindexing import roll_back, rollback_effect

        effect = rollback_effect(index)
        typer.echo(
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


def _discard(index: Path) -> list[int]:
    with errors_explained():
        from indexer.maintenance.reindexing import discard_others

        return discard_others(index)


def _print_rollback(done: ReindexReport) -> None:
    typer.echo(
        f"generation {done.generation} is current again, as it was at the switch: {done.num_kept} videos,"
        f" {done.num_jobs} jobs carried over"
    )
    typer.echo(f"fingerprint {done.fingerprint}, before {done.former_fingerprint}")
    if done.num_hidden:
        typer.echo(
            f"{done.num_hidden} videos are in generation {done.former_generation} only:"
            " --rollback once more returns to it, --discard-old removes it"
        )


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
