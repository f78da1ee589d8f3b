"""What a served index does under load: real processes, real sockets. Each program prints a table.

    python -m benchmarks.serving.service_load PROGRAM

    throughput   1, 8 and 64 clients: p50, p95, p99, and where time goes
    half-open    search during connections that never end their headers
    overload     ten times the requests that can be answered
    shutdown     SIGTERMs under load: what was accepted is answered

`--index DIR` measures a copy of that index; without it, one of 16 drawn videos is made with the demo model.
As they are, the programs take half a minute each; `--full` measures what is promised: 500 half-open
connections, a minute of overload, 50 shutdowns. Exit 1 where a promise is not kept. Half-open connections and
overload are for the proxy to bound: `--through-proxy` starts Caddy with docker/Caddyfile in front.

Overload: requests come at a fixed rate, ten times the one that 8 clients in turn were answered at just
before, whether the former are answered or not. Each has to be answered, 200, 429 or 503, and each refusal
within 0.5 s of the moment at which the kernel had taken the whole request.

Accepted, in `shutdown`: the whole request, body included, was handed to the kernel before the signal was
sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.http_load import (
    REQUESTS,
    Connection,
    Outcome,
    Rush,
    ask_at_rate,
    ask_in_turn,
    behind_proxy,
    percentiles,
    serving,
    some_requests,
)

SHED_SECONDS, NORMAL_AGAIN_SECONDS = 0.5, 10.0
"""Longest time to a refusal, and from the end of an overload until searches take what they took before."""

OVERLOAD_FACTOR = 10

NUM_VIDEOS = 16
"""Of the index that is drawn for the occasion."""


def table(*heads: str) -> None:
    """Print the head of a table."""
    print(f"| {' | '.join(heads)} |\n|{' ---: |' * len(heads)}")


@contextlib.contextmanager
def reached(index: Path, arguments: argparse.Namespace) -> Iterator[int]:
    """The port at which a server of `index` is reached: its own, or the proxy's."""
    with serving(index) as (_, port), contextlib.ExitStack() as stack:
        yield stack.enter_context(behind_proxy(port)) if arguments.through_proxy else port


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
    with reached(index, arguments) as port:
        asyncio.run(ask_in_turn([port], 2, some_requests(20)))
        for num_clients in (1, 8, 64):
            outcomes, seconds = asyncio.run(
                ask_in_turn([port], num_clients, some_requests(arguments.requests))
            )
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
    """Times of searches without and with connections that send half a request and wait."""

    async def hold(port: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"POST /search HTTP/1.1\r\nHost: a\r\nContent-")
                await reader.read()
                writer.close()

    async def measure(port: int) -> tuple[list[float], list[float]]:
        await ask_in_turn([port], 4, some_requests(20))
        alone = percentiles((await ask_in_turn([port], 4, some_requests(arguments.requests)))[0])
        holders = [asyncio.create_task(hold(port)) for _ in range(arguments.connections)]
        await asyncio.sleep(2)
        loaded = percentiles((await ask_in_turn([port], 4, some_requests(arguments.requests)))[0])
        for task in holders:
            task.cancel()
        await asyncio.gather(*holders, return_exceptions=True)
        return alone, loaded

    with reached(index, arguments) as port:
        alone, loaded = asyncio.run(measure(port))
    table("half-open connections", "p50 ms", "p95 ms", "p99 ms")
    for number, figures in ((0, alone), (arguments.connections, loaded)):
        print(f"| {number} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")
    print(f"p95: {loaded[1] / alone[1]:.2f} times")
    return loaded[1] <= 2 * alone[1]


def overload(index: Path, arguments: argparse.Namespace) -> bool:
    """Requests at ten times the rate that the server answers, whether it answers or not."""

    async def measure(port: int) -> tuple[Rush, float]:
        await ask_in_turn([port], 2, some_requests(20))
        before, seconds = await ask_in_turn([port], 8, some_requests(arguments.requests))
        throughput, usual = len(before) / seconds, percentiles(before)[1]
        rate = OVERLOAD_FACTOR * throughput
        print(f"the server answers {throughput:.0f} searches/s; sending {rate:.0f}/s", flush=True)
        rush = await ask_at_rate(port, rate, arguments.seconds)
        ended = time.perf_counter()
        while time.perf_counter() - ended < 3 * NORMAL_AGAIN_SECONDS:
            after = percentiles((await ask_in_turn([port], 8, some_requests(80)))[0])[1]
            if after <= 2 * usual:
                break
        return rush, time.perf_counter() - ended

    with reached(index, arguments) as port:
        rush, normal_after = asyncio.run(measure(port))
    late = sorted(rush.late_seconds)
    print(
        f"sent {len(late) / rush.seconds:.0f} requests/s in {rush.seconds:.0f} s, "
        f"99% of them at most {1e3 * _quantile(late, 0.99):.0f} ms late"
    )
    table("status", "answers", "p50 ms", "p99 ms", "longest ms")
    by_status = Counter(outcome.status for outcome in rush.outcomes)
    for status in sorted(by_status):
        seconds = sorted(outcome.seconds for outcome in rush.outcomes if outcome.status == status)
        figures = [f"{1e3 * _quantile(seconds, share):.0f}" for share in (0.5, 0.99, 1.0)]
        print(f"| {status} | {len(seconds)} | {' | '.join(figures)} |")
    refusals = [outcome for outcome in rush.outcomes if outcome.status in (429, 503)]
    num_slow = sum(outcome.seconds > SHED_SECONDS for outcome in refusals)
    num_lost = sum(outcome.status not in (200, 429, 503) for outcome in rush.outcomes)
    num_lost += rush.num_refused + rush.num_waiting
    print(f"not answered: {num_lost}; refused after more than {SHED_SECONDS} s: {num_slow}")
    print(f"normal again after {normal_after:.1f} s")
    return not num_lost and not num_slow and normal_after <= NORMAL_AGAIN_SECONDS


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[round(share * (len(ascending) - 1))]


