"""Whether the database answers, asked over connections of its own.

A statement that says nothing may be at work, or its server may hang, or all that is sent to it may be
dropped. So what waits for a while has a thread connect anew: where that fails, or comes to no end either, the
database does not answer. The thread goes on trying until it does: nothing waits in vain meanwhile, and all go
on as soon as they can.

Where the server answers, it also says which sessions are at work. One that has been waited for and is not has
had nothing to do, or has answered long ago: its connection was lost on the way, as where a firewall has
forgotten it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg

logger = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 0.3
"""Between two attempts to connect."""

_SERVER_SAYS_FULL: Final = ("too many", "connection slots")
"""In what a server says that answers, but has no connection left."""


Session = tuple[str, int, int]
"""Host, port and process id of what serves a connection."""


@dataclass(frozen=True)
class Sessions:
    """What a server says of the sessions of our user. host, port: the server's. at_work: process ids."""

    host: str
    port: int
    at_work: frozenset[int]

    def lost(self, session: Session) -> bool:
        """Whether one of this server is not at work."""
        host, port, process_id = session
        return (host, port) == (self.host, self.port) and process_id not in self.at_work


class Availability:
    """Safe to use from several threads.

    connect: connects, asks which sessions are at work, and closes the connection; raises psycopg.Error.
    where: names the index in the log.
    """

    def __init__(self, connect: Callable[[], Sessions | None], where: str) -> None:
        self._connect = connect
        self._where = where
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._answered_at = time.monotonic()
        self._asked_at = -math.inf
        self._sessions: Sessions | None = None
        self._away_since: float | None = None

    @property
    def away_since(self) -> float | None:
        """Since when the database has not answered, as `time.monotonic` counts; None where it does."""
        return self._away_since

    def check(self, waiting_since: float, limit_seconds: float, session: Session | None = None) -> None:
        """To be called now and then by what waits for the server.

        Args:
            waiting_since: when it last heard from the server, as `time.monotonic` counts.
            limit_seconds: how long a server may be silent. After a third of it another connection is tried.
            session: which it waits for.

        Raises:
            psycopg.OperationalError: the database does not answer, or the connection is lost.
        """
        with self._lock:
            waited_seconds, sessions = self._asked_at - waiting_since, self._sessions
        # By then the statement had long come through, however slow the network.
        if waited_seconds >= limit_seconds / 2 and session and sessions and sessions.lost(session):
            raise psycopg.OperationalError("the connection was lost on the way: the server is not at work")
        silent_seconds = time.monotonic() - max(waiting_since, self._answered_at)
        if silent_seconds < limit_seconds / 3:
            return
        self.ask()
        if self._away_since is not None:
            raise psycopg.OperationalError("it cannot be connected to")
        if silent_seconds >= limit_seconds:
            self._note_away("it is silent")
            raise psycopg.OperationalError(f"it has been silent for {silent_seconds:.1f} seconds")

    def raise_if_away(self) -> None:
        """Raise psycopg.OperationalError where it is known that the database does not answer."""
        if self._away_since is not None:
            self.ask()
            raise psycopg.OperationalError("it cannot be connected to")

    def ask(self) -> None:
        """Let the thread find out whether the database answers."""
        with self._lock:
            if self._closing.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            self._thread = threading.Thread(target=self._work, name="database-probe", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._closing.set()

    def _work(self) -> None:
        while not self._closing.is_set():
            asked_at, sessions = time.monotonic(), None
            try:
                sessions = self._connect()
            except psycopg.Error as error:
                if not any(sign in str(error) for sign in _SERVER_SAYS_FULL):
                    self._note_away(str(error).strip().splitlines()[0])
                    self._closing.wait(PAUSE_SECONDS)
                    continue
            self._note_answer(asked_at, sessions)
            return

    def _note_away(self, said: str) -> None:
        with self._lock:
            if self._away_since is not None:
                return
            self._away_since = time.monotonic()
        logger.warning("the database of %s does not answer: %s", self._where, said)

    def _note_answer(self, asked_at: float, sessions: Sessions | None) -> None:
        with self._lock:
            self._answered_at = time.monotonic()
            self._asked_at, self._sessions = asked_at, sessions
            was_away, self._away_since = self._away_since, None
        if was_away is not None:
            seconds = time.monotonic() - was_away
            logger.warning("the database of %s answers again, after %.0f seconds", self._where, seconds)
