"""How requests are read from a connection: what clients may send, and what they cannot keep others from."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import socket
import struct
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from service.http.middleware import (
    FREE_CHUNKS,
    HEADER_LIMIT_BYTES,
    MIN_CHUNK_BYTES,
    READ_BYTES,
    SPARE_CONNECTIONS,
    URI_LIMIT_BYTES,
    BoundedProtocol,
)
from tests.service.test_server import read_all, wait_until

CHUNKED = b"POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
MAX_CONNECTIONS = 8


async def app(scope: Any, receive: Any, send: Any) -> None:
    """/read reads the body and says how long it was; /deaf answers before; others say what was asked."""
    request = Request(scope, receive)
    answer: Response = JSONResponse({"path": scope["path"], "host": request.headers.get("host")})
    if scope["path"] == "/read":
        try:
            answer = JSONResponse({"length": len(await request.body())})
        except ClientDisconnect:
            return
    elif scope["path"] == "/who":
        answer = JSONResponse({"client": scope["client"][0], "peer": scope["state"]["peer"]})
    elif scope["path"] == "/deaf":
        answer = Response(b"no need to read that", 413)
    await answer(scope, receive, send)


class Watched(BoundedProtocol):
    """Notes what the parser gets, and which connections are in memory."""

    parsed: list[int] = []  # noqa: RUF012
    in_memory: weakref.WeakSet[BoundedProtocol] = weakref.WeakSet()  # noqa: RUF012

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.in_memory.add(self)

    def data_received(self, data: bytes) -> None:
        self.parsed.append(len(data))
        super().data_received(data)


@pytest.fixture(scope="module")
def address() -> Iterator[Any]:
    config = uvicorn.Config(
        app,
        http=Watched,
        log_config=None,
        access_log=False,
        lifespan="off",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=75,
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    yield listener.getsockname()
    server.should_exit = True
    thread.join(20)


def ask(address: Any, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to what is sent, until the server closes or stops sending."""
    with socket.create_connection(address, timeout=10) as connection:
        for part in parts:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
        received = b""
        while b"\r\n\r\n" not in received:
            data = connection.recv(65536)
            assert data, received
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += connection.recv(65536)
        return int(status.split()[1]), headers, body


