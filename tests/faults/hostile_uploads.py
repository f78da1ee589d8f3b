"""Hostile files through a running service: it lives on, each upload ends with a reason, searches go on.

    python -m tests.faults.hostile_uploads --count 2000 --seed 0
    python -m tests.faults.hostile_uploads --traced        which files all its processes open, by strace

A real `xclip-search serve` with its worker takes files that name other files, broken clips, and clips damaged
as tests/faults/mutated_clips.py does it, while another client searches. Exits with 1 where anything happened
that must not.
"""

# ruff: noqa: T201  # its table is what it is for
from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from indexer.maintenance.verification import verify
from tests.faults.hostile_files import write_hostile_files
from tests.faults.mutated_clips import MUTATIONS, load_clips
from tests.support.servers.server_process import REPOSITORY, ServerProcess, wait_until
from tests.support.video_files import write_numbered_video

DECODE_TIMEOUT_SECONDS = 60.0
SEARCH_PAUSE_SECONDS = 0.2
ENDS_WITHIN_SECONDS = 600.0
"""A job that has not ended by then, its waiting included, never will."""

MODES = ("rerank", "coarse", "exhaustive")
REASONS_OF_DECODERS = ("the decoder", "decoding took longer", "decoding used more processor time")
"""How the reason of a job begins whose decoder died or was ended."""


@dataclass(frozen=True)
class Ended:
    """What became of an upload.

    kind: of file. outcome: `whole`, `partial`, `failed` (with its reason), `known` (the same bytes came
    before), `refused` (before there was a job), or what must not be. seconds: that the worker spent on it.
    """

    kind: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    attempts: int = 0


GOOD_OUTCOMES = ("whole", "partial", "failed", "known", "refused")


@dataclass
class Findings:
    """All that was seen."""

    uploads: list[Ended] = field(default_factory=list)
    num_api_deaths: int = 0
    num_worker_restarts: int = 0
    num_searches: int = 0
    search_failures: list[str] = field(default_factory=list)
    longest_search_seconds: float = 0.0
    num_tracebacks: int = 0
    num_videos: int = 0
    index_problems: list[str] = field(default_factory=list)
    decode_timeout_seconds: float = DECODE_TIMEOUT_SECONDS

    @property
    def longest_job(self) -> Ended:
        """The upload that kept the worker for longest."""
        return max(self.uploads, key=lambda ended: ended.seconds)

    def failures(self) -> dict[str, int]:
        """What must not be, and how often it was."""
        kept = {"whole", "partial"}
        return {
            "deaths of the API": self.num_api_deaths,
            "deaths of the worker": self.num_worker_restarts,
            "uploads that did not end well": sum(e.outcome not in GOOD_OUTCOMES for e in self.uploads),
            "failed without a reason": sum(e.outcome == "failed" and not e.reason for e in self.uploads),
            "jobs above the time limit": sum(e.seconds > self.decode_timeout_seconds for e in self.uploads),
            "decoders that died or were late": sum(
                e.reason.startswith(REASONS_OF_DECODERS) for e in self.uploads
            ),
            "searches that failed": len(self.search_failures),
            "tracebacks in the log": self.num_tracebacks,
            "videos more or fewer than were accepted": abs(
                self.num_videos - sum(e.outcome in kept for e in self.uploads)
            ),
            "problems of the index": len(self.index_problems),
        }


class Watch:
    """Searches on and on in a thread, and notes which workers live."""

    def __init__(self, server: ServerProcess, findings: Findings) -> None:
        self._server = server
        self._findings = findings
        self._workers: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._findings.num_worker_restarts = max(0, len(self._workers) - 1)

    def _run(self) -> None:
        with httpx.Client(base_url=self._server.client.base_url, timeout=60) as client:
            while not self._stop.wait(SEARCH_PAUSE_SECONDS):
                self._workers.update(self._server.worker_pids())
                self._search(client, MODES[self._findings.num_searches % len(MODES)])

    def _search(self, client: httpx.Client, mode: str) -> None:
        findings, started = self._findings, time.perf_counter()
        findings.num_searches += 1
        try:
            response = client.post("/search", json={"query": "a dog in the snow", "mode": mode})
            if response.status_code != 200:
                findings.search_failures.append(f"{mode}: status {response.status_code}")
        except httpx.HTTPError as error:
            findings.search_failures.append(f"{mode}: {type(error).__name__}")
        findings.longest_search_seconds = max(findings.longest_search_seconds, time.perf_counter() - started)


def upload_all(
    server: ServerProcess, files: Iterable[tuple[str, Path]], findings: Findings, num_clients: int = 2
) -> None:
    """Upload files, (kind, path) each, several at a time, and wait for what becomes of them."""
    with ThreadPoolExecutor(num_clients) as clients:
        findings.uploads += clients.map(lambda file: _upload(server, *file), files)


