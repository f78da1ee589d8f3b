"""`xclip-search index`, `search` and `info`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xclip_search.console import (
    GOES_ON,
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
    from indexer.ingest.manifest import VideoSource
    from indexer.ingest.pipeline import IndexReport
    from indexer.media.sampling import Sampling
    from indexer.search.types import SearchAnswer
    from indexer.store.sqlite.catalog import Catalog
    from model import XClip

app = make_app()

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="demo, a directory, an official checkpoint file, openclip:ARCHITECTURE/PRETRAINED"
        " or hf-hub:OWNER/NAME.",
        show_default="the model that made the index",
    ),
]
FilterOption = Annotated[
    str | None,
    typer.Option("--filter", help='Only such videos, as JSON: \'{"metadata.camera": "north"}\''),
]


class BackendName(StrEnum):
    """How trusted files are read."""

    auto = "auto"
    pyav = "pyav"
    decord = "decord"


class ModeName(StrEnum):
    """How videos are found."""

    rerank = "rerank"
    coarse = "coarse"
    exhaustive = "exhaustive"


@app.command()
def index(
    index: IndexOption,
    paths: Annotated[list[Path] | None, typer.Argument(help="Video files, and folders of them.")] = None,
    model: ModelOption = None,
    new_index_model: Annotated[
        str | None,
        typer.Option(
            envvar="XCLIP_NEW_INDEX_MODEL",
            help="As --model, where an index is made; one that is there keeps its own.",
        ),
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="JSONL or CSV that lists videos: path, id, title, metadata.")
    ] = None,
    report: ReportOption = None,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = "auto",
    frames_per_second: Annotated[
        float | None,
        typer.Option(help="Frames looked at per second of video.", show_default="the index's own, or 1"),
    ] = None,
    max_segment_seconds: Annotated[
        float | None,
        typer.Option(
            help="Cut longer videos into segments; 0: never.", show_default="the index's own, or 60"
        ),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option(help="Reader of files; auto: decord or PyAV, whichever is better.")
    ] = BackendName.auto,
    decode_timeout_seconds: DecodeTimeoutOption = 300.0,
) -> None:
    """Add videos to an index, which is made where there is none.

    What is in it already is skipped by content, so the same command again goes on after an interruption.
    Exit status: 0 all in, 3 some files failed (they are listed), 2 wrong use.

    Examples:

      xclip-search index ~/clips --index my-index --model demo

      xclip-search index --manifest corpus.jsonl --index my-index --report report.json
    """
    with errors_explained():
        sources = find_sources(paths or [], manifest)
        _refuse_a_folder_of_videos(index, sources)
        require_report_file(report)
    done: IndexReport | None = None
    while done is None:
        with errors_explained():
            loaded, catalog, sampling = _open_for_writing(
                index, model, new_index_model, device, frames_per_second, max_segment_seconds
            )
        from indexer.errors import IndexSupersededError
        from indexer.ingest.pipeline import IndexingPipeline

        with errors_explained(GOES_ON), catalog:
            pipeline = IndexingPipeline(
                catalog,
                loaded,
                sampling,
                num_workers=workers,
                batch_size=batch_size,
                decode_timeout_seconds=decode_timeout_seconds,
                backend=backend.value,
            )
            try:
                with video_progress("indexing") as count:
                    done = pipeline.run(sources, lambda event: count(len(sources), event.outcome == "failed"))
            except IndexSupersededError:
                typer.echo("the index was encoded again meanwhile; going on with its new model", err=True)
                continue
            _save_coarse_index(catalog)
    _print_report(done)
    write_report(report, done.to_dict())
    if done.num_failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
def search(
    text: Annotated[list[str], typer.Argument(help="What to look for: a sentence, or a few words.")],
    index: IndexOption,
    limit: Annotated[int, typer.Option("--limit", "-k", help="Number of videos.")] = 10,
    mode: Annotated[
        ModeName,
        typer.Option(
            help="rerank: all scores on candidates; coarse: one score on all; exhaustive: all scores on all."
        ),
    ] = ModeName.rerank,
    filter_json: FilterOption = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find videos, and the moments in them, by what is to be seen.

    Examples:

      xclip-search search "a dog runs on the beach" --index my-index

      xclip-search search "rain" --index my-index --filter '{"metadata.camera": "north"}' --json
    """
    with errors_explained():
        from indexer.search.types import SearchQuery

        query = SearchQuery(" ".join(text), limit=limit, mode=mode.value, filter=parse_json(filter_json))
        from indexer.store.sqlite.catalog import Catalog

        with Catalog.open(index) as catalog:
            spec = model or catalog.model_spec
        from indexer.search.searcher import Searcher
        from model import XClip

        with Searcher(index, XClip.load(spec, device)) as searcher:
            answer = searcher.search(query)
    if as_json:
        typer.echo(json.dumps(answer_to_dict(answer), indent=2, ensure_ascii=False))
    else:
        print_answer(answer)


