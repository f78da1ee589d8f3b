"""Processes that change an index are killed at random moments; then nothing may be lost.

    python -m tests.faults.crash_cycles --cycles 300 [--seed N] [--index DIR] [--json]

In each cycle one to three generations of processes, one or two at a time, work on the index
(tests/faults/crash_worker.py) and are killed with SIGKILL, each generation opening what the one before it
left. What they acknowledged, and the one operation that each had under way, say what the catalog may hold.
"""

# ruff: noqa: T201, this is a program that prints its table.

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.coarse.index import CoarseIndex
from indexer.maintenance.verification import verify
from indexer.store.records import VideoRecord
from indexer.store.sqlite.catalog import Catalog
from tests.faults.crash_worker import D, F, Worker, are_best_segments, number_of, segments_of
from tests.support.catalog_builders import create_catalog, sha256_of

FAILURES = ("lost", "duplicated", "resurrected", "torn", "wrong answers", "not clean")
AIMED_AT = ("add", "delete", "update", "save", "compact", "checkpoint")
LONGEST_LIFE_SECONDS = 0.12

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Video:
    """What a ledger knows of a video. id: None where the catalog was to choose it."""

    id: str | None
    title: str
    metadata: str

    def is_seen_in(self, record: VideoRecord) -> bool:
        same_id = self.id is None or self.id == record.id
        return same_id and (self.title, self.metadata) == (record.title, _text(record.metadata))


class Ledger:
    """For each video's number, all that the catalog may hold: None for nothing."""

    def __init__(self) -> None:
        self.possible: dict[int, set[Video | None]] = {}
        self.num_added_twice = 0

    def write(self, messages: list[Message]) -> str:
        """Take in what a process said until it was killed; returns what it had under way."""
        begun: Message | None = None
        for message in messages:
            if "begin" in message:
                begun = message
            elif begun is not None and "done" in message:
                self._apply(begun, message)
                begun = None
        if begun is None:
            return "nothing" if messages else "starting"
        self._apply(begun, None)
        return str(begun["begin"])

    def _apply(self, begun: Message, done: Message | None) -> None:
        kind = begun["begin"]
        if kind not in ("add", "update", "delete"):
            return
        before = self.possible.get(begun["number"], {None})
        after: set[Video | None] = {None}
        if kind == "add":
            if done is not None and done["created"] and None not in before:
                self.num_added_twice += 1
            video_id = begun["id"] if done is None else done["id"]
            new = Video(video_id, begun["title"], _text(begun["metadata"]))
            if done is not None:
                # Not created: what was there stays, under the id that was answered.
                stays = {v if v is None else dataclasses.replace(v, id=video_id) for v in before} - {None}
                after = {new} if done["created"] else stays
            else:
                after = {new if video is None else video for video in before}
        elif kind == "update":
            title, metadata = begun["title"], _text(begun["metadata"])
            after = {v and dataclasses.replace(v, title=title, metadata=metadata) for v in before}
            if done is not None:
                after -= {None}
        self.possible[begun["number"]] = after if done is not None else before | after


def _text(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True)


def compare(directory: Path, ledger: Ledger, reasons: list[str] | None = None) -> Counter[str]:
    """How often each of FAILURES is seen; then the ledger knows what is really there.

    reasons: takes what `verify` says.
    """
    found: Counter[str] = Counter()
    findings = verify(directory).findings
    found["not clean"] += bool(findings)
    if reasons is not None:
        reasons += [f"{finding.part}: {finding.problem}" for finding in findings]
    with Catalog.open(directory) as catalog:
        records = catalog.list_videos(limit=100_000)
        by_number = {number_of(record.size_bytes): record for record in records}
        found["duplicated"] += len(records) - len(by_number) + ledger.num_added_twice
        ledger.num_added_twice = 0
        live: list[int] = []
        for number, record in by_number.items():
            infos = catalog.video_segments(record.id)
            live += [info.segment_id for info in infos]
            if not _is_whole(catalog, record, number):
                found["torn"] += 1
        for number in ledger.possible.keys() | by_number.keys():
            allowed, record = ledger.possible.get(number, {None}), by_number.get(number)
            if record is None:
                found["lost"] += None not in allowed
                ledger.possible[number] = {None}
                continue
            if allowed == {None}:
                found["resurrected"] += 1
            elif not any(video is not None and video.is_seen_in(record) for video in allowed):
                found["torn"] += 1
            ledger.possible[number] = {Video(record.id, record.title or "", _text(record.metadata))}
        all_ids = [i for ids, _ in catalog.iterate_video_features() for i in ids.tolist()]
        found["torn"] += all_ids != sorted(live) or catalog.totals() != (len(records), len(live))
        found["wrong answers"] += not _finds_all(catalog, all_ids)
    return found


def _is_whole(catalog: Catalog, record: VideoRecord, number: int) -> bool:
    """Whether a video has exactly its segments and features, bit for bit."""
    expected = segments_of(number)
    infos = catalog.video_segments(record.id)
    features = catalog.segment_features([info.segment_id for info in infos])
    return (
        record.content_sha256 == sha256_of(number)
        and record.duration_seconds == 10.0 * len(expected)
        and catalog.find_by_sha256(record.content_sha256) == record == catalog.get_video(record.id)
        and len(infos) == len(expected) == len(features)
        and all(
            info.start_seconds == segment.start_seconds
            and info.frame_times.tobytes() == segment.frame_times.tobytes()
            and features.video[row].tobytes() == segment.video_feature.tobytes()
            and features.frames[row].tobytes() == segment.frame_features.tobytes()
            for row, (info, segment) in enumerate(zip(infos, expected, strict=True))
        )
    )


