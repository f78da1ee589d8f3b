"""`xclip-search list`, `delete` and `info`, on an index here or behind a server; and uploads to a server.

Heavy imports happen inside the commands.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xclip_search.console import (
    FAILED,
    INDEX_HELP,
    SOME_FAILED,
    JsonOption,
    echo,
    errors_explained,
    index_address,
    make_app,
    print_json,
    stop,
)

if TYPE_CHECKING:
    from indexer.ingest.manifest import VideoSource
    from indexer.ingest.pipeline import Outcome
    from indexer.ingest.synchronisation import SyncReport
    from indexer.ingest.transcript_files import Tracks
    from indexer.store.records import VideoRecord
    from xclip_search.client import Client

app = make_app()

MAX_PENDING = 64
"""Uploads that wait to be read by the server, before the next one is sent."""

PANEL = "An index behind a server"

IndexOption = Annotated[
    str | None,
    typer.Option(
        "--index",
        "-i",
        envvar="XCLIP_INDEX",
        help=INDEX_HELP,
        show_default="none: see --server",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--server",
        "-s",
        envvar="XCLIP_SERVER",
        help="Instead of --index: the address of a server, such as http://127.0.0.1:8000.",
        rich_help_panel=PANEL,
    ),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="XCLIP_KEY",
        help="API key for the server. Better in the environment, where other users do not see it.",
        show_default=False,
        show_envvar=True,
        rich_help_panel=PANEL,
    ),
]
FilterOption = Annotated[
    str | None,
    typer.Option(
        "--filter", help='Only videos that match this filter, JSON: \'{"metadata.camera": "north"}\''
    ),
]


class SortName(StrEnum):
    """Orders of a list."""

    added_last = "-added_at"
    added_first = "added_at"
    recorded_last = "-recorded_at"
    recorded_first = "recorded_at"


@app.command("list")
def list_videos(
    context: typer.Context,
    index: IndexOption = None,
    server: ServerOption = None,
    key: KeyOption = None,
    limit: Annotated[int, typer.Option("--limit", "-k", min=1, help="The most videos to list.")] = 50,
    filter_json: FilterOption = None,
    sort: Annotated[
        SortName,
        typer.Option(help="By when they were added or recorded; with a minus sign the latest first."),
    ] = SortName.added_last,
    as_json: JsonOption = False,
) -> None:
    """List the videos of an index: ids, lengths, when they were recorded, titles.

    Examples:

      xclip-search list --index my-index --limit 5

      xclip-search list --index my-index --filter '{"duration_seconds": {"gt": 60}}' --json

      xclip-search list --index my-index --sort=-recorded_at --filter '{"recorded_at": {"gte": "2024-05-01"}}'

      xclip-search list --server http://127.0.0.1:8000
    """
    address = address_or_server(context, index, server)
    conditions = parse_json(filter_json)
    if address is None:
        with connect(server, key) as client:
            videos = [
                video.model_dump(
                    mode="json", exclude={"thumbnail_url", "media_url", "preview_url", "playable"}
                )
                | {
                    name: iso_time(getattr(video, name))
                    for name in ("added_at", "recorded_at", "missing_since")
                }
                for video in islice(client.videos(filter=conditions, sort=sort.value), limit)
            ]
            num_videos = client.stats().num_videos
    else:
        with errors_explained():
            from indexer.store.filters import parse_filter
            from indexer.store.store import open_store

            chosen = None if conditions is None else parse_filter(conditions)
            with open_store(address) as catalog:
                videos = [
                    _facts(record) for record in catalog.list_videos(limit, chosen=chosen, sort=sort.value)
                ]
                num_videos = catalog.num_videos
    if as_json:
        print_json({"num_videos": num_videos, "videos": videos})
        return
    width = max((len(video["id"]) for video in videos), default=0)
    for video in videos:
        recorded_on = (video["recorded_at"] or "")[:10]
        length = clock(video["duration_seconds"])
        echo(f"{video['id']:<{width}}  {length:>7}  {recorded_on:10}  {video['title'] or ''}")
    echo(f"{len(videos)} of {num_videos} videos", err=True)


@app.command()
def delete(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(help="Ids of videos, as `list` shows them.", metavar="ID...")],
    index: IndexOption = None,
    server: ServerOption = None,
    key: KeyOption = None,
    keep_out: Annotated[
        bool,
        typer.Option("--keep-out", help="Do not add the same content again, until `kept-out --let-in ID`."),
    ] = False,
) -> None:
    """Remove videos from an index, which may be in use.

    Files that were indexed in place stay there, and the next `index` run over them adds them again, but for
    --keep-out; the file of an upload is removed by the server.

    Exit status: 0 all deleted, 3 some ids are of no video (they are listed), 2 wrong use.

    Examples:

      xclip-search delete 0f5c2a7e9b31 --index my-index --keep-out

      xclip-search delete 0f5c2a7e9b31 --server http://127.0.0.1:8000
    """
    address = address_or_server(context, index, server)
    unknown = []
    if address is None:
        from xclip_search.client_errors import NotFoundError

        with connect(server, key) as client:
            for video_id in dict.fromkeys(ids):
                try:
                    client.delete_video(video_id, keep_out=keep_out)
                except NotFoundError:
                    unknown.append(video_id)
    else:
        with errors_explained():
            from indexer.errors import VideoNotFoundError
            from indexer.store.store import open_store

            with open_store(address) as catalog:
                for video_id in dict.fromkeys(ids):
                    try:
                        catalog.delete_video(video_id, keep_out=keep_out)
                    except VideoNotFoundError:
                        unknown.append(video_id)
    echo(f"{len(set(ids)) - len(unknown)} deleted")
    for video_id in unknown:
        echo(f"failed: {video_id}: no video has this id", err=True)
    if unknown:
        raise typer.Exit(SOME_FAILED)


@app.command()
def info(
    context: typer.Context,
    index: IndexOption = None,
    server: ServerOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what an index holds.

    Examples:

      xclip-search info --index my-index

      xclip-search info --server http://127.0.0.1:8000 --json
    """
    address = address_or_server(context, index, server)
    facts: dict[str, Any] = dict.fromkeys(
        (
            "num_videos", "num_segments", "sequence", "model_spec", "sampling", "embedding_dim", "num_frames",
            "fingerprint", "created_at", "catalog_size_bytes", "generation", "other_generations",
        )
    )  # fmt: skip
    if address is None:
        with connect(server, key) as client:
            answer = client.stats().model_dump()
            facts |= {
                name: answer[name] for name in facts if name in answer
            }  # The rest, a server does not say.
    else:
        with errors_explained():
            from indexer.store.store import open_store

            with open_store(address) as catalog:
                facts["num_videos"], facts["num_segments"] = catalog.totals()
                facts |= {
                    "sequence": catalog.sequence,
                    "model_spec": catalog.model_spec,
                    "sampling": json.loads(catalog.sampling_json),
                    "embedding_dim": catalog.embedding_dim,
                    "num_frames": catalog.num_frames,
                    "fingerprint": catalog.fingerprint,
                    "created_at": catalog.created_at,
                    "catalog_size_bytes": catalog.size_bytes,
                    "generation": catalog.generation,
                    "other_generations": [n for n in catalog.generations() if n != catalog.generation],
                }
    if as_json:
        print_json(facts)
        return
    facts = {name: value for name, value in facts.items() if value is not None}
    if "created_at" in facts:
        facts["created_at"] = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(facts["created_at"]))
    if "sampling" in facts:
        facts["sampling"] = ", ".join(f"{name} {value}" for name, value in facts["sampling"].items())
    if "other_generations" in facts:
        facts["other_generations"] = ", ".join(map(str, facts["other_generations"])) or "none"
    for name, value in facts.items():
        echo(f"{name:20}{value}")


