"""Thumbnails and previews, made from videos' files on demand and kept in memory up to a bound.

Both are made in child processes, few at a time, as are the frames of files that are searched with. A preview
is for browsers that cannot play the file itself (`service.state.Playability`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread

from indexer.errors import MediaError
from service.errors import MediaNotFoundError, MediaRejectedError, OverloadedError
from service.ingest.media_store import MediaFile

if TYPE_CHECKING:
    from indexer.search.query_media import QueryMedia
    from indexer.search.searcher import Searcher

_Key = tuple[str, int, int, tuple[float, ...]]


class DerivedMedia:
    """Bytes by video and parameters, the least recently used dropped beyond `cache_bytes`.

    num_concurrent: made concurrently. max_inside: made or waited for; beyond that, OverloadedError.
    """

    def __init__(self, cache_bytes: int, *, num_concurrent: int, max_inside: int) -> None:
        self._cache_bytes = cache_bytes
        self._limiter = CapacityLimiter(num_concurrent)
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
            # Several clients may ask for the same one; one that waited checks again before making it.
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


TakePicture = Callable[[Path, float, int], bytes]
"""(path, time in seconds, largest width in pixels) -> JPEG. Blocks; raises MediaError."""

MakeClip = Callable[[Path, float], bytes]
"""(path, time in seconds) -> a short silent MP4, see `indexer.media.preview`. Blocks; raises MediaError."""

ReadMedia = Callable[[Path, "Searcher"], "QueryMedia"]
"""(path, of what index) -> what a file shows that is searched with. Blocks; raises MediaError."""


@dataclass(frozen=True)
class Decoders:
    """What opens video files for the server, each in child processes of its own."""

    take_picture: TakePicture
    make_clip: MakeClip
    read_media: ReadMedia


MAX_THUMBNAILS_INSIDE = 64
"""Thumbnails that may be waited for concurrently; a page asks for some ten."""


class Thumbnails:
    """JPEG pictures of videos' moments, the least recently used dropped beyond `cache_bytes`."""

    def __init__(self, cache_bytes: int, take_picture: TakePicture) -> None:
        self._made = DerivedMedia(cache_bytes, num_concurrent=1, max_inside=MAX_THUMBNAILS_INSIDE)
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


PREVIEW_CONTENT_TYPE = "video/mp4"
MAX_PREVIEWS_INSIDE = MAX_MEDIA_INSIDE = 8
"""Previews, and files that are searched with, that may be waited for: each takes a second or so."""


class Previews:
    """MP4 clips from videos' moments on, the least recently used dropped beyond `cache_bytes`."""

    def __init__(self, cache_bytes: int, make_clip: MakeClip) -> None:
        self._made = DerivedMedia(cache_bytes, num_concurrent=1, max_inside=MAX_PREVIEWS_INSIDE)
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


class MediaReader:
    """Pictures and clips that are searched with, read one at a time: thumbnails need decoders too."""

    def __init__(self, read: ReadMedia) -> None:
        self._read = read
        self._limiter = CapacityLimiter(1)
        self._num_inside = 0

    async def read(self, path: Path, searcher: Searcher) -> QueryMedia:
        """What a file shows. Raises MediaRejectedError, OverloadedError."""
        if self._num_inside >= MAX_MEDIA_INSIDE:
            raise OverloadedError()
        self._num_inside += 1
        try:
            return await to_thread.run_sync(self._read, path, searcher, limiter=self._limiter)
        except MediaError as error:
            raise MediaRejectedError(f"{error.reason[:1].upper()}{error.reason[1:]}.") from None
        finally:
            self._num_inside -= 1
