"""Bounds on connections, and a shutdown that drops nothing: a real server in a thread, raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.responses import Response

from service.http import protocol as http_protocol
from service.http.middleware import HEADER_LIMIT_BYTES, URI_LIMIT_BYTES, DeadlineMiddleware, HeadersMiddleware
from service.http.protocol import BoundedConfig, BoundedProtocol, ConnectionLimits
from service.server import DrainingServer, listen
from service.state import Drain

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SECONDS = 0.4
"""Patience of the server under test."""


class Server:
    """Serves `answer`, in a thread. hold: requests to /hold wait for it."""

    def __init__(self, *, max_connections: int = 100) -> None:
        self.hold = threading.Event()
        self.num_begun = 0
        drain = Drain()
        app = HeadersMiddleware(self._app, is_ending=lambda: drain.begun)
        config = BoundedConfig(
            app,
            ConnectionLimits(max_connections, SECONDS),
            log_config=None,
            access_log=False,
            h11_max_incomplete_event_size=HEADER_LIMIT_BYTES + URI_LIMIT_BYTES,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=10,
            lifespan="off",
        )
        self.server = DrainingServer(config, drain, 0.0)
        self.listeners = listen("127.0.0.1", 0)
        self.address = self.listeners[0].getsockname()
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": self.listeners})

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.num_begun += 1
        if scope["path"] == "/hold":
            while not self.hold.is_set():
                await asyncio.sleep(0.01)
        body = b"x" * 50_000_000 if scope["path"] == "/large" else b"yes"
        await Response(body)(scope, receive, send)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def stop(self) -> None:
        self.server.should_exit = True
        self.hold.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Server]:
    server = Server(**options)
    server.thread.start()
    try:
        yield server
    finally:
        server.stop()


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes; its reset counts as closing."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def read_answer(connection: socket.socket) -> bytes:
    """One answer of the application's; the connection may go on."""
    received = b""
    while not received.endswith(b"yes"):
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def read_problem(connection: socket.socket) -> dict[str, Any]:
    head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b"application/problem+json" in head and b"connection: close" in head.lower()
    problem: dict[str, Any] = json.loads(body)
    assert head.startswith(f"HTTP/1.1 {problem['status']} ".encode())
    return problem


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_request_is_answered_and_its_connection_kept() -> None:
    with running() as server, server.connect() as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert read_answer(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", None),
        (b"GET /" + b"a" * 300_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 300_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 60_000 + b"\r\n", 431),
    ],
    ids=["nonsense", "no host", "tls", "long path", "long header", "many headers"],
)
def test_what_cannot_be_parsed_is_answered_with_a_problem(sent: bytes, status: int | None) -> None:
    with running() as server, server.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        received = read_all(connection)
        # Where the client still sends, the answer may be lost with the reset that its bytes provoke.
        if received and status is not None:
            assert received.startswith(f"HTTP/1.1 {status} ".encode())
        assert server.num_begun == 0


def test_an_unfinished_head_is_answered_and_a_silent_connection_closed_in_time() -> None:
    with running() as server, server.connect() as slow, server.connect() as silent:
        started = time.monotonic()
        slow.sendall(GET[:-4])
        assert read_problem(slow)["status"] == 408
        assert read_all(silent) == b""
        assert SECONDS * 0.9 < time.monotonic() - started < SECONDS + 5


def test_a_head_that_trickles_is_not_waited_for_any_longer() -> None:
    with running() as server, server.connect() as connection:
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in GET * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
                if byte == 10:  # Never let the head end.
                    connection.sendall(b"X: y\r\n")
        assert time.monotonic() - started < SECONDS + 5


def test_an_answer_that_takes_long_is_no_idle_connection() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(GET.replace(b"/ ", b"/hold "))
        time.sleep(2 * SECONDS)
        server.hold.set()
        assert read_answer(connection).startswith(b"HTTP/1.1 200")


def test_a_body_that_nobody_reads_does_not_hold_the_connection() -> None:
    with running() as server, server.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\nabc")
        assert read_answer(connection).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 10:
                connection.sendall(b"a" * 1000)
                time.sleep(0.02)
        assert time.monotonic() - started < SECONDS + 5


def test_a_client_that_does_not_read_its_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "STALLED_SECONDS", SECONDS)
    with running() as server, server.connect() as connection:
        connection.sendall(GET.replace(b"/ ", b"/large "))
        wait_until(lambda: server.num_begun == 1)
        wait_until(lambda: not server.server.server_state.connections)


def test_where_all_connections_are_taken_the_longest_idle_one_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "IDLE_SECONDS", 0.0)
    with running(max_connections=3) as server, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(server.connect()) for _ in range(3))
        for connection in (first, second, third):
            connection.sendall(GET)
            assert read_answer(connection)
        fourth = stack.enter_context(server.connect())
        fourth.sendall(GET)
        assert read_answer(fourth).startswith(b"HTTP/1.1 200")
        assert read_all(first) == b""
        third.sendall(GET)
        assert read_answer(third).startswith(b"HTTP/1.1 200")


def test_where_all_connections_are_busy_a_further_one_is_refused() -> None:
    with running(max_connections=2) as server, contextlib.ExitStack() as stack:
        for number in range(1, 3):
            stack.enter_context(server.connect()).sendall(GET.replace(b"/ ", b"/hold "))
            wait_until(lambda number=number: server.num_begun == number)
        further = stack.enter_context(server.connect())
        further.sendall(GET)
        assert read_problem(further)["status"] == 503


