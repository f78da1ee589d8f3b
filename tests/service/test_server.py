"""The server: it ends without dropping what it has begun. Deadlines of requests, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.responses import Response

from service.http.middleware import SPARE_CONNECTIONS, BoundedProtocol, DeadlineMiddleware, HeadersMiddleware
from service.index_switch import _retire
from service.loading import freeze_loaded_objects
from service.server import (
    MAX_FILES,
    OWN_FILES,
    DrainingServer,
    _connections_within_limits,
    listen_on,
    run_server,
)
from service.settings import Settings
from service.state import Drain

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Server:
    """A server in a thread. hold: requests to /hold wait for it."""

    def __init__(self, delay_seconds: float) -> None:
        self.hold = threading.Event()
        self.num_begun = 0
        drain = Drain()
        app = HeadersMiddleware(self._app, is_ending=lambda: drain.begun)
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=10,
        )
        self.server = DrainingServer(config, drain, delay_seconds)
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_begun += 1
        while scope["path"] == "/hold" and not self.hold.is_set():
            await asyncio.sleep(0.01)
        await Response(b"yes")(scope, receive, send)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)


@contextlib.contextmanager
def running(delay_seconds: float = 0.0) -> Iterator[Server]:
    server = Server(delay_seconds)
    server.thread.start()
    try:
        wait_until(lambda: server.server.started)
        yield server
    finally:
        server.server.should_exit = True
        server.hold.set()
        server.thread.join(20)
        assert not server.thread.is_alive()


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The end


def test_at_the_end_requests_under_way_are_answered_and_nothing_new_is_accepted() -> None:
    with running() as server, server.connect() as under_way, server.connect() as idle:
        under_way.sendall(GET.replace(b"/ ", b"/hold "))
        wait_until(lambda: server.num_begun == 1)
        server.server.handle_exit(15, None)
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        server.hold.set()
        answer = read_all(under_way)
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"yes")
        assert b"connection: close" in answer.lower()


def test_for_the_delay_before_the_end_new_requests_are_answered_too() -> None:
    with running(delay_seconds=0.5) as server:
        server.server.handle_exit(15, None)
        with server.connect() as late:
            late.sendall(GET)
            answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower()


def test_a_port_that_is_taken_is_an_error_at_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run_server(Settings(index=tmp_path, start_worker=False, port=port)) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capfd.readouterr().err


# Garbage collection


class Knot:
    """A service that only a collection can free."""

    def __init__(self) -> None:
        self.itself = self

    @property
    def searcher(self) -> Knot:
        return self

    def close(self) -> None: ...


def test_what_was_loaded_is_passed_over_by_collections_until_it_is_retired() -> None:
    async def switch() -> weakref.ref[Knot]:
        former: Any = Knot()
        seen = weakref.ref(former)
        freeze_loaded_objects()
        assert gc.get_freeze_count() > 0
        task = asyncio.create_task(_retire(former, 0.0))
        del former
        await task
        return seen

    try:
        assert asyncio.run(switch())() is None
    finally:
        gc.unfreeze()


# Deadlines, without a server


def call(app: Any, messages: list[tuple[float, dict[str, Any]]], **options: Any) -> int:
    """The status that `app`, behind a DeadlineMiddleware, answers to body messages, each after a pause."""
    values = {"request_timeout_seconds": 5.0, "body_timeout_seconds": 0.2, "min_bytes_per_second": 100}
    middleware = DeadlineMiddleware(app, **{**values, **options})
    sent: list[Any] = []

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(60)
        pause, message = messages.pop(0)
        await asyncio.sleep(pause)
        return {"type": "http.request", **message}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(middleware(scope, receive, send))
    status: int = sent[0]["status"]
    return status


async def read_it(scope: Any, receive: Any, send: Any) -> None:
    from fastapi import Request

    from service.errors import ServiceError

    try:
        await Request(scope, receive).body()
        response = Response()
    except ServiceError as error:
        response = error.to_response()
    await response(scope, receive, send)


def part(num_bytes: int, more: bool = True) -> dict[str, Any]:
    return {"body": b"x" * num_bytes, "more_body": more}


def test_a_body_that_arrives_steadily_is_read_and_one_that_stops_or_trickles_is_refused() -> None:
    assert call(read_it, [(0.0, part(10)), (0.1, part(10, False))]) == 200
    assert call(read_it, [(0.0, part(10))]) == 408
    assert call(read_it, [(0.05, part(1)) for _ in range(100)]) == 408
    assert call(read_it, [*[(0.05, part(20)) for _ in range(10)], (0.0, part(0, False))]) == 200


def test_what_does_not_begin_to_answer_in_time_becomes_a_504() -> None:
    async def sleep(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    assert call(sleep, [], request_timeout_seconds=0.1) == 504


def test_an_answer_that_has_begun_may_take_longer() -> None:
    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": b""})

    assert call(stream, [], request_timeout_seconds=0.1) == 200


def test_the_second_part_of_an_answer_does_not_wait_for_an_acknowledgement_of_the_first():
    with (
        listen_on("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Open files


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "expected"),
    [
        (1024, 1_048_576, 1_000, 1_000),
        (1024, 1024, 1_000, 1024 - OWN_FILES - SPARE_CONNECTIONS),
        (100, 300, 1_000, 12),
        (64, 64, 1_000, 8),
        (1024, resource.RLIM_INFINITY, 20_000, 20_000),
    ],
)
def test_there_are_as_many_connections_as_files_can_be_open(
    soft: int,
    hard: int,
    wanted: int,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.__setitem__(slice(None), pair))
    assert _connections_within_limits(wanted) == expected
    assert limits[0] == min(hard if hard > 0 else MAX_FILES, MAX_FILES)
    assert ("ulimit -n" in caplog.text) == (expected < wanted)
