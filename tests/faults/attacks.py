"""Clients that mean harm, against a real server: what others notice, and what stays when they have gone.

    python -m tests.faults.attacks                     all of it
    python -m tests.faults.attacks healthz             /healthz without and with attackers, interleaved
    python -m tests.faults.attacks gone                processor seconds that go on without a client
    python -m tests.faults.attacks memory              resident memory before and after large answers
    python -m tests.faults.attacks shutdown            SIGTERM while a costly filter runs

The server is `xclip-search serve` on an index of its own, of the demo model and drawn features. Attackers are
processes; in `healthz` they are stopped (SIGSTOP) and continued in turn, so that what else the machine does
falls on both columns. Exit 1 where a promise below is not kept.
"""

# ruff: noqa: T201, this is a program that prints tables.

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from indexer.ingest.encoding import index_facts
from indexer.media.sampling import Sampling
from indexer.store.sqlite.catalog import Catalog
from model import XClip
from tests.support.catalog_builders import COSTLY_FILTER, LONG_METADATA, add_video, make_segment
from tests.support.servers.server_process import ServerProcess

NUM_ATTACKERS = 3
HEALTHZ_P99_SECONDS = 0.05
"""During each attack, on a machine that does nothing else."""

GONE_SECONDS = 1.0
"""Of processor time, at most, for a client that has gone."""

KEPT_BYTES = 64 << 20
"""Resident memory that large answers may leave behind."""

SHUTDOWN_SECONDS = 40.0
"""XCLIP_DRAIN_TIMEOUT_SECONDS, in which what was accepted is answered, and the end of the last query."""
NUM_VIDEOS = 150
LISTED = f"/videos?filter={quote(json.dumps(COSTLY_FILTER))}"


def head(target: str, *lines: str, method: str = "POST") -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


JSON, CHUNKED = "Content-Type: application/json", "Transfer-Encoding: chunked"
FORM = "Content-Type: multipart/form-data; boundary=xxxxxxxxxxxxxxxx"
PART = b'--xxxxxxxxxxxxxxxx\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
LENGTH = "Content-Length: 1000000000"
ONE_BYTE = b"1\r\nx\r\n" * 10_000

ATTACKS: dict[str, tuple[bytes, bytes]] = {
    "one-byte chunks of JSON": (head("/search", JSON, CHUNKED), ONE_BYTE),
    "one-byte chunks, answered before": (head("/nowhere", CHUNKED), ONE_BYTE),
    "one-byte chunks of a form": (head("/videos", FORM, CHUNKED), ONE_BYTE),
    "a form with an endless header": (head("/videos", FORM, LENGTH), b"v" * 65_536),
    "a form of tiny parts": (head("/videos", FORM, LENGTH), PART % b"title" + b"\r\n"),
    "a file like its boundary": (
        head("/videos", FORM, LENGTH) + PART % b"file",
        b"\r\n--xxxxxxxxxxxxxxxy" * 4000,
    ),
    "endless headers": (head("/search")[:-2], b"a: b\r\n" * 10_000),
    "many small requests": (head("/nowhere", *["a: b"] * 90, method="GET"), b""),
    "JSON in brackets": (head("/search", JSON, "Content-Length: 60000") + b"[" * 60_000, b""),
    "a costly filter": (head(LISTED, method="GET"), b""),
}
"""Name -> what is sent first, and then over and over until the server ends the connection."""


def attack(port: int, first: bytes, then: bytes) -> None:
    """Send until this process is ended; answers are read and forgotten."""
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.setblocking(True)
            reading = threading.Thread(target=read_all, args=(connection,), daemon=True)
            reading.start()
            connection.sendall(first)
            while then:  # Also after an answer, until the server closes.
                connection.sendall(then)
            reading.join(5)


def read_all(connection: socket.socket) -> None:
    """Until the other side ends, or has answered a request that was sent whole."""
    with contextlib.suppress(OSError):
        while data := connection.recv(1 << 16):
            if b"onnection: close" not in data:
                return


@contextlib.contextmanager
def attacking(port: int, name: str) -> Iterator[list[int]]:
    """The ids of processes that attack."""
    first, then = ATTACKS[name]
    context = multiprocessing.get_context("fork")  # Others would first import what they do not need.
    attackers = [context.Process(target=attack, args=(port, first, then)) for _ in range(NUM_ATTACKERS)]
    for attacker in attackers:
        attacker.start()
    try:
        yield [attacker.pid for attacker in attackers if attacker.pid is not None]
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.join()


def probe(client: httpx.Client, count: int) -> list[float]:
    """Seconds of `count` requests, with pauses between."""
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        client.get("/healthz").raise_for_status()
        seconds.append(time.perf_counter() - started)
        time.sleep(0.005)
    return seconds


