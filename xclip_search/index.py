"""`xclip-search index` and `search`, on an index here or behind a server. Heavy imports happen inside."""

from __future__ import annotations

import os
from contextlib import closing
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
    RuntimeOption,
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
from xclip_search.library import (
    LocalLibrary,
    ModelChoice,
    print_report,
    sync_progress,
    watch_library,
)
from xclip_search.videos import (
    FilterOption,
    IndexOption,
    KeyOption,
    ServerOption,
    Uploads,
    address_or_server,
    clock,
    connect,
    iso_time,
    parse_json,
)

if TYPE_CHECKING:
    from indexer.ingest.manifest import VideoSource
    from indexer.ingest.pipeline import DecodeOptions
    from service.schemas.search import MediaSearchAnswerBody, SearchAnswerBody

app = make_app()

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="demo, a directory, an official checkpoint file, openclip:ARCHITECTURE/PRETRAINED"
        " (xclip-search models lists them)"
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


class TextMatchName(StrEnum):
    """Whether words count beside meaning."""

    off = "off"
    boost = "boost"
    only = "only"


@app.command()
def index(
    context: typer.Context,
    index: IndexOption = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Video files, and folders of them; addresses such as s3://bucket/folder too."),
    ] = None,
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
        Path | None,
        typer.Option(help="JSONL or CSV that lists videos: path, id, title, metadata, transcript."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave out files and folders that match, as in .gitignore."),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete the videos below the folders whose files are gone.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be done, and change nothing.")
    ] = False,
    rehash: Annotated[
        bool,
        typer.Option("--rehash", help="Read all files, also those whose size and time are unchanged."),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep running, and follow changes in the folders.")
    ] = False,
    settle_seconds: Annotated[
        float, typer.Option(min=0.1, help="With --watch: how long a file must be unchanged.")
    ] = 5.0,
    report: ReportOption = None,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "auto",
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
        BackendName, typer.Option(help="Reader of files; auto: PyAV. decord: where it is sure to agree.")
    ] = BackendName.auto,
    decode_timeout_seconds: DecodeTimeoutOption = 300.0,
    max_hours: MaxHoursOption = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Encode on a Ray cluster, into an index in PostgreSQL: auto, local or its address.",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None,
        typer.Option(min=1, help="Processes of the cluster that encode.", show_default="as many as fit"),
    ] = None,
    ray_gpus: Annotated[float, typer.Option(min=0, help="GPUs of each of them; may be a part of one.")] = 0.0,
    ray_stall_seconds: Annotated[
        float, typer.Option(min=1, help="End where the cluster adds nothing for so long.")
    ] = 1800.0,
) -> None:
    """Bring an index in line with files and folders; created if there is none.

    New videos are added, moved files keep their videos, a file replaced in place replaces its video, and
    files that are gone are counted. What is known by path, size and time is not read again, so the same
    command resumes after an interruption, and may run every night.
    Exit status: 0 all indexed, 3 some files failed (they are listed), 2 wrong use.

    Examples:

      xclip-search index ~/clips --index my-index --model demo

      xclip-search index s3://films/2026 https://example.org/talk.mp4 --index my-index

      xclip-search index --manifest corpus.jsonl --index my-index --report report.json

      xclip-search index ~/clips --index my-index --exclude '*.part' --prune --dry-run

      xclip-search index ~/clips --index my-index --watch

      xclip-search index s3://films --index postgresql://db.example/videos --ray auto --workers 6

      xclip-search index ~/clips --server http://127.0.0.1:8000 --report report.json
    """
    local_only = (
        "model", "new_index_model", "workers", "batch_size", "device", "runtime", "frames_per_second",
        "max_segment_seconds", "backend", "decode_timeout_seconds", "max_hours", "prune", "dry_run", "rehash",
        "watch", "settle_seconds", "ray", "ray_actors", "ray_gpus", "ray_stall_seconds",
    )  # fmt: skip
    # Before PyTorch is loaded: threads that spin while they wait for each other keep decoding off processors.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    address = address_or_server(context, index, server, local_only=local_only)
    if not paths and manifest is None:
        stop("name files or folders to index, or a --manifest")
    if watch and (dry_run or manifest is not None or not paths):
        stop("--watch follows files and folders: name them, without --manifest and --dry-run")
    if watch and ray is not None:
        stop("--watch follows folders with this machine alone: leave --ray out")
    if ray == "" or (ray is None and (ray_actors is not None or ray_gpus)):
        stop("name the Ray cluster: --ray auto, --ray local or --ray HOST:PORT")
    _refuse_addresses(paths or [], watch=watch, has_server=address is None)
    with errors_explained():
        from indexer.ingest.manifest import read_manifest

        listed = None if manifest is None else read_manifest(manifest)
        sources = [] if listed is None else listed.sources
        require_report_file(report)
    if address is None:
        done = _upload(server, key, paths or [], sources, exclude or [])
    else:
        from indexer.ingest.synchronisation import SyncOptions

        sampling = {"frames_per_second": frames_per_second, "max_segment_seconds": max_segment_seconds}
        chosen = {name: value for name, value in sampling.items() if value is not None}
        decoding = _decode_options(decode_timeout_seconds, max_hours, backend)
        encoding = {"num_workers": workers, "batch_size": batch_size, "decoding": decoding}
        cluster = None
        if ray is not None:
            from indexer.index import absolute_spec
            from indexer.ingest.cluster import DEFAULT_DECODERS, ClusterOptions

            # A cluster that is made for a run says nothing of it to Ray's makers, unless the user wants that.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            named = os.environ.get("RAY_ADDRESS") if ray == "auto" else None
            cluster = ClusterOptions(
                address=named or ray,
                num_actors=ray_actors,
                num_decoders=workers or DEFAULT_DECODERS,
                num_gpus=ray_gpus,
                stall_seconds=ray_stall_seconds,
                model=None if model is None else absolute_spec(model),
                device=device,
                runtime=runtime,
                batch_size=batch_size,
                decoding=decoding,
            )
        choice = ModelChoice(model, new_index_model, device, runtime, chosen)
        library = LocalLibrary(address, paths or [], sources, choice, encoding, cluster)
        options = SyncOptions(tuple(exclude or ()), prune, dry_run, rehash, workers, decode_timeout_seconds)
        with errors_explained():
            library.prepare(options)
        if watch:
            watch_library(library, options, settle_seconds, report)
            return
        with errors_explained(RESUMES), closing(library), sync_progress() as progress:
            done = library.synchronise(options, progress).to_dict()
        if not sources and done["num_files"] == done["num_left_out"] and not done["num_missing"]:
            print_report(done)
            stop(library.no_videos())
    if listed is not None:
        done["manifest"] = listed.notes
    print_report(done)
    write_report(report, done)
    if done["num_failed"]:
        raise typer.Exit(SOME_FAILED)


