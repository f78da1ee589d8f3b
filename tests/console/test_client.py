"""The Python client against the service over real sockets, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from service.auth.keys import add_key
from tests.support.servers.service_fakes import Service, add_video, running
from tests.support.servers.serving_thread import served
from xclip_search import AsyncClient, Client, client_errors
from xclip_search import client as client_module
from xclip_search.client_errors import (
    BusyError,
    ClientError,
    ConnectionFailedError,
    DamagedDownloadError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    ServerFailedError,
    TooLargeError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)

MP4 = b"\x00\x00\x00\x18ftypmp42" + os.urandom(300_000)
ONLY_FOR_BROWSERS = {("POST", "/session"), ("DELETE", "/session")}
"""A program sends its key with every request."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("client")
    (folder / "allowed").mkdir()
    service = Service(
        folder / "index",
        upload_limit_bytes=1_000_000,
        allowed_roots=(folder / "allowed",),
        wait_limit_seconds=0.2,
        url_ingest=True,
    )
    yield service
    service.catalog.close()


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[str]:
    with served(service.app) as url:
        yield url


class Awaited:
    """An `AsyncClient` whose every call is awaited here, so that the same tests run against both clients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*arguments, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            result = getattr(self._client, name)(*arguments, **options)
            return self._iterate(result) if inspect.isasyncgen(result) else self._runner.run(result)

        return call

    def _iterate(self, items: Any) -> Iterator[Any]:
        async def next_item() -> Any:
            return await anext(items)

        with contextlib.suppress(StopAsyncIteration):
            while True:
                yield self._runner.run(next_item())


MakeClient = Callable[..., Any]


@pytest.fixture(params=[Client, Awaited], ids=["waiting", "awaiting"])
def make_client(request: pytest.FixtureRequest) -> MakeClient:
    """Either client, as something to call."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def client(make_client: MakeClient, server: str) -> Iterator[Any]:
    with make_client(server, max_attempts=2) as client:
        yield client


@pytest.fixture(autouse=True)
def quick_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(client_module, "FIRST_POLL_SECONDS", 0.01)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "a clip é.mp4"
    path.write_bytes(MP4 + tmp_path.name.encode())
    return path


def keep(service: Service, clip: Path) -> str:
    """Put a video in as the worker would; returns its id."""
    store, video_id = service.app.state.service.media_store, uuid.uuid4().hex
    upload = store.new_upload_path()
    upload.write_bytes(clip.read_bytes())
    store.keep(upload, video_id)
    return add_video(service.catalog, video_id, clip.read_bytes())


# The contract


def exercise(client: Any, video_id: str, folder: Path) -> list[Callable[[], Any]]:
    """Every method once, with fitting arguments."""
    (folder / "file").write_bytes(MP4)
    (folder / "lines.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    return [
        lambda: client.search("a dog", limit=1),
        lambda: client.search_many(["a", "b"]),
        lambda: client.similar(video_id),
        lambda: client.rank_texts(video_id, ["a", "b"]),
        lambda: client.add_video(folder / "file"),
        lambda: client.add_uri("https://videos.example/a.mp4"),
        lambda: client.get_video(video_id),
        lambda: client.list_videos(filter={"title": "x"}),
        lambda: client.update_video(video_id, title="new", metadata={"a": None}),
        lambda: client.download_media(video_id, folder / "media"),
        lambda: client.thumbnail(video_id),
        lambda: client.preview(video_id),
        lambda: client.delete_video("none"),
        lambda: client.get_job("none"),
        lambda: client.search_media(folder / "file", limit=1, filter={"title": "x"}),
        lambda: client.put_transcript(video_id, folder / "lines.srt", track="en"),
        lambda: client.list_transcripts(video_id),
        lambda: client.get_transcript(video_id, "en"),
        lambda: client.delete_transcript(video_id, "en"),
        lambda: client.wait_for_job("none"),
        lambda: client.cancel_job("none"),
        lambda: client.list_jobs(),
        lambda: client.access(),
        lambda: client.stats(),
        lambda: client.metrics(),
        lambda: client.is_alive(),
        lambda: client.is_ready(),
    ]


