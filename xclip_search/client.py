"""A client of the service: `Client`, and `AsyncClient` of the same shape for programs that await.

    with Client("http://127.0.0.1:8000", key="...") as client:
        added = client.add_video("beach.mp4", metadata={"year": 2024})
        if added.job is not None:
            client.wait_for_job(added.job.id)
        for result in client.search_all("a dog runs on the beach", max_results=30):
            print(result.score, result.title, result.moments[0].time_seconds)

Answers are the models of `service.schemas`; fields that a newer server adds are left out. Errors are drawn in
`xclip_search.client_errors`. Requests are sent again, a bounded number of times, where the connection broke
or the server was busy; all of them can be, uploads too. See docs/client.md.
"""

from __future__ import annotations

import asyncio
import email.utils
import functools
import hashlib
import io
import json
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import (
    Any,
    BinaryIO,
    Concatenate,
    Final,
    ParamSpec,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
)
from urllib.parse import quote

import anyio
import httpx
from anyio import to_thread
from pydantic import BaseModel, ValidationError

from indexer.search.types import DEFAULT_LIMIT, MAX_OFFSET, GroupBy, SearchMode, TextMatch
from indexer.store.job import JobState
from indexer.store.records import Sort
from indexer.store.transcripts import UNKNOWN_TRACK
from service.schemas.operation import HealthAnswer, SessionAnswer, StatsAnswer
from service.schemas.search import (
    MediaSearchAnswerBody,
    ResultAnswer,
    SearchAnswerBody,
    SearchAnswersBody,
    SimilarAnswerBody,
    TextsAnswerBody,
)
from service.schemas.videos import (
    AddVideoAnswer,
    JobAnswer,
    JobPage,
    TranscriptAnswer,
    TranscriptList,
    VideoAnswer,
    VideoPage,
)
from xclip_search.client_errors import (
    BusyError,
    DamagedDownloadError,
    JobFailedError,
    UnexpectedAnswerError,
    WaitTimeoutError,
    connection_error,
    to_error,
)

T = TypeVar("T")
P = ParamSpec("P")
Model = TypeVar("Model", bound=BaseModel)

Filter = Mapping[str, Any]
OnProgress = Callable[[int, int], None]
"""Called with how many bytes of how many have gone or come; on the client's own thread, so keep it short."""

DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT: Final = httpx.Timeout(120.0, connect=10.0)
"""Seconds without a byte. A request with wait=True is silent for a minute."""

UNCHANGED: Final[Any] = object()
"""Of `update_video`: leave this as it is. None removes it."""

RETRIED_STATUSES: Final = (429, 503)
FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 30.0
"""A server that asks for a longer pause is not asked again."""

FIRST_POLL_SECONDS, SLOWEST_POLL_SECONDS = 0.1, 2.0
"""Pauses between two polls of a job."""

LARGEST_PAGE: Final = 200
BLOCK_BYTES: Final = 1024 * 1024

_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout)
_BROKEN: Final = (
    *_NEVER_SENT,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
    httpx.RemoteProtocolError,
)


class SimilarOptions(TypedDict, total=False):
    """What a search by a video, a picture or a clip may have; see docs/http-api.md."""

    limit: int
    offset: int
    group_by: GroupBy
    min_score: float | None
    num_moments: int
    filter: Filter | None
    fold: bool | float


class SearchOptions(TypedDict, total=False):
    """What a search may have in addition to its text; see docs/http-api.md."""

    limit: int
    offset: int
    candidates: int
    mode: SearchMode
    group_by: GroupBy
    min_score: float | None
    min_percentile: float | None
    explain: bool
    num_moments: int
    text_match: TextMatch
    filter: Filter | None
    fold: bool | float
    without: str | None
    """The field `not`, whose name Python keeps for itself."""