def test_a_connection_whose_request_was_not_read_yet_gives_way_to_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_protocol, "IDLE_SECONDS", 0.0)
    newcomer_is_here, request_is_sent = threading.Event(), threading.Event()
    original = BoundedProtocol._has_room

    def look_late(protocol: BoundedProtocol) -> bool:
        if len(protocol.connections) > 2:
            newcomer_is_here.set()
            request_is_sent.wait(10)
        return original(protocol)

    monkeypatch.setattr(BoundedProtocol, "_has_room", look_late)
    with running(max_connections=2) as server, contextlib.ExitStack() as stack:
        stack.enter_context(server.connect()).sendall(GET.replace(b"/ ", b"/hold "))
        wait_until(lambda: server.num_begun == 1)
        kept = stack.enter_context(server.connect())
        kept.sendall(GET)
        assert read_answer(kept)
        newcomer = stack.enter_context(server.connect())
        assert newcomer_is_here.wait(10)
        kept.sendall(GET)
        request_is_sent.set()
        assert read_answer(kept).startswith(b"HTTP/1.1 200")
        # Now the other one is idle, and can go.
        newcomer.sendall(GET)
        assert read_answer(newcomer).startswith(b"HTTP/1.1 200")
        assert read_all(kept) == b""


def test_whoever_is_refused_may_send_the_rest_of_the_request_and_read_the_answer() -> None:
    with running(max_connections=1) as server, server.connect() as busy, server.connect() as further:
        busy.sendall(GET.replace(b"/ ", b"/hold "))
        wait_until(lambda: server.num_begun == 1)
        further.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n")
        for _ in range(3):
            time.sleep(0.05)
            further.sendall(b"a" * 100_000)
        assert read_problem(further)["status"] == 503


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_whoever_is_answered_early_and_for_the_last_time_may_send_the_rest_of_the_body(version: str) -> None:
    head = f"POST / {version}\r\nHost: a\r\nConnection: close\r\nContent-Length: 100000000\r\n\r\n"
    with running() as server, server.connect() as connection:
        connection.sendall(head.encode() + b"a" * 100_000)
        started = time.monotonic()
        for _ in range(3):
            time.sleep(0.05)
            connection.sendall(b"a" * 100_000)
        received = b""
        while data := connection.recv(65536):  # A reset would be an error here.
            received += data
        assert received.endswith(b"yes")
        # But not for ever.
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - started < 10:
                connection.sendall(b"a" * 1000)
                time.sleep(0.02)
        assert time.monotonic() - started < SECONDS + 5


def test_at_the_end_requests_under_way_sent_and_waiting_at_the_door_are_all_answered() -> None:
    with running() as server, contextlib.ExitStack() as stack:
        under_way = stack.enter_context(server.connect())
        under_way.sendall(GET.replace(b"/ ", b"/hold "))
        wait_until(lambda: server.num_begun == 1)
        kept = stack.enter_context(server.connect())
        kept.sendall(GET)
        assert b"200" in read_answer(kept)
        stop = threading.Timer(0.2, server.server.handle_exit, (15, None))
        # The loop is held while requests come in at the door and on an open connection.
        blocked = threading.Event()
        loop_is_held = threading.Event()

        def hold_the_loop() -> None:
            loop_is_held.set()
            blocked.wait(10)

        original = server.server.shutdown

        async def shutdown_after_a_rush(sockets: Any = None) -> None:
            hold_the_loop()
            await original(sockets)

        server.server.shutdown = shutdown_after_a_rush  # type: ignore[method-assign]
        stop.start()
        assert loop_is_held.wait(10)
        late = [stack.enter_context(server.connect()) for _ in range(20)]
        for connection in (*late, kept):
            connection.sendall(GET)
        blocked.set()
        for connection in (*late, kept):
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer.lower()
        server.hold.set()
        assert read_all(under_way).startswith(b"HTTP/1.1 200")
        server.thread.join(20)
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_at_the_end_a_connection_that_is_just_being_accepted_is_answered_too() -> None:
    server = Server()
    clients: list[socket.socket] = []
    until_the_end = server.server.main_loop

    async def until_somebody_comes_in_at_the_end() -> None:
        await until_the_end()
        clients.append(server.connect())
        clients[0].sendall(GET)
        # The event loop sees it in the same round in which the shutdown begins.
        await asyncio.sleep(0)

    server.server.main_loop = until_somebody_comes_in_at_the_end  # type: ignore[method-assign]
    server.thread.start()
    wait_until(lambda: server.server.started)
    server.stop()
    with clients[0]:
        assert read_all(clients[0]).endswith(b"yes")


def test_listening_twice_on_one_port_is_an_error() -> None:
    (listener,) = listen("127.0.0.1", 0)
    with listener, pytest.raises(OSError):
        listen("127.0.0.1", listener.getsockname()[1])


def test_all_addresses_of_a_name_share_a_port() -> None:
    listeners = listen("localhost", 0)
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    finally:
        for listener in listeners:
            listener.close()


@pytest.mark.parametrize(("hard", "enough"), [(2000, True), (400, False)])
def test_there_are_descriptors_for_a_file_of_each_connection_or_a_warning(hard: int, enough: bool) -> None:
    program = f"""
import logging, resource
logging.basicConfig()
from service.server import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (300, {hard}))
raise_file_limit(max_connections=300)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # As many again may wait to be refused.
    assert (int(ended.stdout) > 2 * 300 + 300) == enough
    assert ("XCLIP_MAX_CONNECTIONS" in ended.stderr) != enough


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