def test_every_operation_of_the_api_is_reached_by_a_method_and_none_is_invalid(
    service: Service, server: str, tmp_path: Path
) -> None:
    add_video(service.catalog, "contract")
    seen: list[tuple[str, str, int]] = []

    class Recording(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            response = await super().handle_async_request(request)
            seen.append((request.method, request.url.path, response.status_code))
            return response

    with Client(server, max_attempts=1, transport=Recording()) as client:
        for call in exercise(client, "contract", tmp_path):
            # There is no file, and no model behind the fake; the request itself was understood.
            with contextlib.suppress(NotFoundError, BusyError, ServerFailedError):
                call()
    operations = {
        (method.upper(), path)
        for path, methods in service.app.openapi()["paths"].items()
        for method in methods
    }
    reached = {
        (method, template)
        for method, template in operations
        for seen_method, path, _ in seen
        if seen_method == method and re.fullmatch(re.sub(r"\{[^/]+\}", "[^/]+", template), path)
    }
    assert operations - reached == ONLY_FOR_BROWSERS, "give the client a method for the new operation"
    refused = [one for one in seen if one[2] in (400, 405, 415, 422)]
    assert refused == []


def test_the_options_of_a_search_are_those_of_the_api(service: Service) -> None:
    from service.schemas.search import SearchRequest
    from xclip_search.client import SearchOptions

    fields = set(SearchRequest.model_fields) - {"query", "queries"}
    assert set(SearchOptions.__annotations__) == fields


def test_the_two_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def methods(cls: type) -> dict[str, list[str]]:
        functions = inspect.getmembers(cls, inspect.isfunction)
        return {
            name: list(inspect.signature(function).parameters)
            for name, function in functions
            if not name.startswith("_") or name == "__init__"
        }

    assert methods(Client) == methods(AsyncClient)


def test_the_tree_of_errors_is_drawn_with_every_class() -> None:
    drawn = re.findall(r"^[│├└─ ]+(\w+Error) ", client_errors.__doc__ or "", re.MULTILINE)
    classes = [
        name
        for name, value in vars(client_errors).items()
        if isinstance(value, type) and issubclass(value, ClientError) and value is not ClientError
    ]
    assert sorted(drawn) == sorted(classes)


def test_the_client_loads_neither_the_network_nor_the_server() -> None:
    code = (
        "import sys, xclip_search.client\n"
        "heavy = {'torch', 'faiss', 'fastapi', 'av', 'numpy', 'uvicorn'}\n"
        "print([name for name in sys.modules if name in heavy])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# Videos and jobs


def test_a_file_is_uploaded_with_its_fields_in_blocks_and_reports_its_progress(
    service: Service, client: Any, clip: Path
) -> None:
    progress: list[tuple[int, int]] = []
    added = client.add_video(
        clip, title="é 🐕", metadata={"k": [1, None]}, on_progress=lambda *now: progress.append(now)
    )
    assert added.job is not None and added.job.state == "queued" and not added.was_known
    job = service.job_queue.get(added.job.id)
    assert (job.title, job.metadata) == ("é 🐕", {"k": [1, None]})
    assert Path(job.source_path).read_bytes() == clip.read_bytes()
    size = clip.stat().st_size
    assert progress[-1] == (size, size) and len(progress) > 3
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    again = client.add_video(clip)
    assert again.job is not None and again.job.id == added.job.id
    assert client.cancel_job(added.job.id).reason == "cancelled"


def test_bytes_that_are_known_are_answered_without_a_job(service: Service, client: Any, clip: Path) -> None:
    known = add_video(service.catalog, uuid.uuid4().hex, clip.read_bytes())
    added = client.add_video(clip)
    assert added.was_known and added.video.id == known


def test_a_file_too_large_is_refused_before_all_of_it_is_sent(client: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(TooLargeError) as refused:
        client.add_video(large)
    assert refused.value.kind == "body-too-large" and refused.value.status == 413


def test_a_job_is_waited_for(service: Service, client: Any, clip: Path) -> None:
    added = client.add_video(clip)
    assert added.job is not None
    with pytest.raises(WaitTimeoutError, match=r"is still queued after 0\.05 seconds"):
        client.wait_for_job(added.job.id, timeout_seconds=0.05)
    service.job_queue.cancel(added.job.id, "a PNG image, not a video")
    with pytest.raises(JobFailedError, match="a PNG image") as failed:
        client.wait_for_job(added.job.id)
    assert failed.value.job.state == "failed"
    with pytest.raises(NotFoundError):
        client.wait_for_job("none")


def test_videos_and_jobs_are_listed_over_all_pages(service: Service, client: Any) -> None:
    for number in range(230):
        add_video(service.catalog, f"page {number}".replace(" ", "-"))
    ids = [video.id for video in client.videos()]
    assert len(ids) == len(set(ids)) == service.catalog.num_videos >= 230
    assert [job.id for job in client.jobs(state="failed")] == [
        job.id for job in service.job_queue.list_jobs(1000, state="failed")
    ]
    assert len(client.list_videos(limit=3).videos) == 3


def test_a_video_is_deleted_and_then_not_found(service: Service, client: Any) -> None:
    add_video(service.catalog, "ä-id")
    assert client.get_video("ä-id").title == "title of ä-id"
    client.delete_video("ä-id")
    with pytest.raises(NotFoundError) as missing:
        client.get_video("ä-id")
    assert missing.value.kind == "video-not-found" and "GET /videos lists" in str(missing.value)
    for wrong in ("", ".", ".."):
        with pytest.raises(ValueError, match="is no id"):
            client.delete_video(wrong)


def test_a_wrong_request_names_the_field(client: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        client.search("a dog", limit=1000)
    assert refused.value.errors == [("limit", "Input should be less than or equal to 100.")]


# Files


def test_media_is_saved_whole_and_goes_on_where_it_stopped(
    service: Service, make_client: MakeClient, server: str, client: Any, clip: Path, tmp_path: Path
) -> None:
    video_id = keep(service, clip)
    target = tmp_path / "copy.mp4"
    progress: list[tuple[int, int]] = []
    assert client.download_media(video_id, target, on_progress=lambda *now: progress.append(now)) == target
    content = clip.read_bytes()
    assert target.read_bytes() == content and progress[-1] == (len(content), len(content))

    video = client.get_video(video_id)
    unfinished = tmp_path / f".again.mp4.{video.content_sha256[:16]}.part"
    unfinished.write_bytes(content[:100_000])
    ranges: list[str | None] = []

    class Recording(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            ranges.append(request.headers.get("range"))
            return await super().handle_async_request(request)

    with make_client(server, transport=Recording()) as recording:
        recording.download_media(video_id, tmp_path / "again.mp4")
    assert ranges == [None, "bytes=100000-"] and (tmp_path / "again.mp4").read_bytes() == content
    unfinished.write_bytes(content)  # Whole already: nothing more is asked for.
    client.download_media(video_id, tmp_path / "again.mp4")
    assert not unfinished.exists()

    unfinished.write_bytes(b"other bytes")
    with pytest.raises(DamagedDownloadError):
        client.download_media(video_id, tmp_path / "again.mp4")
    assert (tmp_path / "again.mp4").read_bytes() == content and not unfinished.exists()


def test_a_picture_is_bytes(service: Service, client: Any, clip: Path, tmp_path: Path) -> None:
    clip.write_bytes(clip.read_bytes() + b"another")
    video_id = keep(service, clip)
    assert client.thumbnail(video_id, time_seconds=3.5, width=100).startswith(b"a picture of ")
    assert service.pictures[-1][1:] == (3.5, 100)


# When things go wrong


def transport(
    *answers: httpx.Response | Exception, seen: list[httpx.Request] | None = None
) -> httpx.MockTransport:
    """Answers in turn; the last one for ever."""
    left = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        request.read()
        if seen is not None:
            seen.append(request)
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle)


def problem(status: int, kind: str = "overloaded", **headers: str) -> httpx.Response:
    body = {"type": f"urn:xclip-search:problem:{kind}", "title": kind, "status": status, "detail": "d"}
    return httpx.Response(status, json=body, headers=headers)


ADDED = {"job": None, "video": {"id": "v"}}


@pytest.mark.parametrize(
    "first",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.WriteError("broken pipe"),
        httpx.RemoteProtocolError("gone"),
        problem(503, **{"Retry-After": "0"}),
        problem(429, **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        problem(503, **{"Retry-After": "soon"}),
    ],
)
def test_a_request_is_sent_again_as_the_same_request(
    make_client: MakeClient, first: httpx.Response | Exception, clip: Path
) -> None:
    seen: list[httpx.Request] = []
    answers = transport(first, httpx.Response(200, json=ADDED), seen=seen)
    with make_client("http://server.example", transport=answers) as client:
        assert client.add_video(clip).video.id == "v"
    assert len(seen) == 2
    bodies = [re.sub(rb"--[0-9a-f]{32}", b"--", request.content) for request in seen]
    assert bodies[0] == bodies[1] and clip.read_bytes() in bodies[0]


def test_sending_again_ends(make_client: MakeClient) -> None:
    for answer, error in [(httpx.ConnectError("refused"), ConnectionFailedError), (problem(503), BusyError)]:
        seen: list[httpx.Request] = []
        answers = transport(answer, seen=seen)
        with (
            make_client("http://server.example", max_attempts=3, transport=answers) as client,
            pytest.raises(error),
        ):
            client.search("a dog")
        assert len(seen) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (problem(503, **{"Retry-After": "3600"}), BusyError),
        (problem(500, "internal-error"), ServerFailedError),
        (problem(504, "deadline-exceeded"), BusyError),
        (problem(401, "unauthorized"), client_errors.UnauthorizedError),
        (problem(403, "forbidden"), client_errors.ForbiddenError),
        (problem(409, "id-taken"), client_errors.ConflictError),
        (problem(422, "video-rejected"), InvalidRequestError),
        (httpx.Response(502, text="<html>Bad gateway"), UnexpectedAnswerError),
        (httpx.Response(200, text="<html>Hello"), UnexpectedAnswerError),
        (httpx.Response(200, json={"other": 1}), UnexpectedAnswerError),
        (httpx.Response(404, json=["no problem object"]), UnexpectedAnswerError),
        (httpx.ReadTimeout("slow"), ConnectionFailedError),
    ],
)
def test_what_will_not_help_is_not_sent_again(
    make_client: MakeClient, answer: Any, error: type[ClientError]
) -> None:
    seen: list[httpx.Request] = []
    answers = transport(answer, seen=seen)
    with make_client("http://server.example", transport=answers) as client, pytest.raises(error):
        client.search("a dog")
    assert len(seen) == 1


def test_a_deletion_whose_answer_was_lost_is_done(make_client: MakeClient) -> None:
    lost = transport(httpx.ReadError("reset"), problem(404, "video-not-found"))
    with make_client("http://server.example", transport=lost) as client:
        client.delete_video("v")
    never_sent = transport(httpx.ConnectError("refused"), problem(404, "video-not-found"))
    with make_client("http://server.example", transport=never_sent) as client, pytest.raises(NotFoundError):
        client.delete_video("v")


def test_a_server_that_is_not_there_is_named_with_its_address(make_client: MakeClient) -> None:
    with (
        make_client("http://127.0.0.1:9", max_attempts=1) as client,
        pytest.raises(
            ConnectionFailedError, match=r"nothing answers at http://127\.0\.0\.1:9: is the server"
        ),
    ):
        client.stats()
    with (
        make_client("127.0.0.1:8000", max_attempts=1) as client,
        pytest.raises(ConnectionFailedError, match="http://"),
    ):
        client.stats()


def test_the_key_goes_with_every_request_and_a_path_before_the_api_is_kept(make_client: MakeClient) -> None:
    seen: list[httpx.Request] = []
    answers = transport(httpx.Response(200, json={"status": "ok"}), seen=seen)
    with make_client("https://server.example/search-api/", key="secret", transport=answers) as client:
        assert client.is_alive() and client.is_ready()
    assert [str(request.url) for request in seen] == [
        "https://server.example/search-api/healthz",
        "https://server.example/search-api/readyz",
    ]
    assert {request.headers["authorization"] for request in seen} == {"Bearer secret"}


def test_a_server_that_is_not_ready_is_not_an_error(make_client: MakeClient) -> None:
    with make_client("http://server.example", transport=transport(problem(503, "not-ready"))) as client:
        assert not client.is_ready()


def search_page(*ranks: int) -> httpx.Response:
    scores = dict.fromkeys(("video_sentence", "video_word", "sentence_frame", "frame_word"), 1.0)
    result = {
        "score": 1.0, "percentile": None, "scores": scores, "title": None, "uri": None,
        "duration_seconds": 1.0, "media_start_seconds": 0.0, "recorded_at": None,
        "metadata": {}, "segment": {"start_seconds": 0, "end_seconds": 1},
        "moments": [], "thumbnail_url": "", "media_url": "", "preview_url": "", "playable": True,
    }  # fmt: skip
    seconds = dict.fromkeys(("encode_seconds", "coarse_seconds", "rerank_seconds", "total_seconds"), 1.0)
    body = {
        "query": "q", "mode": "rerank", "num_videos": 9, "truncated": False, "warnings": [],
        "results": [{**result, "id": str(rank), "segment_id": rank, "rank": rank} for rank in ranks],
        "timings": seconds, "a field of a newer server": 1,
    }  # fmt: skip
    return httpx.Response(200, json=body)


@pytest.mark.parametrize(
    ("max_results", "num_pages"), [(None, 3), (6, 3), (5, 2), (4, 2), (3, 1), (2, 1), (0, 0)]
)
def test_a_search_goes_over_all_pages_and_shows_nothing_twice(
    make_client: MakeClient, max_results: int | None, num_pages: int
) -> None:
    seen: list[httpx.Request] = []
    # A video that is added meanwhile moves the third result to the next page.
    pages = transport(
        search_page(1, 2, 3), httpx.ReadError("reset"), search_page(3, 4, 5), search_page(6), seen=seen
    )
    with make_client("http://server.example", transport=pages) as client:
        found = [result.rank for result in client.search_all("q", max_results=max_results, limit=3, offset=1)]
    assert found == [1, 2, 3, 4, 5, 6][:max_results]
    offsets = [json.loads(request.content)["offset"] for request in seen]
    assert offsets == {3: [1, 4, 4, 7], 2: [1, 4, 4], 1: [1], 0: []}[num_pages]


def test_ctrl_c_ends_a_call_and_the_client_goes_on() -> None:
    """A caller that stops waiting cancels the request."""
    cancelled = threading.Event()

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.path == "/healthz":
                return httpx.Response(200, json={"status": "ok"})
            await asyncio.sleep(0.1)  # The caller waits by then.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError("never")

    # Where the tests run in the background of a shell, it has set the signal to be ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Client("http://server.example", transport=Slow()) as client:
            with pytest.raises(KeyboardInterrupt):
                client.stats()
            assert cancelled.wait(10)
            assert client.is_alive()
    finally:
        signal.signal(signal.SIGINT, former)


def test_a_client_that_was_closed_says_so_and_may_be_closed_again() -> None:
    client = Client("http://server.example", transport=transport(problem(503)))
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="has been closed"):
        client.stats()


def test_many_threads_may_use_one_client(server: str) -> None:
    with Client(server) as client, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda text: client.search(text, limit=2), "abcd"))
    assert [answer.query for answer in answers] == ["a", "b", "c", "d"]