def _refuse_addresses(paths: list[str], *, watch: bool, has_server: bool) -> None:
    """End the command where files at addresses are named for what works with files of this machine alone."""
    from indexer.ingest.remote_files import is_remote

    address = next(filter(is_remote, paths), None)
    if address is None:
        return
    if has_server:
        stop(
            f"{address} is not on this machine, and --server is sent files: index it with --index where the"
            " index is, or let the server fetch it (POST /videos with its url)"
        )
    if watch:
        stop(f"--watch follows folders of this machine; repeat the command for {address}")


def _upload(
    server: str | None, key: str | None, paths: list[str], sources: list[VideoSource], exclude: list[str]
) -> dict[str, Any]:
    """Send to a server what it does not have yet; what became of the files."""
    with errors_explained():
        from indexer.ingest.library import find_files, look_at
        from indexer.ingest.manifest import VideoSource
        from indexer.ingest.synchronisation import SyncReport
        from indexer.ingest.transcript_files import find_transcripts, is_transcript

        report = SyncReport(num_segments=None, decode_seconds=None, encode_seconds=None)
        listing = find_files(paths, exclude)
        report.count_listing(listing)
        wanted = {str(source.path): source for source in sources}
        _refuse_addresses(list(wanted), watch=False, has_server=True)
        beside = [file for file in listing.files if is_transcript(file.path) and not file.is_named]
        videos = [file.path for file in listing.files if file.is_named or not is_transcript(file.path)]
        found = find_transcripts(videos, beside)
        of_videos = {file.path for tracks in found.values() for _, file in tracks}
        for file in listing.files:
            if file.path in of_videos:
                continue  # It goes with its video.
            if (reason := look_at(file).left_out) is not None:
                report.count(file.path, "left out", reason)
            else:
                wanted.setdefault(file.path, VideoSource(Path(file.path)))
        if not wanted:
            stop(f"there are no videos in {', '.join(map(str, paths))}")
    if any(source.id is not None or source.uri is not None for source in sources):
        echo("note: uploads get ids from the server; id and uri of the manifest are ignored", err=True)
    with connect(server, key) as client, errors_explained(RESUMES), video_progress("indexing") as count:
        uploads = Uploads(client, report, lambda has_failed: count(len(wanted), has_failed))
        return uploads.run(list(wanted.values())).to_dict()