@dataclass(frozen=True)
class _Request:
    """A request that may be sent more than once without harm.

    gone_is_done: a 404 to a later attempt means that an earlier one, whose answer was lost, did it.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: _Upload | None = None
    download: _Download | None = None
    gone_is_done: bool = False


@dataclass(frozen=True)
class _Upload:
    """A file to send as a form, with its text fields; opened again for each attempt."""

    path: Path
    fields: Mapping[str, str]
    on_progress: OnProgress | None
    transcripts: Sequence[Path] = ()


class AsyncClient:
    """Talks to one server; keeps connections open until it is closed. For one event loop.

    Every method raises ClientError, see `xclip_search.client_errors`.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_attempts: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Connect when the first request is sent.

        Args:
            server: Its address, with a path where a proxy puts it below one, and with `NAME:PASSWORD@` where
                a proxy asks for these.
            key: An API key.
            timeout: Seconds without a byte, or httpx.Timeout.
            max_attempts: How often a request is sent at most.
            transport: Instead of the network.
        """
        headers = {"User-Agent": "xclip-search-client", "Accept": "application/json, */*;q=0.5"}
        if key is not None:
            # A name and password in the address are for a proxy, and take the header Authorization.
            has_other = bool(httpx.URL(server).userinfo)
            headers |= {"X-API-Key": key} if has_other else {"Authorization": f"Bearer {key}"}
        self._max_attempts = max_attempts
        self._http = httpx.AsyncClient(base_url=server, headers=headers, timeout=timeout, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    # Searching

    async def search(self, query: str, **options: Unpack[SearchOptions]) -> SearchAnswerBody:
        """Find videos by what is to be seen; `limit` and `offset` say which of the results, best first."""
        return await self._ask(
            SearchAnswerBody, _Request("POST", "search", json=_search_body(options, query=query))
        )

    async def search_all(
        self, query: str, *, max_results: int | None = None, **options: Unpack[SearchOptions]
    ) -> AsyncIterator[ResultAnswer]:
        """All results of a search, best first, page by page; `limit` is the size of a page.

        Nothing comes twice while videos come and go. Ends at the offset that the server allows at most.
        """
        options.setdefault("offset", 0)
        shown: set[int | str] = set()
        while (max_results is None or len(shown) < max_results) and options["offset"] <= MAX_OFFSET:
            page = (await self.search(query, **options)).results
            for result in page:
                key = result.segment_id if options.get("group_by") == "segment" else result.id
                if key not in shown and (max_results is None or len(shown) < max_results):
                    shown.add(key)
                    yield result
            if len(page) < options.get("limit", DEFAULT_LIMIT):
                return
            options["offset"] += len(page)

    async def search_many(
        self, queries: Sequence[str], **options: Unpack[SearchOptions]
    ) -> SearchAnswersBody:
        """Search for 1 to 32 texts in one request."""
        body = _search_body(options, queries=list(queries))
        return await self._ask(SearchAnswersBody, _Request("POST", "search", json=body))

    async def similar(self, video_id: str, **options: Unpack[SimilarOptions]) -> SimilarAnswerBody:
        """Videos that look like this one."""
        request = _Request("GET", f"{_video_path(video_id)}/similar", _similar_fields(options))
        return await self._ask(SimilarAnswerBody, request)

    async def search_media(
        self,
        path: str | os.PathLike[str],
        *,
        on_progress: OnProgress | None = None,
        **options: Unpack[SimilarOptions],
    ) -> MediaSearchAnswerBody:
        """Videos that look like a picture or a clip, which is not added to the index.

        path: The file. on_progress: Called with how many bytes of how many were sent.
        """
        upload = _Upload(Path(path), _similar_fields(options), on_progress)
        return await self._ask(MediaSearchAnswerBody, _Request("POST", "search/media", upload=upload))

    async def rank_texts(self, video_id: str, texts: Sequence[str]) -> TextsAnswerBody:
        """Which of these texts fits the video best: the search the other way round."""
        request = _Request("POST", f"{_video_path(video_id)}/texts", json={"texts": list(texts)})
        return await self._ask(TextsAnswerBody, request)

    # Videos

    async def add_video(
        self,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        transcripts: Sequence[str | os.PathLike[str]] = (),
        wait: bool = False,
        on_progress: OnProgress | None = None,
    ) -> AddVideoAnswer:
        """Upload a file; it is never in memory as a whole.

        Args:
            path: The file.
            title: By default its name.
            metadata: JSON values by name.
            transcripts: Its .srt and .vtt files; the name of each says its track, as `movie.en.srt` does.
            wait: Answer when the video can be found, or after about a minute.
            on_progress: Called with how many bytes of how many were sent, from 0 again where the file is
                sent again.

        Returns:
            The job that reads the file; or none, and the video, where the same bytes are in the index.
        """
        fields = {} if title is None else {"title": title}
        if metadata:
            fields["metadata"] = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
        upload = _Upload(Path(path), fields, on_progress, [Path(other) for other in transcripts])
        return await self._ask(AddVideoAnswer, _Request("POST", "videos", _wait(wait), upload=upload))

    async def add_uri(
        self,
        uri: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        wait: bool = False,
    ) -> AddVideoAnswer:
        """Let the server index a file of its own, or fetch one from the web, where it is allowed to."""
        values = {"uri": uri, "title": title, "metadata": dict(metadata or {}), "id": id}
        body = {name: value for name, value in values.items() if value is not None}
        return await self._ask(AddVideoAnswer, _Request("POST", "videos", _wait(wait), json=body))

    async def get_video(self, video_id: str) -> VideoAnswer:
        """One video."""
        return await self._ask(VideoAnswer, _Request("GET", _video_path(video_id)))

    async def list_videos(
        self,
        *,
        limit: int = 50,
        after: int | str | None = None,
        filter: Filter | None = None,
        sort: Sort | None = None,
    ) -> VideoPage:
        """A page of videos, newest first. after: `next` of the page before. sort: see `videos`."""
        params = {"limit": limit, "after": after, "filter": _json_or_none(filter), "sort": sort}
        return await self._ask(VideoPage, _Request("GET", "videos", params))

    async def videos(
        self, *, filter: Filter | None = None, sort: Sort | None = None
    ) -> AsyncIterator[VideoAnswer]:
        """All videos, newest first.

        sort: `added_at` or `recorded_at`, with a minus sign for the latest first; by default `-added_at`.
        """
        page = await self.list_videos(limit=LARGEST_PAGE, filter=filter, sort=sort)
        while True:
            for video in page.videos:
                yield video
            if page.next is None:
                return
            page = await self.list_videos(limit=LARGEST_PAGE, after=page.next, filter=filter, sort=sort)

    async def update_video(
        self,
        video_id: str,
        *,
        title: str | None = UNCHANGED,
        metadata: Mapping[str, Any] | None = UNCHANGED,
        recorded_at: datetime | str | None = UNCHANGED,
    ) -> VideoAnswer:
        """Change title, metadata or the time of recording (a date, or date and time, in ISO 8601).

        A field of the metadata that is None is removed, others stay.
        """
        at = recorded_at.isoformat() if isinstance(recorded_at, datetime) else recorded_at
        values = {"title": title, "metadata": metadata, "recorded_at": at}
        request = _Request(
            "PATCH",
            _video_path(video_id),
            json={name: value for name, value in values.items() if value is not UNCHANGED},
            headers={"Content-Type": "application/merge-patch+json"},
        )
        return await self._ask(VideoAnswer, request)

    async def delete_video(self, video_id: str, *, keep_out: bool = False) -> None:
        """Remove a video; a file that was uploaded is deleted.

        keep_out: Whether the same content shall not come in again.
        """
        params = {"keep_out": "true"} if keep_out else {}
        await self._exchange(_Request("DELETE", _video_path(video_id), params=params, gone_is_done=True))

    async def list_transcripts(self, video_id: str) -> list[TranscriptAnswer]:
        """The transcripts of a video."""
        request = _Request("GET", f"{_video_path(video_id)}/transcripts")
        return (await self._ask(TranscriptList, request)).transcripts

    async def get_transcript(self, video_id: str, track: str = UNKNOWN_TRACK) -> str:
        """A transcript of a video, as WebVTT."""
        return (await self._exchange(_Request("GET", _transcript_path(video_id, track)))).text

    async def put_transcript(
        self, video_id: str, path: str | os.PathLike[str], *, track: str = UNKNOWN_TRACK
    ) -> TranscriptAnswer:
        """Store a .srt or .vtt file as a transcript, instead of the one of this track."""
        content = await to_thread.run_sync(Path(path).read_bytes)
        request = _Request(
            "PUT",
            _transcript_path(video_id, track),
            content=content,
            headers={"Content-Type": "application/octet-stream"},
        )
        return await self._ask(TranscriptAnswer, request)

    async def delete_transcript(self, video_id: str, track: str = UNKNOWN_TRACK) -> None:
        """Remove a transcript."""
        await self._exchange(_Request("DELETE", _transcript_path(video_id, track), gone_is_done=True))

    async def download_media(
        self, video_id: str, path: str | os.PathLike[str], *, on_progress: OnProgress | None = None
    ) -> Path:
        """Save the video's file at `path`, whole and with the sha256 that the index knows.

        What has arrived lies next to `path` under a name made of that sha256, so that an interrupted call
        is resumed by the next one.

        Raises:
            DamagedDownloadError: Other bytes arrived.
        """
        video = await self.get_video(video_id)
        with _Download(Path(path), video, on_progress) as download:
            if not download.is_whole:
                request = _Request("GET", f"{_video_path(video_id)}/media", download=download)
                await self._exchange(request)
            download.finish()
        return Path(path)

    async def thumbnail(self, video_id: str, *, time_seconds: float = 0.0, width: int = 320) -> bytes:
        """A JPEG of what the video shows at a moment."""
        params = {"time_seconds": time_seconds, "width": width}
        request = _Request("GET", f"{_video_path(video_id)}/thumbnail", params)
        return (await self._exchange(request)).content

    async def preview(self, video_id: str, *, time_seconds: float = 0.0) -> bytes:
        """A short clip around a moment, of a kind that every browser plays."""
        params = {"time_seconds": time_seconds}
        return (await self._exchange(_Request("GET", f"{_video_path(video_id)}/preview", params))).content

    # Jobs

    async def get_job(self, job_id: str) -> JobAnswer:
        """One ingest request."""
        return await self._ask(JobAnswer, _Request("GET", f"jobs/{_path_segment(job_id)}"))

    async def wait_for_job(self, job_id: str, *, timeout_seconds: float | None = None) -> JobAnswer:
        """The job when it is done.

        Raises:
            JobFailedError: The server could not make a video of the file; the error holds the job.
            WaitTimeoutError: It was not done after `timeout_seconds`; the job continues.
        """
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        pause = FIRST_POLL_SECONDS
        while not (job := await self.get_job(job_id)).ended:
            left = SLOWEST_POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(job, timeout_seconds or 0.0)
            await anyio.sleep(min(pause, left))
            pause = min(1.5 * pause, SLOWEST_POLL_SECONDS)
        if job.state == "failed":
            raise JobFailedError(job)
        return job

    async def cancel_job(self, job_id: str) -> JobAnswer:
        """Cancel a job that waits or runs; one that has ended stays as it is."""
        return await self._ask(JobAnswer, _Request("DELETE", f"jobs/{_path_segment(job_id)}"))

    async def list_jobs(
        self, *, limit: int = 50, after: int | None = None, state: JobState | None = None
    ) -> JobPage:
        """A page of jobs, newest first. after: `next` of the page before."""
        params = {"limit": limit, "after": after, "state": state}
        return await self._ask(JobPage, _Request("GET", "jobs", params))

    async def jobs(self, *, state: JobState | None = None) -> AsyncIterator[JobAnswer]:
        """All jobs, newest first."""
        page = await self.list_jobs(limit=LARGEST_PAGE, state=state)
        while True:
            for job in page.jobs:
                yield job
            if page.next is None:
                return
            page = await self.list_jobs(limit=LARGEST_PAGE, after=page.next, state=state)

    # The server

    async def access(self) -> SessionAnswer:
        """What the key may do."""
        return await self._ask(SessionAnswer, _Request("GET", "session"))

    async def stats(self) -> StatsAnswer:
        """What there is and what is going on."""
        return await self._ask(StatsAnswer, _Request("GET", "stats"))

    async def metrics(self) -> str:
        """Figures in the text format of Prometheus."""
        return (await self._exchange(_Request("GET", "metrics"))).text

    async def is_alive(self) -> bool:
        """Whether the process answers: True, or ConnectionFailedError."""
        return bool(await self._ask(HealthAnswer, _Request("GET", "healthz")))

    async def is_ready(self) -> bool:
        """Whether searches are answered right now."""
        try:
            await self._exchange(_Request("GET", "readyz"), max_attempts=1)
        except BusyError:
            return False
        return True

    # Sending

    async def _ask(self, model: type[Model], request: _Request) -> Model:
        """The answer to a request as a model."""
        response = await self._exchange(request)
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise UnexpectedAnswerError(
                f"the answer of {request.method} {response.request.url.path} is not what this "
                f"client knows ({error.error_count()} things differ); is the server of another version?"
            ) from error

    async def _exchange(self, request: _Request, *, max_attempts: int | None = None) -> httpx.Response:
        """Send a request, again where that may help; its answer, which is below 400."""
        max_attempts = max_attempts or self._max_attempts
        num_attempts, answer_was_lost = 0, False
        while True:
            num_attempts += 1
            # Exponential backoff with jitter.
            pause = min(
                FIRST_PAUSE_SECONDS * 2.0 ** (num_attempts - 1) * random.uniform(0.5, 1.0), MAX_PAUSE_SECONDS
            )
            try:
                response = await self._send(request)
            except httpx.TransportError as error:
                if num_attempts == max_attempts or not isinstance(error, _BROKEN):
                    raise connection_error(error, self._http.base_url, num_attempts) from error
                answer_was_lost |= not isinstance(error, _NEVER_SENT)
            else:
                is_gone = response.status_code == 404 and request.gone_is_done and answer_was_lost
                if response.status_code < 400 or is_gone:
                    return response
                if (wanted := _retry_after(response)) is not None:
                    pause = wanted
                may_help = response.status_code in RETRIED_STATUSES and pause <= MAX_PAUSE_SECONDS
                if num_attempts == max_attempts or not may_help:
                    raise to_error(response)
            await anyio.sleep(pause)

    async def _send(self, request: _Request) -> httpx.Response:
        """Send a request once. The answer's body has been read, or went where the request says."""
        arguments: dict[str, Any] = {
            "params": {name: value for name, value in request.params.items() if value is not None},
            "headers": {**request.headers, **(request.download.headers() if request.download else {})},
        }
        if request.json is not None:
            arguments["json"] = request.json
        if request.content is not None:
            arguments["content"] = request.content
        with ExitStack() as files:
            if request.upload is not None:
                upload = request.upload
                file = files.enter_context(upload.path.open("rb"))
                counted = cast("BinaryIO", _CountedFile(file, upload.on_progress))
                arguments["data"] = upload.fields
                parts = [("file", upload.path, counted)]
                for path in upload.transcripts:
                    parts.append(("transcript", path, files.enter_context(path.open("rb"))))
                arguments["files"] = [
                    (name, (_filename(path), content, "application/octet-stream"))
                    for name, path, content in parts
                ]
            built = self._http.build_request(request.method, request.path, **arguments)
            response = await self._http.send(built, stream=True)
        try:
            if request.download is None or response.status_code >= 400:
                await response.aread()
            else:
                request.download.begin(response)
                async for chunk in response.aiter_raw():
                    await to_thread.run_sync(request.download.write, chunk)
        finally:
            await response.aclose()
        return response


