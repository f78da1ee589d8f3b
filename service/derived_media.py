"""What is made from videos' files when somebody asks for it, few at once, kept in memory up to a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from anyio import CapacityLimiter, to_thread

from service.errors import OverloadedError
from service.media_store import MediaFile

_Key = tuple[str, int, int, tuple[float, ...]]


class DerivedMedia:
    """Bytes by video and parameters, the least recently used dropped beyond `cache_bytes`.

    num_at_once: made at the same time. max_inside: made or waited for at the same time; then OverloadedError.
    """

    def __init__(self, cache_bytes: int, *, num_at_once: int, max_inside: int) -> None:
        self._cache_bytes = cache_bytes
        self._limiter = CapacityLimiter(num_at_once)
        self._max_inside = max_inside
        self._num_inside = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._size_bytes = 0

    async def get(
        self, video_id: str, media: MediaFile, parameters: tuple[float, ...], make: Callable[[], bytes]
    ) -> bytes:
        """What `make` gives for these parameters, or gave for the file as it is. `make` blocks.

        Raises OverloadedError, and whatever `make` raises.
        """
        status = media.stat_result
        key = (video_id, status.st_size, status.st_mtime_ns, parameters)
        if (kept := self._find(key)) is not None:
            return kept
        if self._num_inside >= self._max_inside:
            raise OverloadedError()
        self._num_inside += 1
        try:
            # Several clients may ask for the same one; who waited looks again before making it.
            return await to_thread.run_sync(partial(self._find_or_make, key, make), limiter=self._limiter)
        finally:
            self._num_inside -= 1

    def forget(self, video_id: str) -> None:
        """Drop all that was made of a video."""
        with self._lock:
            for key in [key for key in self._kept if key[0] == video_id]:
                self._size_bytes -= len(self._kept.pop(key))

    def _find(self, key: _Key) -> bytes | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self._kept.move_to_end(key)
            return kept

    def _find_or_make(self, key: _Key, make: Callable[[], bytes]) -> bytes:
        made = self._find(key)
        if made is None:
            made = make()
            self._keep(key, made)
        return made

    def _keep(self, key: _Key, made: bytes) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._size_bytes += len(made)
            while self._size_bytes > self._cache_bytes:
                self._size_bytes -= len(self._kept.popitem(last=False)[1])
