"""A client of the service: `Client`, and `AsyncClient` of the same shape in `xclip_search.async_client`.

    with Client("http://127.0.0.1:8000", key="...") as client:
        added = client.add_video("beach.mp4", metadata={"year": 2024})
        if added.job is not None:
            client.wait_for_job(added.job.id)
        for result in client.search_all("a dog runs on the beach", max_results=30):
            print(result.score, result.title, result.moments[0].time_seconds)

Requests are sent again, a bounded number of times, where the connection broke or the server was busy; all of
them can be, uploads too. See docs/client.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import httpx

from indexer.search.types import DEFAULT_LIMIT, MAX_OFFSET
from xclip_search import client_calls as calls
from xclip_search import client_flows as flows
from xclip_search.client_answers import (
    Access,
    AddedVideo,
    Job,
    JobPage,
    JobState,
    ManySearchAnswers,
    RankedTexts,
    Result,
    SearchAnswer,
    SimilarVideos,
    Stats,
    Video,
    VideoPage,
)
from xclip_search.client_calls import Call, Filter, OnProgress, SearchOptions
from xclip_search.client_errors import BusyError
from xclip_search.client_flows import Flow, Pause, Retrying

T = TypeVar("T")

DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT: Final = httpx.Timeout(120.0, connect=10.0)
"""Seconds without a byte. A request with wait=True is silent for a minute."""

UNCHANGED: Final[Any] = object()
"""Of `update_video`: leave this as it is. None takes it away."""


class Client:
    """Talks to one server; keeps connections open until it is closed. For one thread at a time.

    server: its address, with a path where a proxy puts it below one. key: an API key. timeout: in seconds, or
    httpx.Timeout. max_attempts: how often a request is sent at most. transport: instead of the network.
    Every method raises ClientError, see `xclip_search.client_errors`.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retrying = Retrying(max_attempts)
        self._http = httpx.Client(
            base_url=server, headers=request_headers(key), timeout=timeout, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Searching

    def search(self, query: str, **options: Unpack[SearchOptions]) -> SearchAnswer:
        """Find videos by what is to be seen."""
        return self._do(calls.search(query, options))

    def search_all(
        self, query: str, *, max_results: int | None = None, **options: Unpack[SearchOptions]
    ) -> Iterator[Result]:
        """All results of a search, best first, page by page; `limit` is the size of a page.

        Nothing is repeated while videos come and go. Ends at the offset that the server allows at most.
        """
        offset, seen, num_left = options.get("offset", 0), set[str | int](), max_results
        while (num_left is None or num_left > 0) and offset <= MAX_OFFSET:
            options["offset"] = offset
            answer = self.search(query, **options)
            for item in answer.results:
                key = item.segment_id if options.get("group_by") == "segment" else item.id
                # While videos come and go a result may shift to the next page.
                if key not in seen and (num_left is None or num_left > 0):
                    seen.add(key)
                    num_left = None if num_left is None else num_left - 1
                    yield item
            if len(answer.results) < options.get("limit", DEFAULT_LIMIT):
                return
            offset += len(answer.results)

    def search_many(self, queries: Sequence[str], **options: Unpack[SearchOptions]) -> ManySearchAnswers:
        """Search for 1 to 32 texts in one request."""
        return self._do(calls.search_many(queries, options))

    def similar(
        self, video_id: str, *, limit: int = 10, offset: int = 0, filter: Filter | None = None
    ) -> SimilarVideos:
        """Videos that look like this one."""
        return self._do(calls.similar(video_id, limit, offset, filter))

    def rank_texts(self, video_id: str, texts: Sequence[str]) -> RankedTexts:
        """Which of these texts fits the video best: the search the other way round."""
        return self._do(calls.rank_texts(video_id, texts))

    # Videos

    def add_video(
        self,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        wait: bool = False,
        on_progress: OnProgress | None = None,
    ) -> AddedVideo:
        """Upload a file; it is never in memory as a whole.

        wait: answer when the video can be found, or after about a minute. on_progress: called with how many
        bytes of how many were sent, from 0 again where the file is sent again.
        """
        return self._do(calls.add_video(path, title, metadata, wait, on_progress))

    def add_uri(
        self,
        uri: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        wait: bool = False,
    ) -> AddedVideo:
        """Let the server index a file of its own, or fetch one from the web, where it is allowed to."""
        return self._do(calls.add_uri(uri, title, metadata, id, wait))

    def get_video(self, video_id: str) -> Video:
        """One video."""
        return self._do(calls.get_video(video_id))

    def list_videos(
        self, *, limit: int = 50, after: int | None = None, filter: Filter | None = None
    ) -> VideoPage:
        """A page of videos, newest first. after: `next` of the page before."""
        return self._do(calls.list_videos(limit, after, filter))

    def videos(self, *, filter: Filter | None = None) -> Iterator[Video]:
        """All videos, newest first."""
        after: int | None = None
        while True:
            page = self.list_videos(limit=200, after=after, filter=filter)
            yield from page.videos
            if page.next is None:
                return
            after = page.next

    def update_video(
        self, video_id: str, *, title: str | None = UNCHANGED, metadata: Mapping[str, Any] | None = UNCHANGED
    ) -> Video:
        """Change title or metadata. A field of the metadata that is None is taken away, others stay."""
        return self._do(calls.update_video(video_id, changes(title, metadata)))

    def delete_video(self, video_id: str) -> None:
        """Remove a video; a file that was uploaded is deleted."""
        self._do(calls.delete_video(video_id))

    def download_media(
        self, video_id: str, path: str | os.PathLike[str], *, on_progress: OnProgress | None = None
    ) -> Path:
        """Save the video's file at `path`, checked by its sha256. A call that was cut off goes on."""
        return self._run(flows.download_media(video_id, Path(path), on_progress, self._retrying))

    def thumbnail(self, video_id: str, *, time_seconds: float = 0.0, width: int = 320) -> bytes:
        """A JPEG of what the video shows at a moment."""
        return self._do(calls.thumbnail(video_id, time_seconds, width))

    def preview(self, video_id: str, *, time_seconds: float = 0.0) -> bytes:
        """A short clip around a moment, of a kind that every browser plays."""
        return self._do(calls.preview(video_id, time_seconds))

    # Jobs

    def get_job(self, job_id: str) -> Job:
        """One ingest request."""
        return self._do(calls.get_job(job_id))

    def wait_for_job(self, job_id: str, *, timeout_seconds: float | None = None) -> Job:
        """The job when it is done. Raises JobFailedError, and WaitTimeoutError after `timeout_seconds`."""
        return self._run(flows.wait_for_job(job_id, timeout_seconds, self._retrying))

    def cancel_job(self, job_id: str) -> Job:
        """Cancel a job that waits or runs; one that has ended stays as it is."""
        return self._do(calls.cancel_job(job_id))

    def list_jobs(
        self, *, limit: int = 50, after: int | None = None, state: JobState | None = None
    ) -> JobPage:
        """A page of jobs, newest first. after: `next` of the page before."""
        return self._do(calls.list_jobs(limit, after, state))

    def jobs(self, *, state: JobState | None = None) -> Iterator[Job]:
        """All jobs, newest first."""
        after: int | None = None
        while True:
            page = self.list_jobs(limit=200, after=after, state=state)
            yield from page.jobs
            if page.next is None:
                return
            after = page.next

    # The server

    def access(self) -> Access:
        """What the key may do."""
        return self._do(calls.access())

    def stats(self) -> Stats:
        """What there is and what is going on."""
        return self._do(calls.stats())

    def metrics(self) -> str:
        """Figures in the text format of Prometheus."""
        return self._do(calls.metrics())

    def is_alive(self) -> bool:
        """Whether the process answers: True, or ConnectionFailedError."""
        return self._do(calls.health()).status == "ok"

    def is_ready(self) -> bool:
        """Whether searches are answered right now."""
        try:
            return self._run(flows.exchange(calls.readiness(), Retrying(max_attempts=1))).status == "ok"
        except BusyError:
            return False

    def _do(self, call: Call[T]) -> T:
        return self._run(flows.exchange(call, self._retrying))

    def _run(self, flow: Flow[T]) -> T:
        """Do what the flow says until it returns."""
        answer: httpx.Response | None = None
        error: httpx.TransportError | None = None
        try:
            while True:
                step = flow.throw(error) if error is not None else flow.send(answer)
                answer = error = None
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    continue
                try:
                    answer = self._send(step.call)
                except httpx.TransportError as raised:
                    error = raised
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    def _send(self, call: Call[Any]) -> httpx.Response:
        with call.to_request(self._http) as request:
            response = self._http.send(request, stream=True)
        try:
            if call.sink is None or response.status_code >= 400:
                response.read()
            else:
                call.sink.begin(response)
                for chunk in response.iter_raw():
                    call.sink.write(chunk)
        finally:
            response.close()
        return response


def request_headers(key: str | None) -> dict[str, str]:
    """Of every request. key: an API key, or None."""
    headers = {"User-Agent": "xclip-search-client", "Accept": "application/json, */*;q=0.5"}
    return headers if key is None else {**headers, "Authorization": f"Bearer {key}"}


def changes(title: str | None, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The merge patch of `update_video`."""
    values = {"title": title, "metadata": metadata}
    return {name: value for name, value in values.items() if value is not UNCHANGED}