def address_or_server(
    context: typer.Context, index: str | None, server: str | None, *, local_only: Sequence[str] = ()
) -> str | Path | None:
    """The address of an index that is read from here; None for the one behind `server`.

    An option goes before the environment, and there a server before an index. Ends the command where neither
    is named, both are, or one of the parameters `local_only` is given together with a server.
    """

    def is_given(parameter: str) -> bool:
        source = context.get_parameter_source(parameter)
        return source is not None and source.name == "COMMANDLINE"

    if is_given("index") and is_given("server"):
        stop("give --index for an index on this machine or --server for one behind a server, not both")
    if index is not None and (server is None or is_given("index")):
        return index_address(index)
    if server is None:
        stop("say where the index is: --index DIR on this machine, or --server URL behind a server")
    if not server.startswith(("http://", "https://")):
        stop("the address of a server begins with http:// or https://, such as http://127.0.0.1:8000")
    if foreign := sorted(filter(is_given, local_only)):
        options = ", ".join("--" + name.replace("_", "-") for name in foreign)
        stop(f"{options} cannot be given with --server: that is decided where the server runs")
    return None


@contextmanager
def connect(server: str | None, key: str | None) -> Iterator[Client]:
    """A client whose errors are one line and an exit status."""
    from xclip_search.client import DEFAULT_SERVER, Client
    from xclip_search.client_errors import ClientError, InvalidRequestError, ProblemError, UnauthorizedError

    try:
        with errors_explained(), Client(server or DEFAULT_SERVER, key=key) as client:
            yield client
    except UnauthorizedError:
        stop(
            f"the server requires {'another' if key else 'a'} key: give it as --key KEY or in XCLIP_KEY",
            FAILED,
        )
    except InvalidRequestError as error:
        stop(error.detail)
    except ClientError as error:
        stop(error.detail if isinstance(error, ProblemError) else str(error), FAILED)