@app.command()
def info(index: IndexOption, as_json: JsonOption = False) -> None:
    """Print what an index holds.

    Examples:

      xclip-search info --index my-index
    """
    with errors_explained():
        from indexer.store.sqlite.catalog import Catalog
        from indexer.store.sqlite.generations import generations

        with Catalog.open(index) as catalog:
            num_videos, num_segments = catalog.totals()
            facts: dict[str, Any] = {
                "num_videos": num_videos,
                "num_segments": num_segments,
                "sequence": catalog.sequence,
                "model_spec": catalog.model_spec,
                "sampling": json.loads(catalog.sampling_json),
                "embedding_dim": catalog.embedding_dim,
                "num_frames": catalog.num_frames,
                "fingerprint": catalog.fingerprint,
                "created_at": catalog.created_at,
                "catalog_size_bytes": catalog.size_bytes,
                "generation": catalog.generation,
                "other_generations": [n for n in generations(index) if n != catalog.generation],
            }
    print_facts(facts, as_json)


def print_facts(facts: dict[str, Any], as_json: bool) -> None:
    """What `info` prints. What is None is not known."""
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    facts = {name: value for name, value in facts.items() if value is not None}
    if "created_at" in facts:
        facts["created_at"] = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(facts["created_at"]))
    if "sampling" in facts:
        facts["sampling"] = ", ".join(f"{name} {value}" for name, value in facts["sampling"].items())
    if "other_generations" in facts:
        facts["other_generations"] = ", ".join(map(str, facts["other_generations"])) or "none"
    for name, value in facts.items():
        typer.echo(f"{name:20}{value}")


def parse_json(text: str | None) -> Any:
    """The value of --filter; ends the command where it is not JSON."""
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        stop(
            f"--filter is not JSON: {error}; write it in single quotes, such as"
            """ --filter '{"metadata.camera": "north"}'"""
        )


def find_sources(paths: list[Path], manifest: Path | None) -> list[VideoSource]:
    """What `index` was told to add; ends the command where that is nothing."""
    from indexer.ingest.manifest import find_videos, read_manifest

    if not paths and manifest is None:
        stop("name files or folders to index, or a --manifest")
    try:
        sources = find_videos(paths)
    except FileNotFoundError as error:
        stop(str(error))
    if paths and not sources:
        stop(f"there are no videos in {', '.join(map(str, paths))}")
    if manifest is not None:
        sources += read_manifest(manifest)
    return sources


def _refuse_a_folder_of_videos(directory: Path, sources: list[VideoSource]) -> None:
    """End the command where the files of a new index would lie among the videos."""
    from indexer.store.sqlite.generations import index_exists

    folders = {source.path.parent for source in sources}
    if not index_exists(directory) and directory.resolve() in {folder.resolve() for folder in folders}:
        stop(
            f"{directory} is a folder of videos, and an index wants one of its own: --index my-index makes it"
        )


