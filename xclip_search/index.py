"""`xclip-search index` and `search`, on an index here or behind a server. Heavy imports happen inside."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xclip_search.console import (
    RESUMES,
    SOME_FAILED,
    BatchSizeOption,
    DecodeTimeoutOption,
    DeviceOption,
    JsonOption,
    MaxHoursOption,
    ReportOption,
    WorkersOption,
    echo,
    errors_explained,
    make_app,
    print_json,
    printable,
    require_report_file,
    stop,
    video_progress,
    write_report,
)
from xclip_search.videos import (
    FilterOption,
    IndexOption,
    KeyOption,
    ServerOption,
    Uploads,
    clock,
    connect,
    directory_or_server,
    iso_time,
    parse_json,
)

if TYPE_CHECKING:
    from indexer.index import Index
    from indexer.ingest.manifest import VideoSource
    from indexer.ingest.pipeline import DecodeOptions

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
    context: typer.Context,
    index: IndexOption = None,
    paths: Annotated[list[Path] | None, typer.Argument(help="Video files, and folders of them.")] = None,
    server: ServerOption = None,
    key: KeyOption = None,
    model: ModelOption = None,
    new_index_model: Annotated[
        str | None,
        typer.Option(
            envvar="XCLIP_NEW_INDEX_MODEL",
            help="Like --model, but for a new index only; an existing one keeps its model.",
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
        typer.Option(help="Frames sampled per second of video.", show_default="the index's own, or 1"),
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
    max_hours: MaxHoursOption = None,
) -> None:
    """Add videos to an index, which is created if there is none.

    What is in it already is skipped by content, so the same command resumes after an interruption.
    Exit status: 0 all indexed, 3 some files failed (they are listed), 2 wrong use.

    Examples:

      xclip-search index ~/clips --index my-index --model demo

      xclip-search index --manifest corpus.jsonl --index my-index --report report.json

      xclip-search index ~/clips --server http://127.0.0.1:8000 --report report.json
    """
    local_only = (
        "model", "new_index_model", "workers", "batch_size", "device", "frames_per_second",
        "max_segment_seconds", "backend", "decode_timeout_seconds", "max_hours",
    )  # fmt: skip
    directory = directory_or_server(context, index, server, local_only=local_only)
    with errors_explained():
        sources, notes = _find_sources(paths or [], manifest)
        if directory is not None:
            _refuse_a_folder_of_videos(directory, sources)
        require_report_file(report)
    if directory is None:
        if any(source.id is not None or source.uri is not None for source in sources):
            echo("note: uploads get ids of the server's; id and uri of the manifest are left out", err=True)
        with connect(server, key) as client, errors_explained(RESUMES), video_progress("indexing") as count:
            done = Uploads(client, lambda has_failed: count(len(sources), has_failed)).run(sources).to_dict()
    else:
        sampling = {"frames_per_second": frames_per_second, "max_segment_seconds": max_segment_seconds}
        options = {
            "num_workers": workers,
            "batch_size": batch_size,
            "decoding": _decode_options(decode_timeout_seconds, max_hours, backend),
        }
        chosen = {name: value for name, value in sampling.items() if value is not None}
        while True:
            with errors_explained():
                opened = _open_or_create(directory, model, new_index_model, device, chosen)
            with errors_explained(RESUMES), opened, video_progress("indexing") as count:
                from indexer.errors import IndexSupersededError

                try:
                    done = opened.add_all(
                        sources, lambda event: count(len(sources), event.outcome == "failed"), **options
                    ).to_dict()
                    break
                except IndexSupersededError:
                    echo("the index was reindexed meanwhile; continuing with its new model", err=True)
    if manifest is not None:
        done["manifest"] = notes
    _print_report(done)
    write_report(report, done)
    if done["num_failed"]:
        raise typer.Exit(SOME_FAILED)


@app.command()
def search(
    context: typer.Context,
    text: Annotated[list[str], typer.Argument(help="What to look for: a sentence, or a few words.")],
    index: IndexOption = None,
    server: ServerOption = None,
    key: KeyOption = None,
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
    """Find videos, and the moments in them, by a description of what they show.

    Examples:

      xclip-search search "a dog runs on the beach" --index my-index

      xclip-search search "rain" --index my-index --filter '{"metadata.camera": "north"}' --json

      xclip-search search "rain" --server http://127.0.0.1:8000 --limit 3
    """
    directory = directory_or_server(context, index, server, local_only=("model", "device"))
    query, conditions = " ".join(text), parse_json(filter_json)
    if directory is None:
        of_pages = {"thumbnail_url", "media_url", "preview_url", "playable", "explanation"}
        with connect(server, key) as client:
            found = client.search(query, limit=limit, mode=mode.value, filter=conditions)
            answer = found.model_dump(exclude={"results": {"__all__": of_pages}})
    else:
        with errors_explained():
            from indexer.search.types import SearchQuery

            # Checked before a model is loaded.
            wanted = SearchQuery(query, limit=limit, mode=mode.value, filter=conditions)
            from indexer.index import Index

            with Index.open(directory, model, device=device) as opened:
                answer = asdict(opened.searcher.search(wanted))
        for result in answer["results"]:
            del result["explanation"]
    for result in answer["results"]:
        result["recorded_at"] = iso_time(result["recorded_at"])
    if as_json:
        print_json(answer)
    else:
        _print_answer(answer)


def _decode_options(timeout_seconds: float, max_hours: float | None, backend: BackendName) -> DecodeOptions:
    from indexer.ingest.pipeline import DecodeOptions
    from indexer.media.probing import MediaLimits

    limits = None if max_hours is None else MediaLimits(max_duration_seconds=3600 * max_hours)
    return DecodeOptions(timeout_seconds, limits, backend.value)


def _find_sources(paths: list[Path], manifest: Path | None) -> tuple[list[VideoSource], list[str]]:
    """The files to add, and what the manifest's reader has to say; ends the command where there are none."""
    from indexer.ingest.manifest import find_videos, read_manifest

    if not paths and manifest is None:
        stop("name files or folders to index, or a --manifest")
    try:
        sources = find_videos(paths)
    except FileNotFoundError as error:
        stop(str(error))
    if paths and not sources:
        stop(f"there are no videos in {', '.join(map(str, paths))}")
    if manifest is None:
        return sources, []
    listed = read_manifest(manifest)
    return sources + listed.sources, listed.notes


