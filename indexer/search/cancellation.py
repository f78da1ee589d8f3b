"""Cooperative cancellation of a search that runs in a thread.

A thread cannot be ended from outside. The caller wraps the work in `cancellable(event)`; the work calls
`raise_if_cancelled` between its blocks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from indexer.errors import SearchCancelledError

_CANCELLED: ContextVar[threading.Event | None] = ContextVar("cancelled", default=None)


@contextlib.contextmanager
def cancellable(cancelled: threading.Event) -> Iterator[None]:
    """Let the work inside, in this thread, stop soon after `cancelled` is set."""
    token = _CANCELLED.set(cancelled)
    try:
        yield
    finally:
        _CANCELLED.reset(token)


def raise_if_cancelled() -> None:
    """Raise SearchCancelledError where the search of this thread was cancelled."""
    cancelled = _CANCELLED.get()
    if cancelled is not None and cancelled.is_set():
        raise SearchCancelledError("the search was cancelled")