def _video_path(video_id: str) -> str:
    return f"videos/{_path_segment(video_id)}"


def _transcript_path(video_id: str, track: str) -> str:
    return f"{_video_path(video_id)}/transcripts/{_path_segment(track)}"


def _path_segment(text: str) -> str:
    """An id as one segment of a path; one that is a whole path, or none, cannot be the id of anything."""
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is no id")
    return quote(text, safe="")


def _search_body(options: SearchOptions, **texts: Any) -> dict[str, Any]:
    fields = {"not" if name == "without" else name: value for name, value in options.items()}
    return {**texts, **fields}


def _similar_fields(options: SimilarOptions) -> dict[str, str]:
    """As texts, without those that are None."""
    texts = {name: value for name, value in options.items() if value is not None}
    if isinstance(texts.get("fold"), bool):
        texts["fold"] = json.dumps(texts["fold"])
    if "filter" in texts:
        texts["filter"] = json.dumps(texts["filter"], ensure_ascii=False)
    return {name: str(value) for name, value in texts.items()}


def _json_or_none(filter: Filter | None) -> str | None:
    return None if filter is None else json.dumps(filter, ensure_ascii=False)


def _wait(wait: bool) -> dict[str, str]:
    return {"wait": "true"} if wait else {}


def _filename(path: Path) -> str:
    """The name of a file; bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path.name).decode("utf-8", "replace")


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait; None where it does not say so in a way that we know."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())


class _CountedFile(io.RawIOBase):
    """A file that reports how far it was read."""

    def __init__(self, file: io.BufferedReader, on_progress: OnProgress | None) -> None:
        self._file = file
        self._on_progress = on_progress
        self._size_bytes = os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._on_progress is not None:
            self._on_progress(self._file.tell(), self._size_bytes)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class _Download:
    """A file on its way: hashed as it comes, resumed where it stopped."""

    def __init__(self, target: Path, video: VideoAnswer, on_progress: OnProgress | None) -> None:
        self._target = target
        self._video = video
        self._on_progress = on_progress
        self._unfinished = target.with_name(f".{target.name}.{video.content_sha256[:16]}.part")

    def __enter__(self) -> Self:
        self._file = self._unfinished.open("a+b")
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        while block := self._file.read(BLOCK_BYTES):
            self._count(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def is_whole(self) -> bool:
        return self._num_bytes == self._video.size_bytes

    def headers(self) -> dict[str, str]:
        return {"Range": f"bytes={self._num_bytes}-"} if self._num_bytes else {}

    def begin(self, response: httpx.Response) -> None:
        """The answer's head is there, of status 200 or 206."""
        if response.status_code == 206:
            unit, _, span = response.headers.get("content-range", "").partition(" ")
            if unit == "bytes" and span.startswith(f"{self._num_bytes}-"):
                return
            raise DamagedDownloadError("the server sent another part of the file than was asked for")
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._count(chunk)
        if self._num_bytes > self._video.size_bytes:
            self._refuse()

    def finish(self) -> None:
        self._file.close()
        if not self.is_whole or self._digest.hexdigest() != self._video.content_sha256:
            self._refuse()
        self._unfinished.replace(self._target)

    def _refuse(self) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)
        raise DamagedDownloadError("the downloaded file is not the one in the index; it was discarded")

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._num_bytes += len(chunk)
        if self._on_progress is not None:
            self._on_progress(self._num_bytes, self._video.size_bytes)