def chunks(count: int, size: int = 1) -> bytes:
    return (b"%x\r\n%s\r\n" % (size, b"x" * size)) * count


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://other.example/healthz", "/healthz", "other.example"),
        (b"http://other.example:8080/a%20b?c=d", "/a b", "other.example:8080"),
        (b"http://[::1]:80/x", "/x", "[::1]:80"),
        (b"http://other.example", "/", "other.example"),
        (b"/healthz", "/healthz", "a"),
    ],
)
def test_a_target_in_absolute_form_is_answered_and_names_the_host(
    target: bytes, path: str, host: str, address: Any
) -> None:
    status, _, body = ask(address, b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert (status, json.loads(body)) == (200, {"path": path, "host": host})


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
        b"POST /read HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nthis is no chunk",
        b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
def test_what_is_not_http_is_refused_as_a_problem(request_bytes: bytes, address: Any) -> None:
    status, headers, body = ask(address, request_bytes)
    assert status == 400 and headers["content-type"] == "application/problem+json"
    assert json.loads(body)["type"].endswith(":malformed-body") and headers["connection"] == "close"


def test_the_peer_is_known_whatever_a_header_says(address: Any) -> None:
    claimed = b"GET /who HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    assert json.loads(ask(address, claimed)[2]) == {"client": "192.0.2.1", "peer": "127.0.0.1"}


def test_a_client_of_http_1_0_need_not_name_a_host(address: Any) -> None:
    assert ask(address, b"GET /x HTTP/1.0\r\n\r\n")[0] == 200


def test_a_client_that_would_rather_speak_http_2_is_answered(address: Any) -> None:
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    assert ask(address, b"GET /x HTTP/1.1\r\nHost: a\r\n" + upgrade + b"\r\n")[0] == 200
    post = b"POST /read HTTP/1.1\r\nHost: a\r\n" + upgrade + b"Content-Length: 3\r\n\r\nabc"
    assert json.loads(ask(address, post)[2]) == {"length": 3}


def test_a_body_may_come_in_a_thousand_small_chunks_but_not_in_very_many(address: Any) -> None:
    _, _, body = ask(address, CHUNKED, chunks(FREE_CHUNKS), b"0\r\n\r\n")
    assert json.loads(body) == {"length": FREE_CHUNKS}
    size = MIN_CHUNK_BYTES
    _, _, body = ask(address, CHUNKED, chunks(4 * FREE_CHUNKS, size + 1), b"0\r\n\r\n")
    assert json.loads(body) == {"length": 4 * FREE_CHUNKS * (size + 1)}
    status, headers, body = ask(address, CHUNKED, chunks(2 * FREE_CHUNKS))
    assert status == 400 and headers["connection"] == "close"
    assert f"at least {MIN_CHUNK_BYTES} bytes" in json.loads(body)["detail"]


def test_no_connection_is_parsed_for_longer_than_a_read_at_a_time(address: Any) -> None:
    Watched.parsed.clear()
    length = 40 * READ_BYTES
    head = b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length
    assert json.loads(ask(address, head, bytes(length))[2]) == {"length": length}
    assert max(Watched.parsed) <= READ_BYTES and sum(Watched.parsed) == length + len(head)


@pytest.mark.parametrize("endless", [b"x-long: " + b"x" * 100_000, b"a: b\r\n" * 20_000, b"x" * 100_000])
def test_a_head_that_does_not_end_is_refused_before_it_takes_memory(endless: bytes, address: Any) -> None:
    Watched.parsed.clear()
    status, _, body = ask(address, b"GET / HTTP/1.1\r\nHost: a\r\n", endless)
    assert (status, json.loads(body)["type"].rpartition(":")[2]) in [
        (431, "headers-too-large"),
        (400, "malformed-body"),  # The parser itself knows that no name of a header is so long.
    ]
    assert sum(Watched.parsed) <= HEADER_LIMIT_BYTES + URI_LIMIT_BYTES + READ_BYTES


@pytest.mark.parametrize(
    "body", [(b"Content-Length: 3000000", bytes(3_000_000)), (b"Transfer-Encoding: chunked", chunks(300_000))]
)
def test_the_rest_of_a_body_that_was_answered_is_dropped_unparsed(
    body: tuple[bytes, bytes], address: Any
) -> None:
    Watched.parsed.clear()
    head = b"POST /deaf HTTP/1.1\r\nHost: a\r\n" + body[0] + b"\r\n\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head)
        received = connection.recv(65536)
        connection.sendall(body[1])
        received += read_all(connection)
    assert received.startswith(b"HTTP/1.1 413") and received.endswith(b"no need to read that")
    assert received.count(b"HTTP/1.1") == 1 and b"connection: close" in received.lower()
    assert sum(Watched.parsed) == len(head)


def test_a_connection_is_kept_where_the_request_was_read_to_its_end(address: Any) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        for _ in range(3):
            connection.sendall(b"POST /deaf HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody")
            answer = b""
            while not answer.endswith(b"no need to read that"):
                answer += connection.recv(65536)
            assert b"connection: close" not in answer.lower()


def test_nothing_stays_in_memory_of_a_connection_that_was_reset(address: Any) -> None:
    for _ in range(MAX_CONNECTIONS):
        with socket.create_connection(address, 5) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.recv(9) == b"HTTP/1.1 "
            # Closing discards what was not read yet, and what was to be sent: the server sees a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def are_gone() -> bool:
        gc.collect()
        return len(Watched.in_memory) <= 1  # The parser keeps the last one until another comes.

    wait_until(are_gone)


def test_beyond_the_limit_connections_are_answered_503_and_further_ones_are_closed(address: Any) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.create_connection(address, timeout=10))
        assert ask(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 503
        kept = [
            stack.enter_context(socket.create_connection(address, timeout=10))
            for _ in range(SPARE_CONNECTIONS + 4)
        ]
        with contextlib.suppress(ConnectionError):
            assert read_all(kept[-1]) == b""
    wait_until(lambda: ask(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200)


def test_requests_before_one_that_is_not_http_are_answered(address: Any) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(2 * b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" + b"what is this?\r\n\r\n")
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 200") == 2 and b"connection: close" in received.lower()


WHOLE = [
    b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /read HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    CHUNKED + chunks(3, 4) + b"0\r\n\r\n",
    b"GET http://a:80/x?y HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"POST /deaf HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
]


def test_whatever_bytes_come_the_next_client_is_answered(
    address: Any, caplog: pytest.LogCaptureFixture
) -> None:
    choose = random.Random(1)
    for _ in range(300):
        sent = bytearray(choose.choice(WHOLE) * choose.randint(1, 3))
        for _ in range(choose.randint(1, 4)):
            position = choose.randrange(len(sent))
            cut = choose.choice([0, 1, 5])
            sent[position : position + cut] = choose.randbytes(choose.randint(0, 3))
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            read_all(connection)
    assert ask(address, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
    assert "Traceback" not in caplog.text