def test_the_awaiting_client_does_many_things_concurrently(service: Service, server: str, clip: Path) -> None:
    clip.write_bytes(clip.read_bytes() + b"awaited")
    for left_over in service.job_queue.list_jobs(1000, state="queued"):
        service.job_queue.cancel(left_over.id)

    async def work() -> None:
        async with AsyncClient(server) as client:
            added = await client.add_video(clip, title="awaited")
            assert added.job is not None
            job = service.job_queue.lease("test", 60)
            assert job is not None
            waiting = asyncio.create_task(client.wait_for_job(job.id, timeout_seconds=20))
            service.app.state.service.media_store.keep(Path(job.source_path), job.video_id)
            add_video(service.catalog, job.video_id, clip.read_bytes(), finish_job=job.id)
            assert (await waiting).video_id == job.video_id
            first = await anext(video.id async for video in client.videos())
            answers = await asyncio.gather(*(client.search(text, limit=2) for text in "abc"))
            assert [answer.query for answer in answers] == ["a", "b", "c"] and first == job.video_id
            await client.delete_video(job.video_id)

    asyncio.run(work())


def test_an_address_may_have_a_path_and_what_a_proxy_asks_for(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys.json", "me", "write")
    with running(tmp_path / "index", keys_file=tmp_path / "keys.json", root_path="/xclip") as service:
        add_video(service.catalog, "known")
        seen: list[httpx.Request] = []

        class Noting(httpx.ASGITransport):
            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                seen.append(request)
                return await super().handle_async_request(request)

        for server in ("http://ann:pass@localhost/xclip/", "http://localhost/xclip"):
            with Client(server, key=secret, transport=Noting(service.app)) as client:
                assert [video.id for video in client.videos()] == ["known"]
                assert client.search("x").results[0].id == "known"
                assert client.is_ready()
        assert {request.url.path for request in seen} == {"/xclip/videos", "/xclip/search", "/xclip/readyz"}
        assert seen[0].headers["authorization"].startswith("Basic ")
        assert seen[-1].headers["authorization"] == f"Bearer {secret}"
