"""Writes that a protocol makes one after the other leave together: head and body of an answer, for one."""

from __future__ import annotations

import asyncio
from typing import Any

GATHERED_BYTES = 64 * 1024
"""No more than this is held back: beyond, and before the transport is closed, it is written."""


class GatheredWrites:
    """A transport that writes what it was given when the event loop comes round, or when it is much.

    Each write costs a call into the kernel, a packet, and a wait for the interpreter lock that a thread took
    meanwhile. Whatever is not about writing goes to the transport itself.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write soon, after what was given before."""
        if not data:
            return
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)
        self._num_bytes += len(data)
        if self._num_bytes >= GATHERED_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write now."""
        if self._parts:
            gathered, self._parts, self._num_bytes = b"".join(self._parts), [], 0
            self._transport.write(gathered)

    def write_eof(self) -> None:
        """Write, then say that nothing more comes."""
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Write, then close."""
        self.flush()
        self._transport.close()
