"""Clients that put load on a served index: raw sockets and no HTTP library, so that they take little from a
server on the same processors; and that server, and the proxy in front of it, as processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

QUERIES = (
    "a red car moves right, then a blue boat grows, on the beach",
    "a dog runs in the snow",
    "a white bird rises at night",
    "someone cooks in a kitchen",
)

INCOMPLETE = 0
"""Status of a request that got no whole answer."""

GIVE_UP_SECONDS = 30.0

PROXY_PORT = 8080
"""Where docker/Caddyfile listens."""


def search_request(text: str) -> bytes:
    """A search for a text, as HTTP/1.1."""
    body = json.dumps({"query": text})
    head = "POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


REQUESTS = [search_request(text) for text in QUERIES]


def some_requests(count: int) -> list[bytes]:
    """So many searches, of the QUERIES in turn."""
    return [REQUESTS[number % len(REQUESTS)] for number in range(count)]


@dataclass
class Outcome:
    """One request. sent_at: when the kernel had taken all of it. seconds: from then to the whole answer."""

    sent_at: float
    status: int
    seconds: float
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One connection; it has one request under way at most."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._length: int | None = None
        self._sent_at = 0.0
        self._done: Callable[[Outcome], None] | None = None

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    def send(self, request: bytes, done: Callable[[Outcome], None]) -> None:
        """Send a request; `done` is called with its outcome."""
        assert self._transport is not None and self._done is None
        self._done, self._received, self._length = done, b"", None
        self._transport.write(request)
        # Requests are far smaller than a socket's buffer, unless the server reads nothing any more.
        self._sent_at = time.perf_counter() if not self._transport.get_write_buffer_size() else float("inf")

    async def ask(self, request: bytes) -> Outcome:
        """Send a request and wait for its outcome."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.send(request, outcome.set_result)
        return await outcome

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        if self._transport is not None:
            self._transport.close()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def data_received(self, data: bytes) -> None:
        """Take a part of an answer."""
        self._received += data
        if self._length is None:
            head, end, _ = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            self._length = len(head) + 4 + int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if b"connection: close" in head.lower():
                self.is_open = False
        if len(self._received) >= self._length:
            self._finish(int(self._received[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """The server closed, or we did."""
        self.is_open = False
        self._finish(INCOMPLETE)

    def _finish(self, status: int) -> None:
        if self._done is None:
            return
        done, self._done = self._done, None
        body = self._received.partition(b"\r\n\r\n")[2]
        if not self.is_open:
            self.close()
        done(Outcome(self._sent_at, status, time.perf_counter() - self._sent_at, body))


async def ask_in_turn(
    ports: Sequence[int], num_clients: int, requests: Iterable[bytes]
) -> tuple[list[Outcome], float]:
    """`num_clients` that each send the next request when they have an answer; and the seconds it took.

    ports: of servers, of which each client has one, by turns.
    """
    left = iter(requests)
    outcomes: list[Outcome] = []

    async def client(port: int) -> None:
        connection = await Connection.open(port)
        for request in left:
            if not connection.is_open:
                connection = await Connection.open(port)
            outcomes.append(await connection.ask(request))
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(ports[number % len(ports)]) for number in range(num_clients)))
    return outcomes, time.perf_counter() - started


@dataclass
class Rush:
    """Requests sent at a fixed rate. late_seconds: how much after its time each was sent, which says whether
    the clients themselves were short of processors. num_refused: connections that could not be opened.
    num_waiting: requests that were not answered GIVE_UP_SECONDS after the last one was sent."""

    outcomes: list[Outcome]
    late_seconds: list[float]
    seconds: float
    num_refused: int = 0
    num_waiting: int = 0


async def ask_at_rate(port: int, rate: float, seconds: float) -> Rush:
    """Send `rate` requests a second, whether the former are answered or not; on idle connections or new ones.

    Answers' bodies are not kept. Returns when everything is answered or incomplete, or at the timeout.
    """
    rush = Rush([], [], 0.0)
    idle: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()
    num_requests, num_ended = int(rate * seconds), 0
    all_ended = asyncio.Event()

    def end_one() -> None:
        nonlocal num_ended
        num_ended += 1
        if num_ended == num_requests:
            all_ended.set()

    def send(connection: Connection, number: int) -> None:
        def done(outcome: Outcome) -> None:
            outcome.body = b""
            rush.outcomes.append(outcome)
            if connection.is_open:
                idle.append(connection)
            end_one()

        connection.send(REQUESTS[number % len(REQUESTS)], done)

    async def send_on_new(number: int) -> None:
        try:
            connection = await Connection.open(port)
        except OSError:
            rush.num_refused += 1
            end_one()
        else:
            send(connection, number)

    started = time.perf_counter()
    for number in range(num_requests):
        due = started + number / rate
        while (wait_seconds := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait_seconds)
        if number % 16 == 15:
            await asyncio.sleep(0)  # Answers are read even where all requests are late.
        rush.late_seconds.append(time.perf_counter() - due)
        while idle and not idle[-1].is_open:
            idle.pop()
        if idle:
            send(idle.pop(), number)
        else:
            task = asyncio.create_task(send_on_new(number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    rush.seconds = time.perf_counter() - started
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(all_ended.wait(), GIVE_UP_SECONDS)
    rush.num_waiting = num_requests - num_ended
    for connection in idle:
        connection.close()
    return rush


def percentiles(outcomes: Sequence[Outcome]) -> list[float]:
    """p50, p95, p99 of the seconds, in milliseconds."""
    cuts = statistics.quantiles([outcome.seconds for outcome in outcomes], n=100)
    return [1e3 * cuts[49], 1e3 * cuts[94], 1e3 * cuts[98]]


def processor_seconds(port: int) -> float:
    """What a server has used of its processors so far."""
    for line in httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines():
        name, _, value = line.partition(" ")
        if name == "process_cpu_seconds_total":
            return float(value)
    raise SystemExit("the server does not say what it has used of its processors")


@contextlib.contextmanager
def serving(
    index: Path | str, *options: str, with_worker: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`xclip-search serve`; yields process and port once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xclip_search", "serve", "--index", str(index), "--port", str(port)]
    worker = "--worker" if with_worker else "--no-worker"
    server = subprocess.Popen([*command, worker, *options], stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    break
            if server.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.1)
        yield server, port
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            raise


@contextlib.contextmanager
def behind_proxy(port: int) -> Iterator[int]:
    """Caddy with docker/Caddyfile in front of a server on `port`; yields its own port once it answers.

    Wants `caddy` in PATH (Debian's package will do) and its ports, 8080 and 8081, free.
    """
    caddyfile = Path(__file__).resolve().parents[2] / "docker" / "Caddyfile"
    command = ["caddy", "run", "--config", str(caddyfile), "--adapter", "caddyfile"]
    environment = {**os.environ, "UPSTREAM": f"127.0.0.1:{port}"}
    quiet = subprocess.DEVNULL
    proxy = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
    try:
        for _ in range(100):
            if proxy.poll() is not None:
                raise SystemExit("caddy ended: is one of its ports taken?")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{PROXY_PORT}/readyz").status_code == 200:
                    break
            time.sleep(0.1)
        yield PROXY_PORT
    finally:
        proxy.terminate()
        proxy.wait(30)
