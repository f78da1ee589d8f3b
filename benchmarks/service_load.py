"""What a served index does under load: real processes, real sockets. Each program prints a table.

    python benchmarks/service_load.py throughput   1, 8 and 64 clients: p50, p95, p99, and where time goes
    python benchmarks/service_load.py half-open    search beside 500 connections that never end their headers
    python benchmarks/service_load.py overload     ten times the requests that can be answered, a minute
    python benchmarks/service_load.py shutdown     50 SIGTERMs under load: what was accepted is answered

`--index DIR` measures a copy of that index; without it, one of 16 drawn videos is made with the demo model.
Exit 1 where a promise is not kept.

Accepted, in `shutdown`: the connection was established and the whole request, body included, was handed to
the kernel before the last moment at which the door was seen open, by a probe that connects every few
milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from search_http import NUM_VIDEOS, QUERIES

HEADER = "Host: 127.0.0.1\r\nContent-Type: application/json\r\n"


def search_request(number: int) -> bytes:
    """One of the queries, as HTTP/1.1."""
    body = json.dumps({"query": QUERIES[number % len(QUERIES)]})
    return f"POST /search HTTP/1.1\r\n{HEADER}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@dataclass
class Outcome:
    """One request: when it was sent wholly, status (0: no whole answer), seconds, JSON of the answer."""

    sent_at: float
    status: int
    seconds: float
    body: bytes = b""


class Connection:
    """A kept connection, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> Outcome:
        """Send a request and read the answer. Raises ConnectionRefusedError where the door is shut."""
        started = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        sent_at, status, body = time.perf_counter(), 0, b""
        try:
            writer.write(request)
            await writer.drain()
            sent_at = time.perf_counter()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            status = int(head.split(b" ")[1])
            if b"connection: close" in head:
                self.close()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
        return Outcome(sent_at, status, time.perf_counter() - started, body)

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@contextlib.contextmanager
def serving(index: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`xclip-search serve` without a worker; yields process and port once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xclip_search", "serve", "--index", str(index), "--port", str(port)]
    server = subprocess.Popen([*command, "--no-worker", *options], stderr=subprocess.DEVNULL)
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


async def ask_in_turn(port: int, num_clients: int, num_requests: int) -> tuple[list[Outcome], float]:
    """`num_clients` that each send the next request when they have an answer; and the seconds it took."""
    left = iter(range(num_requests))
    outcomes: list[Outcome] = []

    async def client() -> None:
        connection = Connection(port)
        for number in left:
            outcomes.append(await connection.ask(search_request(number)))
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    return outcomes, time.perf_counter() - started


def percentiles(outcomes: list[Outcome]) -> list[float]:
    """p50, p95, p99 of the seconds, in milliseconds."""
    cuts = statistics.quantiles([outcome.seconds for outcome in outcomes], n=100)
    return [1e3 * cuts[49], 1e3 * cuts[94], 1e3 * cuts[98]]


def table(*heads: str) -> None:
    """Print the head of a table."""
    print(f"| {' | '.join(heads)} |\n|{' ---: |' * len(heads)}")


def throughput(index: Path, arguments: argparse.Namespace) -> bool:
    """Searches per second and their times at several numbers of clients."""
    stages = ("encode", "coarse", "rerank", "total")
    table(
        "clients",
        "searches/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        *(f"{name} ms" for name in stages),
        "wait and HTTP ms",
    )
    answered = True
    with serving(index) as (_, port):
        asyncio.run(ask_in_turn(port, 2, 20))
        for num_clients in (1, 8, 64):
            outcomes, seconds = asyncio.run(ask_in_turn(port, num_clients, arguments.requests))
            answered = answered and all(outcome.status == 200 for outcome in outcomes)
            good = [outcome for outcome in outcomes if outcome.status == 200]
            timings = [json.loads(outcome.body)["timings"] for outcome in good]
            medians = [
                1e3 * statistics.median(each[f"{name}_seconds"] for each in timings) for name in stages
            ]
            rest = statistics.median(
                outcome.seconds - each["total_seconds"] for outcome, each in zip(good, timings, strict=True)
            )
            figures = [len(outcomes) / seconds, *percentiles(outcomes), *medians, 1e3 * rest]
            print(f"| {num_clients} | {' | '.join(f'{figure:.1f}' for figure in figures)} |", flush=True)
    return answered


def half_open(index: Path, arguments: argparse.Namespace) -> bool:
    """Times of searches without and beside connections that send half a request and wait."""

    async def hold(port: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /search HTTP/1.1\r\nHost: a\r\nContent-")
                await reader.read()
                writer.close()

    async def measure(port: int) -> tuple[list[float], list[float]]:
        await ask_in_turn(port, 4, 20)
        alone = percentiles((await ask_in_turn(port, 4, arguments.requests))[0])
        holders = [asyncio.create_task(hold(port)) for _ in range(arguments.connections)]
        await asyncio.sleep(2)
        beside = percentiles((await ask_in_turn(port, 4, arguments.requests))[0])
        for task in holders:
            task.cancel()
        await asyncio.gather(*holders, return_exceptions=True)
        return alone, beside

    with serving(index) as (_, port):
        alone, beside = asyncio.run(measure(port))
    table("half-open connections", "p50 ms", "p95 ms", "p99 ms")
    for number, figures in ((0, alone), (arguments.connections, beside)):
        print(f"| {number} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    print(f"p95: {beside[1] / alone[1]:.2f} times")
    return beside[1] <= 2 * alone[1]


def overload(index: Path, arguments: argparse.Namespace) -> bool:
    """Requests at ten times the rate that the server answers, whether it answers or not."""

    async def rush(port: int, rate: float) -> list[Outcome]:
        idle: list[Connection] = []
        outcomes: list[Outcome] = []
        tasks: set[asyncio.Task[None]] = set()

        async def ask(number: int) -> None:
            connection = idle.pop() if idle else Connection(port)
            outcomes.append(await connection.ask(search_request(number)))
            idle.append(connection)

        started = time.perf_counter()
        for number in range(int(rate * arguments.seconds)):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            task = asyncio.create_task(ask(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        print(f"sent {len(outcomes) / (time.perf_counter() - started):.0f} requests/s")
        return outcomes

    async def measure(port: int) -> tuple[list[Outcome], float, float]:
        await ask_in_turn(port, 2, 20)
        before, seconds = await ask_in_turn(port, 4, arguments.requests)
        rate = arguments.factor * len(before) / seconds
        print(f"the server answers {len(before) / seconds:.0f} searches/s; sending {rate:.0f}/s")
        outcomes = await rush(port, rate)
        ended, usual = time.perf_counter(), percentiles(before)[1]
        while True:
            after = percentiles((await ask_in_turn(port, 4, 40))[0])[1]
            if after <= 2 * usual or time.perf_counter() - ended > 30:
                return outcomes, usual, time.perf_counter() - ended

    with serving(index) as (_, port):
        outcomes, _, normal_after = asyncio.run(measure(port))
    by_status = Counter(outcome.status for outcome in outcomes)
    table("status", "answers", "p50 ms", "p99 ms", "longest ms")
    shed_in_time = True
    for status, count in sorted(by_status.items()):
        seconds = sorted(outcome.seconds for outcome in outcomes if outcome.status == status)
        cuts = (seconds[len(seconds) // 2], seconds[int(0.99 * (len(seconds) - 1))], seconds[-1])
        print(f"| {status} | {count} | {' | '.join(f'{1e3 * cut:.0f}' for cut in cuts)} |")
        if status in (429, 503):
            shed_in_time = cuts[-1] <= 0.2
    print(f"normal again after {normal_after:.1f} s")
    return set(by_status) <= {200, 429, 503} and shed_in_time and normal_after <= 10


@dataclass
class Cycle:
    """One server's life and end. open_at: the last moment at which its door was seen open."""

    outcomes: list[Outcome] = field(default_factory=list)
    open_at: float = 0.0
    upload_status: int = 0


def shutdown(index: Path, arguments: argparse.Namespace) -> bool:
    """SIGTERM while clients with kept and with new connections search, and one uploads slowly."""

    async def client(port: int, cycle: Cycle, keep: bool) -> None:
        connection = Connection(port)
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            for number in range(1_000_000):
                cycle.outcomes.append(await connection.ask(search_request(number)))
                if not keep:
                    connection.close()

    async def probe(port: int, cycle: Cycle) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                before = time.perf_counter()
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                cycle.open_at = before
                writer.close()
                await asyncio.sleep(0.003)

    async def upload(port: int, cycle: Cycle) -> None:
        head, tail = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n', b"\r\n--x--\r\n"
        content = random.randbytes(100_000)
        parts = [head, *(content[first : first + 5000] for first in range(0, len(content), 5000)), tail]
        length = sum(map(len, parts))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            b"POST /videos HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
            b"Content-Length: %d\r\n\r\n" % length
        )
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.1)
        cycle.upload_status = int((await reader.readline()).split(b" ")[1])
        writer.close()

    async def live(server: subprocess.Popen[bytes], port: int) -> Cycle:
        cycle = Cycle()
        tasks = [asyncio.create_task(client(port, cycle, keep=number % 2 == 0)) for number in range(8)]
        tasks += [asyncio.create_task(probe(port, cycle)), asyncio.create_task(upload(port, cycle))]
        await asyncio.sleep(random.uniform(0.5, 1.5))
        server.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
        await asyncio.to_thread(server.wait, 60)
        return cycle

    totals: Counter[str] = Counter()
    for number in range(arguments.cycles):
        with serving(index) as (server, port):
            cycle = asyncio.run(live(server, port))
        accepted = [outcome for outcome in cycle.outcomes if outcome.sent_at < cycle.open_at]
        totals["accepted"] += len(accepted)
        totals["dropped"] += sum(outcome.status != 200 for outcome in accepted)
        totals["uploads"] += 1
        totals["uploads dropped"] += cycle.upload_status != 202
        totals["exit statuses that are not 0"] += server.returncode != 0
        print(f"{number + 1}: {dict(totals)}", flush=True)
    return not (totals["dropped"] or totals["uploads dropped"] or totals["exit statuses that are not 0"])


PROGRAMS = {"throughput": throughput, "half-open": half_open, "overload": overload, "shutdown": shutdown}


def main() -> None:
    """Run one of the programs, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="?", choices=PROGRAMS, help="all where none is named")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--requests", type=int, default=500, help="searches per measurement")
    parser.add_argument("--connections", type=int, default=500, help="half-open ones")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--factor", type=float, default=10.0, help="of overload")
    parser.add_argument("--cycles", type=int, default=50, help="of shutdown")
    arguments = parser.parse_args()
    kept = True
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / f"{NUM_VIDEOS}-videos-seed-1" / "index"
        if arguments.index is not None:
            # What is uploaded must not stay in an index that somebody uses.
            shutil.copytree(arguments.index, index)
        else:
            demo = [sys.executable, "-m", "xclip_search", "demo", "--directory", folder, "--no-serve"]
            subprocess.run([*demo, "--num-videos", str(NUM_VIDEOS)], check=True, stdout=subprocess.DEVNULL)
        for name in [arguments.program] if arguments.program else PROGRAMS:
            print(f"{name}:", flush=True)
            kept = PROGRAMS[name](index, arguments) and kept
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
