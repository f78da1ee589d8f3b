"""Short clips for players that cannot play a video's own file: made in a child process, kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from indexer.errors import MediaError
from service.derived_media import DerivedMedia
from service.errors import MediaNotFoundError
from service.media_store import MediaFile

MakeClip = Callable[[Path, float], bytes]
"""(path, time in seconds) -> a short silent MP4, see `indexer.preview_clip`. Blocks; raises MediaError."""

PREVIEW_CONTENT_TYPE = "video/mp4"
MAX_INSIDE = 8
"""Previews that may be waited for at once: each takes a second or so, and nobody waits ten."""


class Previews:
    """MP4 clips from videos' moments on, the least recently used dropped beyond `cache_bytes`."""

    def __init__(self, cache_bytes: int, make_clip: MakeClip) -> None:
        self._made = DerivedMedia(cache_bytes, num_at_once=1, max_inside=MAX_INSIDE)
        self._make_clip = make_clip

    async def get(self, video_id: str, media: MediaFile, time_seconds: float) -> bytes:
        """The clip from a moment on.

        Raises MediaNotFoundError where none can be made from the file, OverloadedError.
        """
        make = partial(self._make_clip, media.path, time_seconds)
        try:
            return await self._made.get(video_id, media, (round(time_seconds, 3),), make)
        except MediaError:
            raise MediaNotFoundError("No preview can be made from the video's file at this moment.") from None

    def forget(self, video_id: str) -> None:
        """Drop all previews of a video."""
        self._made.forget(video_id)
