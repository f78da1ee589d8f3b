"""`xclip-search search`, `index`, `list`, `delete` and `info`, on an index here or behind a server.

The commands are those of the indexer with two options more. Without --server they are what they were.
"""

from __future__ import annotations

import inspect
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from xclip_search import index as local
from xclip_search import local_videos as videos_cli
from xclip_search.console import (
    GOES_ON,
    SOME_FAILED,
    errors_explained,
    make_app,
    require_report_file,
    stop,
    video_progress,
    write_report,
)

if TYPE_CHECKING:
    from indexer.ingest.manifest import VideoSource
    from indexer.search.types import SearchAnswer
    from xclip_search.client import Client
    from xclip_search.client_answers import SearchAnswer as RemoteSearchAnswer

app = make_app()

NO_ANSWER = 1
"""Exit status where the server does not answer, or refuses the key."""

MAX_PENDING = 64
"""Uploads that wait to be read by the server, before the next one is sent."""

PANEL = "An index behind a server"

IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index",
        "-i",
        envvar="XCLIP_INDEX",
        help="The index directory.",
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


def _search(
    client: Client, *, text: list[str], limit: int, mode: Any, filter_json: str | None, as_json: bool
) -> None:
    answer = _to_local(
        client.search(" ".join(text), limit=limit, mode=mode.value, filter=local.parse_json(filter_json))
    )
    if as_json:
        typer.echo(json.dumps(local.answer_to_dict(answer), indent=2, ensure_ascii=False))
    else:
        local.print_answer(answer)


def _info(client: Client, *, as_json: bool) -> None:
    stats = client.stats()
    facts = {
        "num_videos": stats.num_videos,
        "num_segments": stats.num_segments,
        "sequence": stats.sequence,
        # A server does not tell these.
        "model_spec": None,
        "sampling": None,
        "embedding_dim": stats.embedding_dim,
        "num_frames": stats.num_frames,
        "fingerprint": stats.fingerprint,
        "created_at": None,
        "catalog_size_bytes": None,
        "generation": None,
        "other_generations": None,
    }
    local.print_facts(facts, as_json)


def _list_videos(client: Client, *, limit: int, filter_json: str | None, as_json: bool) -> None:
    found = islice(client.videos(filter=local.parse_json(filter_json)), limit)
    shown = [
        video.model_dump(mode="json", exclude={"thumbnail_url", "media_url", "preview_url", "playable"})
        | {"added_at": video.added_at.isoformat()}
        for video in found
    ]
    videos_cli.print_videos(shown, client.stats().num_videos, as_json)


def _delete(client: Client, *, ids: list[str]) -> None:
    from xclip_search.client_errors import NotFoundError

    unknown = []
    for video_id in dict.fromkeys(ids):
        try:
            client.delete_video(video_id)
        except NotFoundError:
            unknown.append(video_id)
    videos_cli.print_deleted(ids, unknown)


def _index(client: Client, *, paths: list[Path] | None, manifest: Path | None, report: Path | None) -> None:
    sources = local.find_sources(paths or [], manifest)
    require_report_file(report)
    if any(source.id is not None or source.uri is not None for source in sources):
        typer.echo("note: uploads get ids of the server's; id and uri of the manifest are left out", err=True)
    done = UploadReport()
    with errors_explained(GOES_ON), video_progress("indexing") as count:
        upload_all(client, sources, done, lambda event: count(len(sources), event.outcome == "failed"))
    typer.echo(
        f"{done.num_added} added, {done.num_skipped} were in already, {done.num_failed} failed;"
        f" {done.seconds:.1f} s"
    )
    if done.num_partial:
        typer.echo(f"{done.num_partial} of the added are damaged or cut off and were used as far as they go")
    for path, reason in done.failures:
        typer.echo(f"failed: {path}: {reason}", err=True)
    write_report(report, done.to_dict())
    if done.num_failed:
        raise typer.Exit(SOME_FAILED)


@dataclass(frozen=True)
class UploadEvent:
    """One source has been dealt with. outcome: added, skipped or failed."""

    source: VideoSource
    outcome: str


@dataclass
class UploadReport:
    """What became of the files; the fields are those of `indexer.ingest.pipeline.IndexReport`.

    None for what a server does not tell.
    """

    num_added: int = 0
    num_skipped: int = 0
    num_failed: int = 0
    num_partial: int = 0
    num_segments: int | None = None
    seconds: float = 0.0
    decode_seconds: float | None = None
    encode_seconds: float | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        failures = [{"path": path, "reason": reason} for path, reason in self.failures]
        return {**vars(self), "failures": failures}


def upload_all(
    client: Client,
    sources: list[VideoSource],
    report: UploadReport,
    on_event: Callable[[UploadEvent], None] = lambda event: None,
) -> None:
    """Upload what the server does not have yet, and wait until it was read. Fills in the report.

    A file that fails is reported, never raised. Raises ConnectionFailedError and other ClientErrors that
    concern all files alike.
    """
    from xclip_search.client_errors import BusyError, InvalidRequestError, JobFailedError, TooLargeError

    started = time.monotonic()
    pending: deque[tuple[VideoSource, str]] = deque()

    def settle(source: VideoSource, outcome: str, reason: str = "") -> None:
        setattr(report, f"num_{outcome}", getattr(report, f"num_{outcome}") + 1)
        if outcome == "failed":
            report.failures.append((str(source.path), reason))
        report.seconds = time.monotonic() - started
        on_event(UploadEvent(source, outcome))

    def settle_oldest() -> None:
        source, job_id = pending.popleft()
        try:
            job = client.wait_for_job(job_id)
        except JobFailedError as error:
            settle(source, "failed", error.job.reason or "")
        else:
            report.num_partial += client.get_video(job.video_id).partial
            settle(source, "added")

    for source in sources:
        while len(pending) >= MAX_PENDING:
            settle_oldest()
        while True:
            try:
                job_id = _upload(client, source)
            except (InvalidRequestError, TooLargeError) as error:
                settle(source, "failed", error.detail)
            except OSError as error:
                settle(source, "failed", (error.strerror or "cannot be read").lower())
            except BusyError:
                if not pending:
                    raise
                settle_oldest()  # There is room for one more then.
                continue
            else:
                if job_id is None:
                    settle(source, "skipped")
                elif job_id in (waiting for _, waiting in pending):
                    settle(source, "skipped")  # The same bytes twice in the corpus.
                else:
                    pending.append((source, job_id))
            break
    while pending:
        settle_oldest()