def _upload(server: ServerProcess, kind: str, path: Path) -> Ended:
    try:
        answer = server.upload(path)
        if answer.status_code == 200:
            return Ended(kind, "known")
        body = answer.json()
        job = body.get("job")
        if answer.status_code == 202:
            job = _wait_for(server, answer.headers["Location"])
        elif answer.status_code not in (201, 422):
            return Ended(kind, f"status {answer.status_code}")
        if job is None:
            return Ended(kind, "refused", str(body.get("detail")))
        return _ended(server, kind, job)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return Ended(kind, f"no answer: {type(error).__name__}")


def _wait_for(server: ServerProcess, location: str) -> dict[str, Any]:
    deadline = time.monotonic() + ENDS_WITHIN_SECONDS
    while True:
        job: dict[str, Any] = server.client.get(location).json()
        if job["state"] in ("done", "failed") or time.monotonic() > deadline:
            return job
        time.sleep(0.2)


def _ended(server: ServerProcess, kind: str, job: dict[str, Any]) -> Ended:
    outcome = job["state"]
    if outcome == "done":
        video = server.client.get(f"/videos/{job['video_id']}").json()
        outcome = "partial" if video["partial"] else "whole"
    elif outcome != "failed":
        return Ended(kind, f"still {outcome}")
    times = [datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at")]
    seconds = (times[1] - times[0]).total_seconds()
    return Ended(kind, outcome, job["reason"] or "", seconds, job["attempts"])


def mutated_files(
    clips_folder: Path | None, numbers: Iterable[int], seed: int, scratch: Path
) -> Iterator[tuple[str, Path]]:
    """Damaged clips, (damage, path) each: the cases of these numbers of tests/faults/mutated_clips.py."""
    clips = load_clips(clips_folder, scratch)
    for number in numbers:
        chance = random.Random(f"{seed} {number}")
        mutation = MUTATIONS[number % len(MUTATIONS)]
        clip, other = chance.choice(clips), chance.choice(clips)
        path = scratch / f"{number}{Path(clip.name).suffix}"
        path.write_bytes(mutation(bytearray(clip.content), other.content, chance))
        yield mutation.__name__, path


def broken_files(clips_folder: Path | None, scratch: Path) -> list[tuple[str, Path]]:
    """Files that name others, and the broken clips where they are."""
    (scratch / "naming").mkdir()
    files = [
        ("naming others", path) for path in write_hostile_files(scratch / "naming", "canary.ts", 9).values()
    ]
    if clips_folder is not None:
        broken = sorted((clips_folder / "broken").iterdir())
        files += [("broken clip", path) for path in broken if path.suffix != ".json"]
    return files


def run_uploads(
    model: str, clips_folder: Path | None, numbers: Sequence[int], seed: int, scratch: Path
) -> Findings:
    """Start a server, upload everything, look at what is left. scratch: an empty folder."""
    findings = Findings()
    index = scratch / "index"
    server = ServerProcess(
        index, "--model", model, "--device", "cpu", "--decode-timeout", DECODE_TIMEOUT_SECONDS,
        log=scratch / "server.log",
    )  # fmt: skip
    try:
        with Watch(server, findings):
            good = write_numbered_video(scratch / "first.mp4", 20)
            upload_all(server, [("good", good)], findings)
            upload_all(server, broken_files(clips_folder, scratch), findings)
            upload_all(server, mutated_files(clips_folder, numbers, seed, scratch), findings)
            last = write_numbered_video(scratch / "last.mp4", 20, first_number=500)
            upload_all(server, [("good", last)], findings)
            findings.num_api_deaths = int(server.process.poll() is not None)
            findings.num_videos = server.client.get("/stats").json()["num_videos"]
    finally:
        server.stop()
    findings.num_tracebacks = server.log.read_text().count("Traceback")
    findings.index_problems = [f"{found.part}: {found.problem}" for found in verify(index).findings]
    findings.index_problems += [f"left over: {path.name}" for path in (index / "uploads").iterdir()]
    return findings


# Which files are opened


STRACE = shutil.which("strace")
_OPENED = re.compile(r'\bopen(?:at|at2)?\((?:[^",]*, )?"([^"]*)"')
_OUR_UPLOAD = re.compile(r"[0-9a-f]{32}(\.[a-z0-9]+)?")


@dataclass(frozen=True)
class Trace:
    """What all processes of the service did from the first upload on.

    uploads_read: uploads that were opened for reading, by name. foreign: paths opened that are neither an
    upload, nor the index's own, nor the runtime. addresses: calls that named one to speak to. programs: calls
    that started one.
    """

    uploads_read: frozenset[str]
    foreign: frozenset[str]
    addresses: tuple[str, ...]
    programs: tuple[str, ...]


def trace_uploads(model: str, clips_folder: Path | None, scratch: Path) -> tuple[Findings, Trace]:
    """Upload the files that name others and the broken clips to a server that runs under strace."""
    assert STRACE is not None
    findings, log = Findings(), scratch / "strace.log"
    under = [STRACE, "-D", "-f", "-qq", "-s", "400", "-o", str(log)]
    under += ["-e", "trace=open,openat,openat2,connect,sendto,execve", "--"]
    server = ServerProcess(
        scratch / "index", "--model", model, "--device", "cpu", log=scratch / "server.log", under=under
    )
    try:
        wait_until(lambda: len(server.worker_pids()) == 1, 60)
        # What is imported late has been, when a video was read, a picture taken and a search made.
        first = server.upload(write_numbered_video(scratch / "first.mp4", 20)).json()["video"]["id"]
        server.found_ids()
        server.client.get(f"/videos/{first}/thumbnail").raise_for_status()
        num_before = len(log.read_bytes())
        upload_all(server, broken_files(clips_folder, scratch), findings)
        last = server.upload(write_numbered_video(scratch / "last.mp4", 20, first_number=500))
        assert last.status_code == 201, last.text
        findings.num_api_deaths = int(server.process.poll() is not None)
        findings.num_videos = server.client.get("/stats").json()["num_videos"] - 2
    finally:
        server.stop()
    wait_until(lambda: not _is_traced_to(log), 60)
    calls = log.read_bytes()[num_before:].decode(errors="replace").splitlines()
    return findings, judge(calls, scratch / "index")


def _is_traced_to(log: Path) -> bool:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if arguments[0] == os.fsencode(STRACE or "") and os.fsencode(log) in arguments:
                return True
    return False


def judge(calls: Sequence[str], index: Path) -> Trace:
    """What lines of strace say. index: the served index."""
    runtime = (sys.prefix, sys.base_prefix, str(REPOSITORY), "/lib", "/usr", "/etc/", "/proc", "/sys", "/dev")
    uploads, foreign = set(), set()
    for call in calls:
        if (match := _OPENED.search(call)) is None:
            continue
        path = Path(match[1])
        if path.parent in (index / "uploads", index / "media") and _OUR_UPLOAD.fullmatch(path.name):
            if "O_RDONLY" in call:
                uploads.add(path.name)
        elif not match[1].startswith(runtime) and not _is_of_index(path, index):
            foreign.add(match[1])
    connects = [call for call in calls if re.search(r"\b(connect|sendto)\(.*sa_family=", call)]
    programs = [call for call in calls if "execve(" in call]
    return Trace(frozenset(uploads), frozenset(foreign), tuple(connects), tuple(programs))


def _is_of_index(path: Path, index: Path) -> bool:
    own = path == index or path.parent == index or path in (index / "uploads", index / "media")
    return own or path.name.startswith("xclip-decode-")


# The table


def print_findings(findings: Findings, seconds: float) -> None:
    """Outcomes by kind of file in Markdown, reasons, and what must be 0."""
    kinds = dict.fromkeys(ended.kind for ended in findings.uploads)
    print("| files | uploads | " + " | ".join(GOOD_OUTCOMES) + " |")
    print("| --- | ---: |" + " ---: |" * len(GOOD_OUTCOMES))
    rows = {kind: [e for e in findings.uploads if e.kind == kind] for kind in kinds}
    for kind, uploads in [*rows.items(), ("all", findings.uploads)]:
        counts = Counter(ended.outcome for ended in uploads)
        cells = [len(uploads), *(counts[outcome] for outcome in GOOD_OUTCOMES)]
        print(f"| {kind.replace('_', ' ')} | " + " | ".join(map(str, cells)) + " |")
    print()
    for reason, count in Counter(e.reason for e in findings.uploads if e.reason).most_common(25):
        print(f"{count:>5}  {reason[:100]}")
    print()
    for name, count in findings.failures().items():
        print(f"{name}: {count}")
    longest = findings.longest_job
    print(f"longest job: {longest.seconds:.2f} s ({longest.kind})")
    print(f"searches: {findings.num_searches}, the longest {findings.longest_search_seconds:.2f} s")
    print(f"all took {seconds:.0f} s")
    bad = [ended for ended in findings.uploads if ended.outcome not in GOOD_OUTCOMES]
    print(*bad[:20], *findings.search_failures[:10], *findings.index_problems[:10], sep="\n")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.hostile_uploads", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--traced", action="store_true")
    parser.add_argument("--clips", type=Path, help="a folder with `public` and `broken` in it")
    options = parser.parse_args()
    named = os.environ.get("XCLIP_TEST_CLIPS")
    folder = options.clips or (Path(named) if named else REPOSITORY.parent / "shared" / "clips")
    clips_folder = folder if (folder / "public").is_dir() else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        if options.traced:
            findings, trace = trace_uploads(options.model, clips_folder, Path(scratch))
            print(f"uploads read: {len(trace.uploads_read)}; other files opened: {len(trace.foreign)}")
            print(f"addresses named: {len(trace.addresses)}; programs started: {len(trace.programs)}")
            print(*sorted(trace.foreign)[:20], *trace.addresses[:10], *trace.programs[:10], sep="\n")
            is_bad = bool(trace.foreign or trace.addresses or trace.programs)
        else:
            numbers = range(options.first, options.first + options.count)
            findings = run_uploads(options.model, clips_folder, numbers, options.seed, Path(scratch))
            is_bad = False
    print_findings(findings, time.monotonic() - started)
    return 1 if is_bad or any(findings.failures().values()) else 0


if __name__ == "__main__":
    sys.exit(main())
