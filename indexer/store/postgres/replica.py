"""Features read from a hot standby, where it is not behind.

A standby replays what the primary committed a little later. Before features are read, the primary is asked
for the number of its last change, and they are read from the standby only where that has replayed it. So what
is read is never older than what the primary would have given.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from indexer.errors import IndexerError
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.connections import Connections

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""Pause after the standby could not be read."""

_Answer = TypeVar("_Answer")


class Replica:
    """The standby of one generation of an index. Safe to use from several threads.

    address: of the index at the standby. primary: connections to where all else is read.
    """

    def __init__(self, address: PostgresAddress, generation: int, primary: Connections) -> None:
        self._address = address
        self._generation = generation
        self._primary = primary
        self._lock = threading.Lock()
        self._connections: Connections | None = None
        self._not_before = 0.0
        self._replayed = -1
        self.num_reads = 0
        """How many times features were read here."""

    def close(self) -> None:
        """Close the connections to the standby."""
        with self._lock:
            if self._connections is not None:
                self._connections.close()

    def read(self, read: Callable[[Connections], _Answer], sequence: int) -> _Answer:
        """What `read` gives at the standby, or else at the primary. sequence: of the primary's last
        change."""
        if time.monotonic() >= self._not_before:
            try:
                if (connections := self._up_to_date(sequence)) is not None:
                    answer = read(connections)
                    self.num_reads += 1
                    return answer
            except IndexerError as error:
                self._not_before = time.monotonic() + RETRY_SECONDS
                logger.warning("features are read from the primary: %s", error)
        return read(self._primary)

    def _up_to_date(self, sequence: int) -> Connections | None:
        """Where the standby has replayed this change."""
        with self._lock:
            if self._connections is None:
                self._connections = Connections(self._address, self._generation)
            connections = self._connections
        connections.silence_limit_seconds = self._primary.silence_limit_seconds
        if self._replayed < sequence:
            ((self._replayed,),) = connections.rows("SELECT sequence FROM counters")
        return connections if self._replayed >= sequence else None
