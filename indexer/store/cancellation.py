"""Cooperative cancellation of a thread's work, whatever store it reads.

A thread cannot be ended from outside: who may want its work to end wraps it in `cancellable(event)`. The work
calls `raise_if_cancelled` between its blocks, and a store ends a statement that is under way.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator

from indexer.errors import SearchCancelledError

_CANCELLED: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("cancelled", default=None)


@contextlib.contextmanager
def cancellable(cancelled: threading.Event) -> Iterator[None]:
    """Let the work inside, in this thread, stop soon after `cancelled` is set.

    Example:
        >>> asked_to_stop = threading.Event()
        >>> with cancellable(asked_to_stop):
        ...     raise_if_cancelled()  # Nothing yet.
        ...     asked_to_stop.set()
        ...     raise_if_cancelled()
        Traceback (most recent call last):
        ...
        indexer.errors.SearchCancelledError: the search was cancelled
    """
    token = _CANCELLED.set(cancelled)
    try:
        yield
    finally:
        _CANCELLED.reset(token)


def cancellation() -> threading.Event | None:
    """What is set when this thread's work is cancelled; None where nobody can cancel it."""
    return _CANCELLED.get()


def is_cancelled() -> bool:
    """Whether the work of this thread was cancelled."""
    cancelled = _CANCELLED.get()
    return cancelled is not None and cancelled.is_set()


def raise_if_cancelled() -> None:
    """Raise SearchCancelledError where the work of this thread was cancelled."""
    if is_cancelled():
        raise SearchCancelledError("the search was cancelled")
