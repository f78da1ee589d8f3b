"""Pictures of moments: taken in a child process, kept in memory up to a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from anyio import CapacityLimiter, to_thread

from indexer.errors import MediaError
from service.errors import MediaNotFoundError, OverloadedError
from service.media_store import MediaFile

TakePicture = Callable[[Path, float, int], bytes]
"""(path, time in seconds, largest width in pixels) -> JPEG. Blocks; raises MediaError."""

MAX_INSIDE = 64
"""Thumbnails that may be waited for at once; a page asks for some ten."""

_Key = tuple[str, int, int, float, int]


class Thumbnails:
    """JPEG pictures of videos' moments, the least recently used dropped beyond `cache_bytes`."""

    def __init__(self, cache_bytes: int, take_picture: TakePicture, num_at_once: int = 1) -> None:
        self._cache_bytes = cache_bytes
        self._take_picture = take_picture
        self._limiter = CapacityLimiter(num_at_once)
        self._num_inside = 0
        self._lock = threading.Lock()
        self._pictures: OrderedDict[_Key, bytes] = OrderedDict()
        self._size_bytes = 0

    async def get(self, video_id: str, media: MediaFile, time_seconds: float, width: int) -> bytes:
        """The JPEG of a moment, at most `width` pixels wide.

        Raises MediaNotFoundError where no picture can be had from the file, OverloadedError.
        """
        status = media.stat_result
        key = (video_id, status.st_size, status.st_mtime_ns, round(time_seconds, 3), width)
        if (picture := self._find(key)) is not None:
            return picture
        if self._num_inside >= MAX_INSIDE:
            raise OverloadedError()
        self._num_inside += 1
        try:
            # Several clients may ask for the same one; who waited looks again before taking it.
            take = partial(self._find_or_take, key, media.path, time_seconds, width)
            return await to_thread.run_sync(take, limiter=self._limiter)
        except MediaError:
            raise MediaNotFoundError("No picture can be read from the video's file at this moment.") from None
        finally:
            self._num_inside -= 1

    def forget(self, video_id: str) -> None:
        """Drop all pictures of a video."""
        with self._lock:
            for key in [key for key in self._pictures if key[0] == video_id]:
                self._size_bytes -= len(self._pictures.pop(key))

    def _find(self, key: _Key) -> bytes | None:
        with self._lock:
            picture = self._pictures.get(key)
            if picture is not None:
                self._pictures.move_to_end(key)
            return picture

    def _find_or_take(self, key: _Key, path: Path, time_seconds: float, width: int) -> bytes:
        picture = self._find(key)
        if picture is None:
            picture = self._take_picture(path, time_seconds, width)
            self._keep(key, picture)
        return picture

    def _keep(self, key: _Key, picture: bytes) -> None:
        with self._lock:
            if key not in self._pictures:
                self._pictures[key] = picture
                self._size_bytes += len(picture)
            while self._size_bytes > self._cache_bytes:
                self._size_bytes -= len(self._pictures.popitem(last=False)[1])
