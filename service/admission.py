"""Admission control: how many searches run concurrently and how many may wait. All others are refused.

A client's searches queue among themselves first, so one that asks a lot does not hold up the others. When the
queue is full, a client with fewer searches in it takes a place in it from the one with most.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from anyio import CancelScope, CapacityLimiter, WouldBlock

from indexer.store.cancellation import cancellable, raise_if_cancelled
from service.auth.access import CLIENT
from service.errors import OverloadedError, ServiceError, TooManyRequestsError

Answer = TypeVar("Answer")
Prepared = TypeVar("Prepared")


@dataclass(eq=False)
class _Client:
    """One client's searches. turns: lets as many of them into the common queue as there are threads."""

    turns: CapacityLimiter
    waiting: list[CancelScope] = field(default_factory=list)
    num_inside: int = 0


class SearchLimiter:
    """Runs blocking searches in threads: `num_threads` concurrently, `max_waiting` behind them.

    observe: called with each answer and the seconds that its search waited.
    Must be made inside a running event loop.
    """

    def __init__(
        self,
        num_threads: int,
        max_waiting: int,
        observe: Callable[[object, float], None] = lambda answer, waited_seconds: None,
    ) -> None:
        self._slots = CapacityLimiter(num_threads)
        self._max_inside = num_threads + max_waiting
        # `_slots` are the bound: each is held until its thread ends, also where the request was cancelled.
        # The pool has a thread for each search that is inside, since all of them may be preparing.
        self._pool = ThreadPoolExecutor(self._max_inside, thread_name_prefix="search")
        self._observe = observe
        self._clients: dict[str, _Client] = {}
        self._inside: set[object] = set()
        self.num_shed: Counter[str] = Counter()
        """How many were refused, by the kind of problem."""

    @property
    def num_inside(self) -> int:
        """Searches that run or wait."""
        return len(self._inside)

    @property
    def num_running(self) -> int:
        """Searches that have a thread."""
        return self._slots.borrowed_tokens

    @property
    def num_waiting(self) -> int:
        """Searches that wait for one."""
        return self.num_inside - self.num_running

    async def run(
        self,
        search: Callable[..., Answer],
        *,
        prepare: Callable[[], object] | None = None,
        begun: bool = False,
    ) -> Answer:
        """Call `search` in a thread.

        Args:
            search: Blocks. Where the caller is cancelled it is asked to stop (`cancellable`),
                and its thread is free when it has.
            prepare: Called before, in a thread that does not count, where more searches are inside than there
                are threads: what it does for those that wait can so be done for many at once. Blocks, and is
                asked to stop like `search`, which is called with what it returned, or with nothing.
            begun: It continues a request that was admitted before, and may wait though the queue is full:
                what was done so far would be lost. Another client may still take its place.

        Returns:
            What `search` returns.

        Raises:
            OverloadedError: Too many searches wait already.
            TooManyRequestsError: Too many wait, and this client has more of them than others.
        """
        arrived, name = time.monotonic(), CLIENT.get()
        client = self._clients.get(name) or _Client(CapacityLimiter(self._slots.total_tokens))
        if self.num_inside >= self._max_inside and not begun:
            self._shed(client)
        self._clients[name] = client
        client.num_inside += 1
        borrower = object()
        self._inside.add(borrower)
        prepared: tuple[object, ...] = ()
        prepare_seconds = 0.0
        try:
            with self._waiting(client):
                if prepare is not None and self.num_inside > self._slots.total_tokens:
                    begun_at = time.monotonic()
                    prepared = (await self._call_prepare(prepare),)
                    prepare_seconds = time.monotonic() - begun_at
                # First the client's own queue: it never has more searches in the common one than there are
                # threads, so the searches of other clients wait behind few of them.
                for limiter in (client.turns, self._slots):
                    await _acquire(limiter, borrower)
        except BaseException:
            self._leave(name, borrower)
            raise
        waited_seconds = time.monotonic() - arrived - prepare_seconds
        started, cancelled = threading.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def call() -> Answer:
            started.set()
            try:
                with cancellable(cancelled):
                    raise_if_cancelled()
                    return search(*prepared)
            finally:
                with contextlib.suppress(RuntimeError):  # The loop is closed, and the limiter with it.
                    loop.call_soon_threadsafe(self._leave, name, borrower)

        try:
            answer = await self._in_thread(call)
        except asyncio.CancelledError:
            cancelled.set()
            if not started.is_set():
                self._leave(name, borrower)
            raise
        self._observe(answer, waited_seconds)
        return answer

    @contextlib.contextmanager
    def _waiting(self, client: _Client) -> Iterator[None]:
        """What happens inside may be cancelled for another client. Raises TooManyRequestsError then."""
        with CancelScope() as scope:
            client.waiting.append(scope)
            try:
                yield
            finally:
                if scope in client.waiting:
                    client.waiting.remove(scope)
        if scope.cancelled_caught:
            raise TooManyRequestsError()

    async def _call_prepare(self, prepare: Callable[[], Prepared]) -> Prepared:
        cancelled = threading.Event()

        def call() -> Prepared:
            with cancellable(cancelled):
                return prepare()

        try:
            return await self._in_thread(call)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def _in_thread(self, call: Callable[[], Answer]) -> Answer:
        """What `call` returns, in this task's context. Where this is cancelled, the thread is left to itself.

        Not anyio's `to_thread`, which gives the event loop two turns before the thread gets to know.
        """
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool, context.run, call)

    def refusal(self) -> ServiceError | None:
        """Why a search of the client of this request would be refused now; None where it may be admitted.

        Known before the request is routed and read: under overload nearly all are refused, and reading those
        would leave no time for searches. A client that has no search here is never refused so early; `run`
        knows better who it is.
        """
        client = self._clients.get(CLIENT.get())
        if client is None or self.num_inside < self._max_inside or self._is_lighter(client):
            return None
        return self._refuse(client)

    def _shed(self, client: _Client) -> None:
        """Cancel the last waiting search of the client with most of them, or raise where that is this one."""
        if not self._is_lighter(client):
            raise self._refuse(client)
        # The last one: it has waited least, so the least waiting is in vain.
        self._heaviest(client).waiting.pop().cancel()
        self.num_shed[TooManyRequestsError.kind] += 1

    def _heaviest(self, client: _Client) -> _Client:
        return max(self._clients.values(), key=lambda other: len(other.waiting), default=client)

    def _is_lighter(self, client: _Client) -> bool:
        """Whether with one more search this client still waits with fewer than the heaviest."""
        return len(client.waiting) + 1 < len(self._heaviest(client).waiting)

    def _refuse(self, client: _Client) -> ServiceError:
        others_wait = any(other.waiting for other in self._clients.values() if other is not client)
        problem = TooManyRequestsError() if client.waiting and others_wait else OverloadedError()
        self.num_shed[problem.kind] += 1
        return problem

    def _leave(self, name: str, borrower: object) -> None:
        """Free what a search holds; nothing where that was done before."""
        if borrower not in self._inside:
            return
        self._inside.remove(borrower)
        client = self._clients[name]
        for limiter in (self._slots, client.turns):
            with contextlib.suppress(RuntimeError):  # It was not admitted yet.
                limiter.release_on_behalf_of(borrower)
        client.num_inside -= 1
        if not client.num_inside:
            del self._clients[name]


async def _acquire(limiter: CapacityLimiter, borrower: object) -> None:
    """Take one of what `limiter` gives, at once where it is free and no one waits for it."""
    try:
        limiter.acquire_on_behalf_of_nowait(borrower)
    except WouldBlock:
        await limiter.acquire_on_behalf_of(borrower)