@app.command()
def search(
    context: typer.Context,
    text: Annotated[
        list[str] | None, typer.Argument(help="What to look for: a sentence, or a few words.")
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option("--image", "--video", help="Instead: a picture or a clip; what looks like it is found."),
    ] = None,
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
    text_match: Annotated[
        TextMatchName,
        typer.Option(
            help="Words in titles, metadata and transcripts: off; boost: they bring videos forward;"
            " only: only videos that have some."
        ),
    ] = TextMatchName.off,
    filter_json: FilterOption = None,
    without: Annotated[
        str | None, typer.Option("--not", help="What is not wanted: a part of its score is subtracted.")
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Of videos that look the same show the best, and name the others.")
    ] = False,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = "torch",  # One search takes less time than loading another one.
    as_json: JsonOption = False,
) -> None:
    """Find videos, and the moments in them, by a description of what they show.

    Examples:

      xclip-search search "a dog runs on the beach" --index my-index

      xclip-search search "rain" --index my-index --filter '{"metadata.camera": "north"}' --json

      xclip-search search "rain" --server http://127.0.0.1:8000 --limit 3

      xclip-search search "holiday crete" --index my-index --text-match boost
      xclip-search search "a boat" --not "a red boat" --index my-index

      xclip-search search --image photo.jpg --index my-index
    """
    address = address_or_server(context, index, server, local_only=("model", "device", "runtime"))
    if (text is None) == (media is None):
        stop("say what to look for: a sentence, or --image FILE, or --video FILE")
    if media is not None and (
        mode != ModeName.rerank or text_match != TextMatchName.off or without is not None
    ):
        stop("--mode, --text-match and --not are for searches by text")
    query = " ".join(text or ())
    options: dict[str, Any] = {"limit": limit, "filter": parse_json(filter_json), "fold": fold}
    if media is None:
        options |= {"mode": mode.value, "text_match": text_match.value, "without": without}
    if address is None:
        of_pages = {"thumbnail_url", "media_url", "preview_url", "playable", "explanation"}
        with connect(server, key) as client:
            found: SearchAnswerBody | MediaSearchAnswerBody
            if media is not None:
                found = client.search_media(media, **options)
            else:
                found = client.search(query, **options)
            answer = found.model_dump(exclude={"results": {"__all__": of_pages}})
    else:
        answer = _search_here(address, model, {"device": device, "runtime": runtime}, media or query, options)
    for result in answer["results"]:
        result["recorded_at"] = iso_time(result["recorded_at"])
    if as_json:
        print_json(answer)
    else:
        _print_answer(answer)


def _search_here(
    address: str | Path, model: str | None, places: dict[str, Any], asked: str | Path, options: dict[str, Any]
) -> dict[str, Any]:
    """An answer without a server.

    Args:
        address: Of the index.
        model: Spec, or None for that of the index.
        places: `device` and `runtime` of the model.
        asked: A text, or a file.
        options: Of `SearchQuery` or `SimilarQuery`.
    """
    with errors_explained():
        from indexer.search.types import SearchQuery, SimilarQuery

        # Checked before a model is loaded.
        if isinstance(asked, str):
            SearchQuery(asked, **options)
        else:
            SimilarQuery(**options)
            if not asked.is_file():
                stop(f"there is no file {asked}")
        from indexer.index import Index

        with Index.open(address, model, **places) as opened:
            if isinstance(asked, str):
                answer = asdict(opened.search(asked, **options))
            else:
                answer = asdict(opened.search_media(asked, **options))
    for result in answer["results"]:
        del result["explanation"]
    answer.pop("stale_seconds", None)  # A server says it in a header; a warning says it too.
    return answer


def _decode_options(timeout_seconds: float, max_hours: float | None, backend: BackendName) -> DecodeOptions:
    from indexer.ingest.pipeline import DecodeOptions
    from indexer.media.probing import MediaLimits

    limits = None if max_hours is None else MediaLimits(max_duration_seconds=3600 * max_hours)
    return DecodeOptions(timeout_seconds, limits, backend.value)


def _hit_text(hit: dict[str, Any]) -> str:
    """Where a word is, for the table of results."""
    where = f"at {clock(hit['start_seconds'])}" if hit["field"] == "transcript" else f"in the {hit['field']}"
    return f"  {where}: {printable(hit['text'])}"


def _copies_text(result: dict[str, Any]) -> list[str]:
    """What looks the same, for the table of results."""
    ids = [copy["id"] for copy in result.get("copies", ())]
    num_further = result.get("num_copies", 0) - len(ids)
    if not ids:
        return []
    return [f"  looks the same: {', '.join(ids)}{f' and {num_further} more' if num_further else ''}"]


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
    has_parts = any(score is not None for result in results for score in result["scores"].values())
    for name in results[0]["scores"] if has_parts else ():
        table.add_column(name.replace("_", " "), justify="right", width=len("sentence"))
    table.add_column("moments", no_wrap=True)
    for result in results:
        parts = result["scores"].values() if has_parts else ()
        scores = [f"{score:.2f}" if score is not None else "-" for score in parts]
        moments = " ".join(clock(moment["time_seconds"]) for moment in result["moments"])
        hits = map(_hit_text, result.get("text_hits", ()))
        lines = [printable(result["title"] or result["id"]), *hits, *_copies_text(result)]
        title = escape("\n".join(lines))
        table.add_row(str(result["rank"]), title, f"{result['score']:.2f}", *scores, moments)
    Console().print(table)
    took = f" in {1000 * answer['timings']['total_seconds']:.0f} ms" if "timings" in answer else ""
    echo(f"{len(results)} of {answer['num_videos']} videos{took}")
