"""Whether the server is ending: readiness goes at once, waiting for jobs is cut short, the worker is told."""

from __future__ import annotations

import asyncio


class Drain:
    """Begun once, by a signal."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def begun(self) -> bool:
        """Whether the server is ending."""
        return self._event.is_set()

    def begin(self) -> None:
        """Say so. To be called in the thread of the event loop, by a signal handler too."""
        self._event.set()

    async def wait(self) -> None:
        """Until it has begun."""
        await self._event.wait()