class _BackgroundLoop:
    """An event loop on a thread of its own, for callers that do not await."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="xclip-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self.is_closed:
            coroutine.close()
            raise RuntimeError("the client has been closed: make a new one")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # Where Ctrl-C ended the wait; a future that is done stays as it is.

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _waiting(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """The same method for callers that do not await."""

    @functools.wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncIterator[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    """The same iterator for callers that do not await."""

    @functools.wraps(method)
    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(self._client, *args, **kwargs)

        async def next_item() -> T:
            return await anext(items)

        while True:
            try:
                item = self._loop.run(next_item())
            except StopAsyncIteration:
                return
            yield item

    return call


class Client:
    """`AsyncClient` for programs that do not await; its requests run on a thread of its own.

    Any thread may use it. Parameters and methods are those of `AsyncClient`.

    >>> answers = httpx.MockTransport(lambda request: httpx.Response(200, json={"status": "ok"}))
    >>> with Client("http://127.0.0.1:8000", key="secret", transport=answers) as client:
    ...     client.is_alive()
    True
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_attempts: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._client = AsyncClient(
            server, key=key, timeout=timeout, max_attempts=max_attempts, transport=transport
        )
        self._loop = _BackgroundLoop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread."""
        if not self._loop.is_closed:
            self._loop.run(self._client.close())
            self._loop.close()

    search = _waiting(AsyncClient.search)
    search_all = _iterating(AsyncClient.search_all)
    search_many = _waiting(AsyncClient.search_many)
    similar = _waiting(AsyncClient.similar)
    search_media = _waiting(AsyncClient.search_media)
    rank_texts = _waiting(AsyncClient.rank_texts)
    add_video = _waiting(AsyncClient.add_video)
    add_uri = _waiting(AsyncClient.add_uri)
    get_video = _waiting(AsyncClient.get_video)
    list_videos = _waiting(AsyncClient.list_videos)
    videos = _iterating(AsyncClient.videos)
    update_video = _waiting(AsyncClient.update_video)
    delete_video = _waiting(AsyncClient.delete_video)
    list_transcripts = _waiting(AsyncClient.list_transcripts)
    get_transcript = _waiting(AsyncClient.get_transcript)
    put_transcript = _waiting(AsyncClient.put_transcript)
    delete_transcript = _waiting(AsyncClient.delete_transcript)
    download_media = _waiting(AsyncClient.download_media)
    thumbnail = _waiting(AsyncClient.thumbnail)
    preview = _waiting(AsyncClient.preview)
    get_job = _waiting(AsyncClient.get_job)
    wait_for_job = _waiting(AsyncClient.wait_for_job)
    cancel_job = _waiting(AsyncClient.cancel_job)
    list_jobs = _waiting(AsyncClient.list_jobs)
    jobs = _iterating(AsyncClient.jobs)
    access = _waiting(AsyncClient.access)
    stats = _waiting(AsyncClient.stats)
    metrics = _waiting(AsyncClient.metrics)
    is_alive = _waiting(AsyncClient.is_alive)
    is_ready = _waiting(AsyncClient.is_ready)
