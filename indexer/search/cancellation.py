"""How a search that nobody waits for any more comes to an end: it looks now and then, and stops.

A thread cannot be ended from outside. Whoever runs a search in one lets it look at an event between its
blocks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from indexer.errors import SearchAbandonedError

_ABANDONED: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)


@contextlib.contextmanager
def abandonable(abandoned: threading.Event) -> Iterator[None]:
    """Let what runs inside, in this thread, stop soon after `abandoned` is set."""
    token = _ABANDONED.set(abandoned)
    try:
        yield
    finally:
        _ABANDONED.reset(token)


def stop_if_abandoned() -> None:
    """Raise SearchAbandonedError where nobody waits for the search of this thread any more."""
    abandoned = _ABANDONED.get()
    if abandoned is not None and abandoned.is_set():
        raise SearchAbandonedError("nobody waits for this search any more")