def _open_for_writing(
    directory: Path,
    spec: str | None,
    new_index_spec: str | None,
    device: str,
    frames_per_second: float | None,
    max_segment_seconds: float | None,
) -> tuple[XClip, Catalog, Sampling]:
    """The model, the catalog made for it, and its sampling: the index's own but for the options given."""
    from dataclasses import replace

    from indexer.errors import IndexNotFoundError
    from indexer.media.sampling import Sampling
    from indexer.store.sqlite.catalog import Catalog

    sampling: Sampling | None = None
    try:
        with Catalog.open(directory) as existing:
            spec = spec or existing.model_spec
            sampling = Sampling.from_json(existing.sampling_json)
    except IndexNotFoundError:
        if directory.exists() and not directory.is_dir():
            stop(f"{directory} is not a folder")
        spec = spec or new_index_spec
        if spec is None:
            stop(f"there is no index in {directory} yet: say with --model for which model to make it")
    from indexer.ingest.encoding import index_fingerprint
    from model import XClip

    loaded = XClip.load(spec, device)
    chosen: dict[str, Any] = {
        name: value
        for name, value in (
            ("frames_per_second", frames_per_second),
            ("max_segment_seconds", max_segment_seconds),
        )
        if value is not None
    }
    sampling = replace(sampling or Sampling(loaded.config.num_frames), **chosen)
    catalog = Catalog.open_or_create(
        directory,
        fingerprint=index_fingerprint(loaded, sampling),
        model_spec=stored_spec(spec),
        embedding_dim=loaded.config.embedding_dim,
        num_frames=loaded.config.num_frames,
        sampling_json=sampling.to_json(),
    )
    return loaded, catalog, sampling


def _save_coarse_index(catalog: Catalog) -> None:
    """So that the next search or server starts at once. It makes its own where this fails."""
    from contextlib import suppress

    from indexer.coarse.index import CoarseIndex

    with suppress(OSError):
        coarse = CoarseIndex.open(catalog)
        coarse.compact()
        coarse.save()


def _print_report(done: IndexReport) -> None:
    typer.echo(
        f"{done.num_added} added ({done.num_segments} segments), {done.num_skipped} were in already,"
        f" {done.num_failed} failed; {done.seconds:.1f} s"
        f" (encoding {done.encode_seconds:.1f} s, decoding {done.decode_seconds:.1f} s in all workers)"
    )
    if done.num_partial:
        typer.echo(f"{done.num_partial} of the added are damaged or cut off and were used as far as they go")
    for path, reason in done.failures:
        typer.echo(f"failed: {path}: {reason}", err=True)


def answer_to_dict(answer: SearchAnswer) -> dict[str, Any]:
    """What `search --json` prints."""
    values = asdict(answer)
    for result in values["results"]:
        del result["explanation"]
    return values


def print_answer(answer: SearchAnswer) -> None:
    """What `search` prints: a table of the results."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for warning in answer.warnings:
        typer.echo(f"note: {warning}", err=True)
    if not answer.results:
        typer.echo("nothing found" if answer.num_videos else "the index is empty")
        return
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("title", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    for name in answer.results[0].scores:
        table.add_column(name.replace("_", " "), justify="right", width=len("sentence"))
    table.add_column("moments", no_wrap=True)
    for result in answer.results:
        scores = [f"{score:.2f}" if score is not None else "-" for score in result.scores.values()]
        moments = " ".join(clock(moment.time_seconds) for moment in result.moments)
        title = result.title or result.id
        table.add_row(str(result.rank), escape(title), f"{result.score:.2f}", *scores, moments)
    console.print(table)
    typer.echo(
        f"{len(answer.results)} of {answer.num_videos} videos in {answer.timings.total_seconds * 1000:.0f} ms"
    )


def clock(seconds: float) -> str:
    """`75.3` as `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
