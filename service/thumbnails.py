"""Pictures of moments: taken in a child process, kept in memory up to a bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from indexer.errors import MediaError
from service.derived_media import DerivedMedia
from service.errors import MediaNotFoundError
from service.media_store import MediaFile

TakePicture = Callable[[Path, float, int], bytes]
"""(path, time in seconds, largest width in pixels) -> JPEG. Blocks; raises MediaError."""

MAX_INSIDE = 64
"""Thumbnails that may be waited for at once; a page asks for some ten."""


class Thumbnails:
    """JPEG pictures of videos' moments, the least recently used dropped beyond `cache_bytes`."""

    def __init__(self, cache_bytes: int, take_picture: TakePicture) -> None:
        self._made = DerivedMedia(cache_bytes, num_at_once=1, max_inside=MAX_INSIDE)
        self._take_picture = take_picture

    async def get(self, video_id: str, media: MediaFile, time_seconds: float, width: int) -> bytes:
        """The JPEG of a moment, at most `width` pixels wide.

        Raises MediaNotFoundError where no picture can be had from the file, OverloadedError.
        """
        take = partial(self._take_picture, media.path, time_seconds, width)
        try:
            return await self._made.get(video_id, media, (round(time_seconds, 3), width), take)
        except MediaError:
            raise MediaNotFoundError("No picture can be read from the video's file at this moment.") from None

    def forget(self, video_id: str) -> None:
        """Drop all pictures of a video."""
        self._made.forget(video_id)
