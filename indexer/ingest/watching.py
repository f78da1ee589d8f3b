"""Follows folders: brings an index in line with them whenever something in them has changed.

The operating system says that something changed, not what became of it: each time, all folders are looked
through, which takes no reading (see `indexer.ingest.synchronisation`). A file that someone still writes to is
left for later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from watchfiles import watch

from indexer.ingest.library import FoundFile
from indexer.ingest.synchronisation import SyncReport

RESCAN_SECONDS: Final = 600.0
"""So often folders are looked through though nothing was reported: network file systems report nothing."""

_WAKE_MILLISECONDS: Final = 500
_SHARE_OF_TIME: Final = 10
"""Looking through the folders takes at most one part in so many of the time."""


class Settling:
    """Tells files that are still being written: their size or time changed in the last seconds.

    Args:
        settle_seconds: how long a file must have stayed as it is.
        clock: the time, in seconds since 1970.
    """

    def __init__(self, settle_seconds: float, clock: Callable[[], float] = time.time) -> None:
        self.settle_seconds = settle_seconds
        self._clock = clock
        self._has_begun = False
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}

    def begin(self) -> None:
        """What appears from now on is new, however old its time says that it is: a copy may have the time of
        its original."""
        self._has_begun = True

    def is_settled(self, file: FoundFile) -> bool:
        """Whether a file has stayed as it is for long enough, as far as was seen; for one that was there
        before, by its own time."""
        now, state = self._clock(), (file.size_bytes, file.modified_ns)
        if not self._has_begun and now - file.modified_ns / 1e9 >= self.settle_seconds:
            return True
        before, since = self._seen.get(file.path, (None, now))
        if before == state and now - since >= self.settle_seconds:
            del self._seen[file.path]
            return True
        self._seen[file.path] = (state, since if before == state else now)
        return False


def follow(
    paths: Sequence[Path],
    synchronise: Callable[[], SyncReport],
    settling: Settling,
    stop: threading.Event,
) -> None:
    """Bring the index in line now, and whenever something below `paths` has changed, until `stop` is set.

    Args:
        paths: files and folders.
        synchronise: looks through all of them, leaving files that are not settled.
        settling: the one that `synchronise` asks.
        stop: set to end.
    """
    # The first look comes when the system reports changes already: none falls between the two.
    duration, last_run, is_due = 0.0, -float("inf"), True
    for changes in watch(
        *paths,
        watch_filter=None,
        stop_event=stop,
        rust_timeout=_WAKE_MILLISECONDS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
    ):
        is_due = is_due or bool(changes)
        waited = time.monotonic() - last_run
        pause = max(settling.settle_seconds, _SHARE_OF_TIME * duration) if is_due else RESCAN_SECONDS
        if waited < pause:
            continue
        duration, num_waiting = _run(synchronise)
        settling.begin()
        last_run = time.monotonic()
        is_due = num_waiting > 0


def _run(synchronise: Callable[[], SyncReport]) -> tuple[float, int]:
    """How long the look itself took, and how many files it left for later."""
    report = synchronise()
    return max(0.0, report.seconds - (report.encode_seconds or 0.0)), report.num_waiting