@dataclass
class Cycle:
    """One server's life and end. ended_at: when the signal was sent."""

    outcomes: list[Outcome] = field(default_factory=list)
    ended_at: float = 0.0
    upload_status: int = 0


def shutdown(index: Path, arguments: argparse.Namespace) -> bool:
    """SIGTERM while clients with kept and with new connections search, and one uploads slowly."""

    async def client(port: int, cycle: Cycle, keep: bool) -> None:
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            connection = await Connection.open(port)
            for number in range(1_000_000):
                if not connection.is_open:
                    connection = await Connection.open(port)
                cycle.outcomes.append(await connection.ask(REQUESTS[number % len(REQUESTS)]))
                if not keep:
                    connection.close()

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
        status_line = (await reader.readline()).split(b" ")
        cycle.upload_status = int(status_line[1]) if len(status_line) > 1 else 0  # 0: it was cut off.
        writer.close()

    async def try_to_upload(port: int, cycle: Cycle) -> None:
        with contextlib.suppress(OSError):  # Then it stays 0, which counts as dropped.
            await upload(port, cycle)

    async def live(server: subprocess.Popen[bytes], port: int) -> Cycle:
        cycle = Cycle()
        tasks = [asyncio.create_task(client(port, cycle, keep=number % 2 == 0)) for number in range(8)]
        tasks.append(asyncio.create_task(try_to_upload(port, cycle)))
        await asyncio.sleep(random.uniform(0.5, 1.5))
        cycle.ended_at = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
        with contextlib.suppress(subprocess.TimeoutExpired):  # Then it has no exit status, which counts.
            await asyncio.to_thread(server.wait, 60)
        return cycle

    totals: Counter[str] = Counter()
    for number in range(arguments.cycles):
        with serving(index) as (server, port):
            cycle = asyncio.run(live(server, port))
        accepted = [outcome for outcome in cycle.outcomes if outcome.sent_at < cycle.ended_at]
        totals["accepted"] += len(accepted)
        dropped = Counter(f"dropped: {outcome.status}" for outcome in accepted if outcome.status != 200)
        totals["dropped"] += dropped.total()
        totals.update(dropped)
        totals["uploads"] += 1
        totals["uploads dropped"] += cycle.upload_status != 202
        totals["exit statuses that are not 0"] += server.returncode != 0
        print(f"{number + 1}: {dict(totals)}", flush=True)
    print(
        f"{arguments.cycles} SIGTERMs under load: {totals['accepted']} searches were accepted,"
        f" {totals['dropped']} dropped; {totals['uploads']} uploads were accepted,"
        f" {totals['uploads dropped']} dropped; servers that did not end with 0:"
        f" {totals['exit statuses that are not 0']}"
    )
    return not (totals["dropped"] or totals["uploads dropped"] or totals["exit statuses that are not 0"])


PROGRAMS = {"throughput": throughput, "half-open": half_open, "overload": overload, "shutdown": shutdown}

SIZES = {
    "requests": (200, 1000, "searches per measurement"),
    "connections": (500, 500, "half-open ones"),
    "seconds": (5, 60, "of overload"),
    "cycles": (2, 50, "of shutdown"),
}
"""Option -> its value by default and with --full, and what it is."""


def main() -> None:
    """Run one of the programs, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="?", choices=PROGRAMS, help="all where none is named")
    parser.add_argument("--index", type=Path)
    parser.add_argument("--through-proxy", action="store_true", help="Caddy in front, with docker/Caddyfile")
    parser.add_argument("--full", action="store_true", help="the sizes that are promised")
    for name, (short, full, meaning) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=f"{meaning}: {short}, with --full {full}")
    arguments = parser.parse_args()
    for name, (short, full, _) in SIZES.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, full if arguments.full else short)
    # So that the server ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / f"{NUM_VIDEOS}-videos-seed-1" / "index"
        if arguments.index is not None:
            # What is uploaded must not stay in an index that is in use.
            shutil.copytree(arguments.index, index)
        else:
            demo = [sys.executable, "-m", "xclip_search", "demo", "--directory", folder, "--no-serve"]
            subprocess.run([*demo, "--num-videos", str(NUM_VIDEOS)], check=True, stdout=subprocess.DEVNULL)
        for name in [arguments.program] if arguments.program else PROGRAMS:
            load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
            print(f"{name} (processors: {os.cpu_count()}, load averages before: {load})", flush=True)
            if not PROGRAMS[name](index, arguments):
                missed.append(name)
    print(f"missed: {', '.join(missed)}" if missed else "all promises kept")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