def _refuse_a_folder_of_videos(directory: Path, sources: list[VideoSource]) -> None:
    """End the command where the files of a new index would lie among the videos."""
    from indexer.store.store import store_exists

    folders = {source.path.parent for source in sources}
    if not store_exists(directory) and directory.resolve() in {folder.resolve() for folder in folders}:
        stop(
            f"{directory} is a folder of videos, and an index needs one of its own: --index my-index makes it"
        )


def _open_or_create(
    directory: Path, spec: str | None, new_index_spec: str | None, device: str, sampling: dict[str, float]
) -> Index:
    from indexer.store.store import store_exists

    if not store_exists(directory):
        if directory.exists() and not directory.is_dir():
            stop(f"{directory} is not a folder")
        spec = spec or new_index_spec
        if spec is None:
            stop(f"there is no index in {directory} yet: say with --model for which model to make it")
    from indexer.index import Index

    return Index.open_or_create(directory, spec, device=device, **sampling)


def _print_report(done: dict[str, Any]) -> None:
    """What was done; a server does not say all of it."""
    for note in done.get("manifest", ()):
        echo(f"manifest: {note}")
    segments = times = ""
    if done["num_segments"] is not None:
        segments = f" ({done['num_segments']} segments)"
        encoding, decoding = done["encode_seconds"], done["decode_seconds"]
        times = f" (encoding {encoding:.1f} s, decoding {decoding:.1f} s in all workers)"
    echo(
        f"{done['num_added']} added{segments}, {done['num_skipped']} already indexed,"
        f" {done['num_failed']} failed; {done['seconds']:.1f} s{times}"
    )
    if done["num_partial"]:
        echo(
            f"{done['num_partial']} of the added are damaged or truncated and were indexed as far as they go"
        )
    for failure in done["failures"]:
        echo(f"failed: {failure['path']}: {failure['reason']}", err=True)


def _print_answer(answer: dict[str, Any]) -> None:
    """A table of the results."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    for warning in answer["warnings"]:
        echo(f"note: {warning}", err=True)
    results = answer["results"]
    if not results:
        echo("nothing found" if answer["num_videos"] else "the index is empty")
        return
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("title", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    for name in results[0]["scores"]:
        table.add_column(name.replace("_", " "), justify="right", width=len("sentence"))
    table.add_column("moments", no_wrap=True)
    for result in results:
        scores = [f"{score:.2f}" if score is not None else "-" for score in result["scores"].values()]
        moments = " ".join(clock(moment["time_seconds"]) for moment in result["moments"])
        title = escape(printable(result["title"] or result["id"]))
        table.add_row(str(result["rank"]), title, f"{result['score']:.2f}", *scores, moments)
    Console().print(table)
    milliseconds = answer["timings"]["total_seconds"] * 1000
    echo(f"{len(results)} of {answer['num_videos']} videos in {milliseconds:.0f} ms")
