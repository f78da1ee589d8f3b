"""Work that is divided among threads of a processor."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

Turn = TypeVar("Turn")

_here = threading.local()
_num_at_work = 0
_counting = threading.Lock()


def in_turns(work: Callable[[Turn], None], turns: Sequence[Turn], num_threads: int) -> None:
    """Do all turns on up to `num_threads` threads, of which this is one, and raise an error of any."""
    remaining = iter(turns)  # `next` is atomic.
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def take() -> None:
        for turn in remaining:
            error: BaseException | None = None
            try:
                work(turn)
            except BaseException as caught:
                error = caught
            ends.put(error)

    with helped(take, min(num_threads, len(turns))):
        take()
    for error in [ends.get() for _ in turns]:
        if error is not None:
            raise error


@contextmanager
def helped(help: Callable[[], None], num_threads: int) -> Iterator[None]:
    """Have other threads call `help` meanwhile, so that up to `num_threads` are at work with this one.

    Nobody waits for one that comes late: it has to find that nothing is left to do. See `allowed_threads`.
    """
    processor = _processor()
    helpers = [
        _threads().submit(_elsewhere, help, processor) for _ in range(allowed_threads(num_threads) - 1)
    ]
    try:
        yield
    finally:
        for helper in helpers:
            helper.cancel()


def allowed_threads(num_threads: int) -> int:
    """As many, or one where several threads are `at_work`."""
    return 1 if _num_at_work > 1 else num_threads


@contextmanager
def at_work() -> Iterator[None]:
    """Count this thread, meanwhile, among those that have work or wait for it.

    Where there are others, they keep the processors busy. Work of one thread then takes less time of
    processors than that of several, which wait for each other.
    """
    global _num_at_work
    if getattr(_here, "is_counted", False):
        yield
        return
    _here.is_counted = True
    with _counting:
        _num_at_work += 1
    try:
        yield
    finally:
        _here.is_counted = False
        with _counting:
            _num_at_work -= 1


def _elsewhere(help: Callable[[], None], processor: int | None) -> None:
    """Call `help`, but not on the processor of the one who is helped, where it would only take turns.

    Linux often wakes a thread there, if the others have slept, and leaves it for some milliseconds. Where it
    goes from another one is Linux's choice again: that may be busy with work that is more urgent.
    """
    if processor is not None and _processor() == processor:
        allowed = os.sched_getaffinity(0)  # Of this thread.
        if others := allowed - {processor}:
            os.sched_setaffinity(0, others)
            os.sched_setaffinity(0, allowed)
    help()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernels")


def _processor() -> int | None:
    """The one that this thread runs on, where the operating system says that."""
    return _libc().sched_getcpu() if sys.platform == "linux" else None


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