def healthz(server: ServerProcess, options: argparse.Namespace) -> bool:
    """Times of /healthz without and with each attack."""
    port, kept = server.client.base_url.port or 0, True
    print(f"{NUM_ATTACKERS} attackers; /healthz in ms, without and with them, interleaved")
    print("| attack | p50 | p99 | p50 under attack | p99 under attack | longest under attack |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in ATTACKS:
        alone: list[float] = []
        attacked: list[float] = []
        with attacking(port, name) as attackers:
            time.sleep(1.0)
            for _ in range(options.rounds):
                send(attackers, signal.SIGSTOP)
                time.sleep(0.3)
                alone += probe(server.client, options.probes)
                send(attackers, signal.SIGCONT)
                time.sleep(0.3)
                attacked += probe(server.client, options.probes)
        figures = [*np.quantile(alone, [0.5, 0.99]), *np.quantile(attacked, [0.5, 0.99]), max(attacked)]
        print(f"| {name} | {' | '.join(f'{1e3 * figure:.1f}' for figure in figures)} |", flush=True)
        kept = kept and figures[3] <= HEALTHZ_P99_SECONDS
        server.client.get("/readyz").raise_for_status()
    return kept


def send(process_ids: list[int], number: int) -> None:
    """A signal to each."""
    for process_id in process_ids:
        os.kill(process_id, number)


def processor_seconds(process_id: int) -> float:
    """That a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(process_id: int) -> int:
    """Of a process."""
    return int(Path(f"/proc/{process_id}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def gone(server: ServerProcess, options: argparse.Namespace) -> bool:
    """What the server still does for clients that have gone."""
    print("| request of a client that goes after 0.5 s | processor seconds after |\n| --- | ---: |")
    port, kept = server.client.base_url.port or 0, True
    queries = [f"{word} {number}" for number in range(32) for word in ("a red car",)]
    body = json.dumps({"queries": queries, "mode": "exhaustive", "filter": COSTLY_FILTER}).encode()
    requests = {
        "GET /videos with a costly filter": head(LISTED, method="GET"),
        "POST /search with it": head("/search", JSON, f"Content-Length: {len(body)}") + body,
        "GET /videos/{id}/similar with it": head(
            LISTED.replace("/videos?", "/videos/video-1/similar?"), method="GET"
        ),
    }
    for name, request in requests.items():
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request)
            time.sleep(0.5)
        before = processor_seconds(server.process.pid)
        time.sleep(8.0)
        used = processor_seconds(server.process.pid) - before
        print(f"| {name} | {used:.2f} |", flush=True)
        kept = kept and used <= GONE_SECONDS
    return kept


def memory(server: ServerProcess, options: argparse.Namespace) -> bool:
    """Resident memory before, during and after four large answers at once, several times."""
    bodies: dict[str, dict[str, Any]] = {
        "as many results as there may be": {"queries": ["a car"] * 10, "limit": 100},
        "as many explained as there may be": {"queries": ["a car"] * 10, "limit": 10, "explain": True},
        "32 x 100 explained": {"queries": ["a car"] * 32, "limit": 100, "explain": True},
    }
    print("| four at once | status | answer, MB | before, MB | highest, MB | after, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    kept = True
    for name, body in bodies.items():
        ask_together(server, body)  # What is loaded once is not the answers'.
        before = highest = resident_bytes(server.process.pid)
        sizes: set[tuple[int, int]] = set()
        for _ in range(options.rounds):
            more, peak = ask_together(server, body)
            sizes |= more
            highest = max(highest, peak)
        after = resident_bytes(server.process.pid)
        status, size = max(sizes)
        megabytes = " | ".join(f"{value / 1e6:.1f}" for value in (size, before, highest, after))
        print(f"| {name} | {status} | {megabytes} |", flush=True)
        kept = kept and after - before <= KEPT_BYTES
    return kept


def ask_together(server: ServerProcess, body: dict[str, Any]) -> tuple[set[tuple[int, int]], int]:
    """(status, bytes) of four answers at once, and the highest resident memory meanwhile."""
    sizes: set[tuple[int, int]] = set()

    def ask() -> None:
        response = httpx.post(f"{str(server.client.base_url).rstrip('/')}/search", json=body, timeout=60)
        sizes.add((response.status_code, len(response.content)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    highest = 0
    while any(thread.is_alive() for thread in threads):
        highest = max(highest, resident_bytes(server.process.pid))
        time.sleep(0.01)
    return sizes, highest


def shutdown(server: ServerProcess, options: argparse.Namespace) -> bool:
    """How long a server takes to end while filters run."""
    port = server.client.base_url.port or 0
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    for connection in connections:
        connection.sendall(head(LISTED, method="GET"))
    time.sleep(1.0)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(120)
    seconds = time.monotonic() - started
    print(f"SIGTERM during 8 costly filters: status {status} after {seconds:.1f} s")
    return status == 0 and seconds <= SHUTDOWN_SECONDS


PROGRAMS: dict[str, Callable[[ServerProcess, argparse.Namespace], bool]] = {
    "healthz": healthz,
    "gone": gone,
    "memory": memory,
    "shutdown": shutdown,
}


def make_index(directory: Path) -> None:
    """Videos of the demo model's dimensions with features drawn at random and metadata as long as may be."""
    model = XClip.load("demo", "cpu")
    sampling = Sampling(num_frames=model.config.num_frames)
    random = np.random.default_rng(0)
    with Catalog.create(directory, index_facts(model, "demo", sampling)) as catalog:
        for number in range(NUM_VIDEOS):
            segment = make_segment(random, model.config.embedding_dim, model.config.num_frames)
            metadata = LONG_METADATA if number < 120 else {"number": number}
            add_video(catalog, number, [segment], metadata=metadata, title=f"video {number}")


def main() -> None:
    """Run one of the programs, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", nargs="?", choices=PROGRAMS, help="all where none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--probes", type=int, default=100, help="requests in each half of a round")
    options = parser.parse_args()
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"processors: {os.cpu_count()}, load averages before: {load}")
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder) / "index")
        for name in [options.program] if options.program else PROGRAMS:
            log = Path(folder) / f"{name}.log"
            server = ServerProcess(Path(folder) / "index", "--no-worker", log=log)
            try:
                if not PROGRAMS[name](server, options):
                    missed.append(name)
            finally:
                server.process.kill()
                server.process.wait()
    print(f"missed: {', '.join(missed)}" if missed else "all promises kept")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
