"""Folders are followed: what changes is in the index soon, and nothing before it is whole."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from indexer.ingest.library import FoundFile
from indexer.ingest.synchronisation import SyncReport
from indexer.ingest.watching import Settling, follow


def file(size_bytes: int, modified: float, path: str = "/a.mp4") -> FoundFile:
    return FoundFile(path, size_bytes, int(modified * 1e9))


def test_a_file_that_was_there_before_is_whole_where_its_time_is_old() -> None:
    settling = Settling(5, clock=lambda: 100.0)
    assert settling.is_settled(file(1, 94))
    assert not settling.is_settled(file(1, 96))
    assert not settling.is_settled(file(1, 200)), "a time of the future says nothing"


def test_a_file_that_grows_is_whole_when_it_has_stayed_as_it_is() -> None:
    now = 100.0
    settling = Settling(5, clock=lambda: now)
    settling.begin()
    assert not settling.is_settled(file(1, 0)), "a copy has the time of its original"
    now = 104
    assert not settling.is_settled(file(2, 0))
    now = 108
    assert not settling.is_settled(file(2, 0))
    now = 109
    assert settling.is_settled(file(2, 0))
    assert not settling.is_settled(file(3, 109))


def test_changes_lead_to_a_look_and_what_waits_to_another(tmp_path: Path) -> None:
    looks: list[float] = []
    waiting = [0, 1, 0]
    stop = threading.Event()

    def synchronise() -> SyncReport:
        looks.append(time.monotonic())
        if len(looks) == 3:
            stop.set()
        return SyncReport(num_waiting=waiting[len(looks) - 1])

    thread = threading.Thread(target=follow, args=([tmp_path], synchronise, Settling(0.1), stop))
    thread.start()
    try:
        while not looks:
            time.sleep(0.01)
        deadline = time.monotonic() + 60
        number = 0
        while len(looks) < 3 and time.monotonic() < deadline:
            # A system may take a while until it reports what happens in a folder.
            (tmp_path / f"{number}.mp4").touch()
            number += 1
            time.sleep(0.2)
    finally:
        stop.set()
        thread.join(30)
    assert len(looks) == 3 and not thread.is_alive()
