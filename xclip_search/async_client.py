"""`AsyncClient`: `xclip_search.client.Client` for programs that await.

async with AsyncClient("http://127.0.0.1:8000") as client:
    answers = await asyncio.gather(*(client.search(text) for text in texts))
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio
import httpx
from anyio import to_thread

from indexer.search.types import DEFAULT_LIMIT, MAX_OFFSET
from xclip_search import client_calls as calls
from xclip_search import client_flows as flows
from xclip_search.client import DEFAULT_SERVER, DEFAULT_TIMEOUT, UNCHANGED, changes, request_headers
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


class AsyncClient:
    """As `Client`, method for method. For one event loop."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        key: str | None = None,
        timeout: float | httpx.Timeout = DEFAULT_TIMEOUT,
        max_attempts: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retrying = Retrying(max_attempts)
        self._http = httpx.AsyncClient(
            base_url=server, headers=request_headers(key), timeout=timeout, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Client.close`."""
        await self._http.aclose()

    # Searching

    async def search(self, query: str, **options: Unpack[SearchOptions]) -> SearchAnswer:
        """See `Client.search`."""
        return await self._do(calls.search(query, options))

    async def search_all(
        self, query: str, *, max_results: int | None = None, **options: Unpack[SearchOptions]
    ) -> AsyncIterator[Result]:
        """See `Client.search_all`."""
        offset, seen, num_left = options.get("offset", 0), set[str | int](), max_results
        while (num_left is None or num_left > 0) and offset <= MAX_OFFSET:
            options["offset"] = offset
            answer = await self.search(query, **options)
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

    async def search_many(
        self, queries: Sequence[str], **options: Unpack[SearchOptions]
    ) -> ManySearchAnswers:
        """See `Client.search_many`."""
        return await self._do(calls.search_many(queries, options))

    async def similar(
        self, video_id: str, *, limit: int = 10, offset: int = 0, filter: Filter | None = None
    ) -> SimilarVideos:
        """See `Client.similar`."""
        return await self._do(calls.similar(video_id, limit, offset, filter))

    async def rank_texts(self, video_id: str, texts: Sequence[str]) -> RankedTexts:
        """See `Client.rank_texts`."""
        return await self._do(calls.rank_texts(video_id, texts))

    # Videos

    async def add_video(
        self,
        path: str | os.PathLike[str],
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        wait: bool = False,
        on_progress: OnProgress | None = None,
    ) -> AddedVideo:
        """See `Client.add_video`."""
        return await self._do(calls.add_video(path, title, metadata, wait, on_progress))

    async def add_uri(
        self,
        uri: str,
        *,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        id: str | None = None,
        wait: bool = False,
    ) -> AddedVideo:
        """See `Client.add_uri`."""
        return await self._do(calls.add_uri(uri, title, metadata, id, wait))

    async def get_video(self, video_id: str) -> Video:
        """See `Client.get_video`."""
        return await self._do(calls.get_video(video_id))

    async def list_videos(
        self, *, limit: int = 50, after: int | None = None, filter: Filter | None = None
    ) -> VideoPage:
        """See `Client.list_videos`."""
        return await self._do(calls.list_videos(limit, after, filter))

    async def videos(self, *, filter: Filter | None = None) -> AsyncIterator[Video]:
        """See `Client.videos`."""
        after: int | None = None
        while True:
            page = await self.list_videos(limit=200, after=after, filter=filter)
            for item in page.videos:
                yield item
            if page.next is None:
                return
            after = page.next

    async def update_video(
        self, video_id: str, *, title: str | None = UNCHANGED, metadata: Mapping[str, Any] | None = UNCHANGED
    ) -> Video:
        """See `Client.update_video`."""
        return await self._do(calls.update_video(video_id, changes(title, metadata)))

    async def delete_video(self, video_id: str) -> None:
        """See `Client.delete_video`."""
        await self._do(calls.delete_video(video_id))

    async def download_media(
        self, video_id: str, path: str | os.PathLike[str], *, on_progress: OnProgress | None = None
    ) -> Path:
        """See `Client.download_media`."""
        return await self._run(flows.download_media(video_id, Path(path), on_progress, self._retrying))

    async def thumbnail(self, video_id: str, *, time_seconds: float = 0.0, width: int = 320) -> bytes:
        """See `Client.thumbnail`."""
        return await self._do(calls.thumbnail(video_id, time_seconds, width))

    async def preview(self, video_id: str, *, time_seconds: float = 0.0) -> bytes:
        """See `Client.preview`."""
        return await self._do(calls.preview(video_id, time_seconds))

    # Jobs

    async def get_job(self, job_id: str) -> Job:
        """See `Client.get_job`."""
        return await self._do(calls.get_job(job_id))

    async def wait_for_job(self, job_id: str, *, timeout_seconds: float | None = None) -> Job:
        """See `Client.wait_for_job`."""
        return await self._run(flows.wait_for_job(job_id, timeout_seconds, self._retrying))

    async def cancel_job(self, job_id: str) -> Job:
        """See `Client.cancel_job`."""
        return await self._do(calls.cancel_job(job_id))

    async def list_jobs(
        self, *, limit: int = 50, after: int | None = None, state: JobState | None = None
    ) -> JobPage:
        """See `Client.list_jobs`."""
        return await self._do(calls.list_jobs(limit, after, state))

    async def jobs(self, *, state: JobState | None = None) -> AsyncIterator[Job]:
        """See `Client.jobs`."""
        after: int | None = None
        while True:
            page = await self.list_jobs(limit=200, after=after, state=state)
            for item in page.jobs:
                yield item
            if page.next is None:
                return
            after = page.next

    # The server

    async def access(self) -> Access:
        """See `Client.access`."""
        return await self._do(calls.access())

    async def stats(self) -> Stats:
        """See `Client.stats`."""
        return await self._do(calls.stats())

    async def metrics(self) -> str:
        """See `Client.metrics`."""
        return await self._do(calls.metrics())

    async def is_alive(self) -> bool:
        """See `Client.is_alive`."""
        return (await self._do(calls.health())).status == "ok"

    async def is_ready(self) -> bool:
        """See `Client.is_ready`."""
        try:
            flow = flows.exchange(calls.readiness(), Retrying(max_attempts=1))
            return (await self._run(flow)).status == "ok"
        except BusyError:
            return False

    async def _do(self, call: Call[T]) -> T:
        return await self._run(flows.exchange(call, self._retrying))

    async def _run(self, flow: Flow[T]) -> T:
        """Do what the flow says until it returns."""
        answer: httpx.Response | None = None
        error: httpx.TransportError | None = None
        try:
            while True:
                step = flow.throw(error) if error is not None else flow.send(answer)
                answer = error = None
                if isinstance(step, Pause):
                    await anyio.sleep(step.seconds)
                    continue
                try:
                    answer = await self._send(step.call)
                except httpx.TransportError as raised:
                    error = raised
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            flow.close()

    async def _send(self, call: Call[Any]) -> httpx.Response:
        with call.to_request(self._http) as request:
            response = await self._http.send(request, stream=True)
        try:
            if call.sink is None or response.status_code >= 400:
                await response.aread()
            else:
                call.sink.begin(response)
                async for chunk in response.aiter_raw():
                    await to_thread.run_sync(call.sink.write, chunk)
        finally:
            await response.aclose()
        return response
