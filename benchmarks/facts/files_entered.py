"""Which of our files a warm `POST /search` and an uploaded video enter: what one has to open to follow them.

    python -m benchmarks.facts.files_entered [--functions]

Starts a server and a worker on a small index of its own with the demo model, each under a profiler, adds
videos and searches unrecorded, then records the same several times. What was not entered each time, such as a
watch that looks every few seconds, does not belong to it; the one that looks twice a second is switched off.
Decoding processes are not looked into. Exit status 1 where it is more than MAX_FILES allows.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.machine import REPOSITORY

PACKAGES = ("model", "indexer", "service", "training", "xclip_search")
QUERY = {"query": "a purple crown spins, then a yellow plane falls", "limit": 5}
MAX_FILES = {"search": 25, "upload": 32}
WITHIN_SECONDS = 120.0
NUM_RECORDINGS = 6
SETTLE_SECONDS = 0.1
"""For the signal to arrive, and for what a request does after its answer."""


def run_traced(output: Path, arguments: list[str]) -> None:
    """Run the console command; SIGUSR1 begins a recording, SIGUSR2 writes it to `output` and ends it."""
    entered: Counter[tuple[str, str]] = Counter()
    moves = 0
    recording = False
    prefixes = tuple(f"{REPOSITORY / package}{os.sep}" for package in PACKAGES)

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal moves
        if not recording or event != "call" or not frame.f_code.co_filename.startswith(prefixes):
            return
        entered[frame.f_code.co_filename, frame.f_code.co_qualname] += 1
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(prefixes):
            caller = caller.f_back
        moves += caller is None or caller.f_code.co_filename != frame.f_code.co_filename

    def begin(*_: object) -> None:
        nonlocal recording, moves
        entered.clear()
        moves, recording = 0, True

    def end(*_: object) -> None:
        nonlocal recording
        recording = False
        functions = sorted(
            [str(Path(file).relative_to(REPOSITORY)), name]
            for file, name in entered
            if "<" not in name.split(".")[-1]
        )
        unfinished = output.with_suffix(".new")
        unfinished.write_text(json.dumps({"functions": functions, "moves": moves}))
        unfinished.replace(output)

    import service.index_switch

    service.index_switch.POLL_SECONDS = 24 * 3600.0
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    threading.setprofile(profile)
    sys.setprofile(profile)
    sys.argv = ["xclip-search", *arguments]
    runpy.run_module("xclip_search", run_name="__main__")


class Traced:
    """One process under the profiler."""

    def __init__(self, name: str, folder: Path, arguments: list[str]) -> None:
        self.name = name
        self._output = folder / f"{name}.json"
        command = [sys.executable, "-m", "benchmarks.facts.files_entered", "--inside", str(self._output)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        log = (folder / f"{name}.log").open("wb")
        self.process = subprocess.Popen([*command, "--", *arguments], env=environment, stdout=log, stderr=log)

    def begin(self) -> None:
        """Begin a recording."""
        self._output.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        time.sleep(SETTLE_SECONDS)

    def end(self) -> dict[str, Any]:
        """End it and read it."""
        time.sleep(SETTLE_SECONDS)
        self.process.send_signal(signal.SIGUSR2)
        deadline = time.monotonic() + WITHIN_SECONDS
        while not self._output.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the {self.name} gave no recording")
            time.sleep(0.05)
        recording: dict[str, Any] = json.loads(self._output.read_text())
        return recording


def main() -> None:
    """Record both and print what was entered."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", action="store_true", help="list the functions of each file too")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run_traced(options.inside, options.arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        num_files = record(Path(folder), with_functions=options.functions)
    too_many = [name for name, most in MAX_FILES.items() if num_files[name] > most]
    if too_many:
        raise SystemExit(f"more files than MAX_FILES allows: {', '.join(too_many)}")


def record(folder: Path, *, with_functions: bool) -> dict[str, int]:
    """Serve an index in `folder`, add and search, print what was entered; the number of files of each."""
    import httpx

    from tests.support.video_files import write_numbered_video

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    index = str(folder / "index")
    server = Traced(
        "server", folder, ["serve", "--index", index, "--model", "demo", "--port", str(port), "--no-worker"]
    )
    worker = None
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WITHIN_SECONDS) as client:
            wait_until_ready(client, server)
            worker = Traced("worker", folder, ["worker", "--index", index])

            def add(number: int) -> None:
                path = folder / f"{number}.mp4"
                write_numbered_video(path, num_frames=20 + number, rate=4)
                with path.open("rb") as file:
                    answer = client.post("/videos?wait=true", files={"file": (path.name, file, "video/mp4")})
                answer.raise_for_status()

            def search() -> None:
                client.post("/search", json=QUERY).raise_for_status()

            for number in range(3):
                add(number)
            search()
            search()
            searches, uploads = [], []
            for number in range(NUM_RECORDINGS):
                server.begin()
                search()
                searches.append([server.end()])
                server.begin()
                worker.begin()
                add(3 + number)
                uploads.append([server.end(), worker.end()])
            title = "one uploaded video, in the server and the worker"
            return {
                "search": report("one warm POST /search", searches, with_functions),
                "upload": report(title, uploads, with_functions),
            }
    finally:
        for traced in (worker, server):
            if traced is not None:
                traced.process.terminate()
                traced.process.wait(timeout=60)


def wait_until_ready(client: Any, server: Traced) -> None:
    """Return when the server answers searches."""
    import httpx

    deadline = time.monotonic() + WITHIN_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise SystemExit("the server ended before it was ready")
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("the server did not get ready")


def report(title: str, recordings: list[list[dict[str, Any]]], with_functions: bool) -> int:
    """Print what was entered in each recording, of all processes together; the number of files."""
    each = [
        {(file, name) for one in processes for file, name in one["functions"]} for processes in recordings
    ]
    functions = sorted(set.intersection(*each))
    files = Counter(file for file, _ in functions)
    num_moves = min(sum(one["moves"] for one in processes) for processes in recordings)
    print(
        f"{title}: {len(files)} files, {len(functions)} functions,"
        f" {num_moves} calls from one file into another"
    )
    for file, count in files.items():
        print(f"    {file} ({count})")
        if with_functions:
            print(*(f"        {name}" for other, name in functions if other == file), sep="\n")
    return len(files)


if __name__ == "__main__":
    main()