def _finds_all(catalog: Catalog, all_ids: list[int]) -> bool:
    """Whether the saved coarse index, when opened, finds the live segments and nothing else."""
    query = np.random.default_rng(len(all_ids)).standard_normal(D).astype(np.float32)
    scores, ids = CoarseIndex.open(catalog).search(query[None], len(all_ids) + 10)
    return sorted(ids[0].tolist()) == all_ids and are_best_segments(catalog, query, scores[0], ids[0])


class Cycles:
    """Kill, compare, again, on one index."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._ledger = Ledger()
        self.failures: Counter[str] = Counter(dict.fromkeys(FAILURES, 0))
        self.killed_during: Counter[str] = Counter()
        self.num_acknowledged = 0
        self.num_with_two = 0
        self.errors: list[str] = []
        self.reasons: list[str] = []
        create_catalog(directory, embedding_dim=D, num_frames=F).close()

    def run(self, cycle: int) -> None:
        """One cycle."""
        for generation in range(self._random.integers(1, 4)):
            num_workers = 1 + int(self._random.random() < 0.25)
            self.num_with_two += num_workers == 2
            workers = [
                _Process(self._directory, [self._seed, cycle, generation, share], share, num_workers)
                for share in range(num_workers)
            ]
            self._wait(workers[0])
            for worker in workers:
                os.kill(worker.process_id, signal.SIGKILL)
            for worker in workers:
                messages = worker.messages()
                self.num_acknowledged += sum("done" in message for message in messages)
                self.errors += [message["wrong"] for message in messages if "wrong" in message]
                self.killed_during[self._ledger.write(messages)] += 1
        self.failures += compare(self._directory, self._ledger, self.reasons)

    def _wait(self, worker: _Process) -> None:
        """Until the moment of the kill: just started, at any time, or within an operation of a kind."""
        way = self._random.random()
        if way < 0.2:
            time.sleep(self._random.random() * 0.01)
        elif way < 0.6:
            time.sleep(self._random.random() * LONGEST_LIFE_SECONDS)
        else:
            aim = AIMED_AT[self._random.integers(len(AIMED_AT))]
            worker.wait_for(
                aim, after=int(self._random.integers(1, 4)), timeout_seconds=4 * LONGEST_LIFE_SECONDS
            )
            time.sleep(self._random.random() * 0.003)


class _Process:
    """A forked worker and the pipe that it reports through. Forked: what it imports is in memory already."""

    def __init__(self, directory: Path, seed: list[int], share: int, num_shares: int) -> None:
        self._channel, channel = os.pipe()
        self._said = b""
        self.process_id = os.fork()
        if self.process_id == 0:
            try:
                Worker(directory, channel, seed, share, num_shares).run()
            finally:
                os._exit(1)
        os.close(channel)

    def wait_for(self, kind: str, after: int, timeout_seconds: float) -> None:
        """Until it has begun this many operations of this kind."""
        end = time.monotonic() + timeout_seconds
        while self._said.count(f'"begin": "{kind}"'.encode()) < after:
            if not select.select([self._channel], [], [], max(0.0, end - time.monotonic()))[0]:
                return
            if not (more := os.read(self._channel, 1 << 16)):
                return
            self._said += more

    def messages(self) -> list[Message]:
        """All that it said; it is dead."""
        while more := os.read(self._channel, 1 << 16):
            self._said += more
        os.close(self._channel)
        os.waitpid(self.process_id, 0)
        return list(_parsed(self._said))


def _parsed(said: bytes) -> Iterator[Message]:
    for line in said.split(b"\n")[:-1]:
        yield json.loads(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cycles", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=Path, help="a folder that is not there yet; kept afterwards")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        cycles = Cycles(options.index or Path(scratch) / "index", options.seed)
        started = time.monotonic()
        for cycle in range(options.cycles):
            cycles.run(cycle)
        seconds = time.monotonic() - started
    failures = {name: cycles.failures[name] for name in FAILURES} | {"errors": len(cycles.errors)}
    report = {
        "cycles": options.cycles,
        "kills": cycles.killed_during.total(),
        "generations of two processes": cycles.num_with_two,
        "acknowledged": cycles.num_acknowledged,
        "seconds": round(seconds, 1),
        "failures": failures,
        "killed during": dict(cycles.killed_during.most_common()),
        "errors": cycles.errors[:10],
        "findings": cycles.reasons[:10],
    }
    if options.json:
        print(json.dumps(report))
    else:
        rows = {name: report[name] for name in list(report)[:5]} | failures
        rows |= {f"killed during: {name}": count for name, count in cycles.killed_during.most_common()}
        for name, value in rows.items():
            print(f"| {name:<36} | {value:>8} |")
        print(*cycles.errors[:10], *cycles.reasons[:10], sep="\n")
    return 1 if any(failures.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