def _upload(client: Client, source: VideoSource) -> str | None:
    """The id of the job that reads the file; None where its bytes are in the index already."""
    from indexer.atomic_files import sha256_of_file

    # A look costs little; an upload that turns out to be known costs all of it.
    if client.list_videos(limit=1, filter={"content_sha256": sha256_of_file(source.path)}).videos:
        return None
    added = client.add_video(source.path, title=source.title, metadata=source.metadata)
    return None if added.job is None else added.job.id


def _to_local(answer: RemoteSearchAnswer) -> SearchAnswer:
    """The answer as the searcher would give it, so that both are printed alike."""
    from indexer.search.types import Moment, SearchAnswer, SearchResult, Segment, Timings

    def pick(cls: type[Any], values: dict[str, Any], **made: Any) -> Any:
        return cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values} | made)

    values = answer.model_dump()
    results = [
        pick(
            SearchResult,
            result,
            segment=Segment(**result["segment"]),
            moments=[Moment(**moment) for moment in result["moments"]],
            explanation=None,
        )
        for result in values["results"]
    ]
    picked: SearchAnswer = pick(
        SearchAnswer, values, timings=pick(Timings, values["timings"]), results=results
    )
    return picked


@contextmanager
def _client(server: str, key: str | None) -> Iterator[Client]:
    """A client whose errors are one line and an exit status."""
    from xclip_search.client import Client
    from xclip_search.client_errors import ClientError, InvalidRequestError, ProblemError, UnauthorizedError

    try:
        with errors_explained(), Client(server, key=key) as client:
            yield client
    except InvalidRequestError as error:
        stop(error.detail)
    except ClientError as error:
        message = error.detail if isinstance(error, ProblemError) else str(error)
        if isinstance(error, UnauthorizedError):
            message = (
                f"the server wants {'another' if key else 'a'} key: give it as --key KEY or in XCLIP_KEY"
            )
        typer.echo(f"error: {message}", err=True)
        raise typer.Exit(NO_ANSWER) from None


def _here_or_there(
    here: Callable[..., None], there: Callable[..., None], example: str
) -> Callable[..., None]:
    """A command with the parameters of `here`, and --server and --key.

    there: takes a client and those of the parameters that mean something to a server; where another one is
    given together with --server, the command ends. example: the last one of the help, with a server.
    """
    understood = set(inspect.signature(there).parameters) - {"client"}

    def command(ctx: typer.Context, server: str | None, key: str | None, **values: Any) -> None:
        given = {name for name in ctx.params if _is_given(ctx, name)}
        if {"index", "server"} <= given:
            stop("give --index for an index on this machine or --server for one behind a server, not both")
        if "index" in given or (server is None and values["index"] is not None):
            here(**values)
        elif server is None:
            stop("say where the index is: --index DIR on this machine, or --server URL behind a server")
        elif not server.startswith(("http://", "https://")):
            stop("the address of a server begins with http:// or https://, such as http://127.0.0.1:8000")
        elif foreign := sorted(given & set(values) - understood):
            options = ", ".join("--" + name.removesuffix("_json").replace("_", "-") for name in foreign)
            stop(f"{options} cannot be given with --server: that is decided where the server runs")
        else:
            with _client(server, key) as client:
                there(client, **{name: values[name] for name in understood})

    types = get_type_hints(here, include_extras=True)
    defaults = {name: one.default for name, one in inspect.signature(here).parameters.items()}
    types |= {"index": IndexOption, "server": ServerOption, "key": KeyOption}
    defaults |= {"index": None, "server": None, "key": None}
    types.pop("return", None)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("ctx", keyword, annotation=typer.Context)] + [
        inspect.Parameter(name, keyword, default=default, annotation=types[name])
        for name, default in defaults.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {"ctx": typer.Context, **types}
    command.__name__ = here.__name__
    command.__doc__ = f"{inspect.cleandoc(here.__doc__ or '')}\n\n  xclip-search {example}"
    return command


def _is_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


app.command()(
    _here_or_there(local.index, _index, "index ~/clips --server http://127.0.0.1:8000 --report report.json")
)
app.command()(_here_or_there(local.search, _search, 'search "rain" --server http://127.0.0.1:8000 --limit 3'))
app.command("list")(
    _here_or_there(videos_cli.list_videos, _list_videos, "list --server http://127.0.0.1:8000")
)
app.command()(
    _here_or_there(videos_cli.delete, _delete, "delete 0f5c2a7e9b31 --server http://127.0.0.1:8000")
)
app.command()(_here_or_there(local.info, _info, "info --server http://127.0.0.1:8000 --json"))