def parse_json(text: str | None) -> Any:
    """The value of --filter; ends the command where it is not JSON."""
    try:
        return None if text is None else json.loads(text)
    except ValueError as error:
        stop(
            f"--filter is not JSON: {error}; write it in single quotes, such as"
            """ --filter '{"metadata.camera": "north"}'"""
        )


def clock(seconds: float) -> str:
    """`75.3` as `1:15`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _facts(record: VideoRecord) -> dict[str, Any]:
    names = (
        "id", "title", "uri", "metadata", "duration_seconds", "media_start_seconds", "width", "height",
        "frame_rate", "codec", "size_bytes", "content_sha256", "partial", "fraction_read",
    )  # fmt: skip
    facts = {name: getattr(record, name) for name in names}
    times = {name: iso_time(getattr(record, name)) for name in ("added_at", "recorded_at", "missing_since")}
    return facts | {"metadata": dict(record.metadata)} | times


def iso_time(time: datetime | float | None) -> str | None:
    """A moment, or seconds since 1970, in ISO 8601 and UTC."""
    if time is None or isinstance(time, datetime):
        return None if time is None else time.isoformat()
    return datetime.fromtimestamp(time, UTC).isoformat()


class Uploads:
    """Uploads of files to a server: some are being read there while the next ones are sent.

    report: that they are added to. on_done: called once for each file, with whether it failed.
    """

    def __init__(
        self, client: Client, report: SyncReport, on_done: Callable[[bool], None] = lambda has_failed: None
    ) -> None:
        self.report = report
        self._client = client
        self._on_done = on_done
        self._pending: deque[tuple[VideoSource, str]] = deque()
        self._beside: dict[str, Tracks] = {}

    def run(self, sources: Sequence[VideoSource]) -> SyncReport:
        """Upload what the server does not have yet, and wait until it was read.

        A file that fails is reported, never raised.

        Raises:
            ClientError: What concerns all files alike, such as ConnectionFailedError.
        """
        from indexer.ingest.transcript_files import find_transcripts, transcripts_beside

        started = time.monotonic()
        paths = [str(source.path) for source in sources]
        self._beside = find_transcripts(paths, transcripts_beside(paths))
        for source in sources:
            while len(self._pending) >= MAX_PENDING:
                self._settle_oldest()
            self._upload(source)
        while self._pending:
            self._settle_oldest()
        self.report.seconds = time.monotonic() - started
        return self.report

    def _upload(self, source: VideoSource) -> None:
        from xclip_search.client_errors import BusyError, InvalidRequestError, TooLargeError

        while True:
            try:
                job_id = self._send(source)
            except (InvalidRequestError, TooLargeError) as error:
                self._fail(source, error.detail)
            except OSError as error:
                self._fail(source, (error.strerror or "cannot be read").lower())
            except BusyError:
                if not self._pending:
                    raise
                self._settle_oldest()  # Then the queue admits one more.
                continue
            else:
                # The same bytes twice in the corpus lead to the same job.
                same = next((other for other, pending in self._pending if pending == job_id), None)
                if job_id is None:
                    self._finish(source, "unchanged")
                elif same is not None:
                    self._finish(source, "duplicate", str(same.path))
                else:
                    self._pending.append((source, job_id))
            return

    def _send(self, source: VideoSource) -> str | None:
        """The id of the job that reads the file; None where its bytes are in the index already."""
        from indexer.atomic_files import sha256_of_file

        assert isinstance(source.path, Path), "addresses are refused before"
        transcripts = self._transcripts(source)
        # A look costs little; an upload that turns out to be known costs all of it.
        known = self._client.list_videos(
            limit=1, filter={"content_sha256": sha256_of_file(source.path)}
        ).videos
        if known:
            there = (
                {one.track for one in self._client.list_transcripts(known[0].id)} if transcripts else set()
            )
            for track, path in transcripts.items():
                if track not in there:
                    self._client.put_transcript(known[0].id, path, track=track)
                    self.report.num_transcripts += 1
            return None
        added = self._client.add_video(
            source.path, title=source.title, metadata=source.metadata, transcripts=list(transcripts.values())
        )
        self.report.num_transcripts += len(transcripts)
        return None if added.job is None else added.job.id

    def _transcripts(self, source: VideoSource) -> dict[str, Path]:
        """The files of a video's transcripts by their tracks: those that are named, or lie beside it."""
        from indexer.errors import TranscriptError
        from indexer.ingest.transcript_files import name_tracks, read_transcript, transcript_file

        video = str(source.path)
        if source.transcript_files is None:
            tracks = self._beside.get(video, ())
        else:
            named = {path: transcript_file(str(path)) for path in source.transcript_files}
            for path in (path for path, file in named.items() if file is None):
                self.report.notes.append(f"the transcript {path} is left out: there is no such file")
            tracks = name_tracks(video, [file for file in named.values() if file is not None])
        found = {}
        for track, file in tracks:
            try:
                read_transcript(track, file)  # The server would refuse the video with it.
                found[track] = Path(file.path)
            except TranscriptError as error:
                self.report.notes.append(f"the transcript {file.path} is left out: {error}")
        return found

    def _settle_oldest(self) -> None:
        from xclip_search.client_errors import JobFailedError

        source, job_id = self._pending.popleft()
        try:
            job = self._client.wait_for_job(job_id)
        except JobFailedError as error:
            self._fail(source, error.job.reason or "")
        else:
            if source.recorded_at is not None:
                self._client.update_video(job.video_id, recorded_at=iso_time(source.recorded_at))
            video = self._client.get_video(job.video_id)
            self._finish(
                source, "added", f"only {video.fraction_read:.0%} could be read" if video.partial else None
            )

    def _fail(self, source: VideoSource, reason: str) -> None:
        self._finish(source, "failed", reason)

    def _finish(self, source: VideoSource, outcome: Outcome, reason: str | None = None) -> None:
        self.report.count(str(source.path), outcome, reason)
        self._on_done(outcome == "failed")
