"""Files of videos that were indexed from addresses: streamed, redirected to, or copied for pictures.

Only addresses that the index itself has read are opened (`indexer.ingest.video_files.fetched_from`), never
one that a client says.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Final, Self

from anyio import CapacityLimiter, to_thread

from indexer.errors import FetchError
from indexer.ingest.local_copies import LocalCopies
from indexer.ingest.remote_files import RemoteFile, describe, open_file_system, scheme_of
from indexer.ingest.video_files import fetched_from
from indexer.store.records import VideoRecord
from indexer.store.store import Store
from service.errors import MediaNotFoundError
from service.ingest.media_store import CONTENT_TYPES, UNKNOWN_CONTENT_TYPE, MediaFile
from service.settings import RemoteMediaMode

BLOCK_BYTES: Final = 4 << 20
"""Asked for at a time: a request of its own for most file systems."""

SIGNED_SECONDS: Final = 6 * 3600
"""How long a signed address is good: as long as the longest video that is taken by default plays."""

MAX_CONCURRENT: Final = 16

_ENDINGS: Final = {"m4v": "mp4", "mpeg": "mpg", "mts": "ts", "m2ts": "ts", "qt": "mov", "ogg": "ogv"}

logger = logging.getLogger("xclip_search.service")


@dataclass(frozen=True)
class RemoteMediaFile:
    """A file at an address that may be served: its size in bytes, and what it is."""

    file: RemoteFile
    size_bytes: int
    content_type: str
    etag: str


class RemoteMedia:
    """What the server does with files at addresses. A context manager that removes its copies.

    mode: proxy, redirect or off. cache_bytes: of the disk (TMPDIR), for copies that pictures and clips are
    made from; the least recently used go first, and a larger file has no pictures.
    """

    def __init__(self, mode: RemoteMediaMode, cache_bytes: int) -> None:
        self.mode = mode
        self._cache_bytes = cache_bytes
        self._copies = LocalCopies(1)
        self._limiter = CapacityLimiter(MAX_CONCURRENT)
        self._lock = threading.Lock()
        self._fetching: dict[RemoteFile, threading.Lock] = {}
        self._kept: OrderedDict[RemoteFile, tuple[Path, int]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._copies.close()

    def find(self, catalog: Store[Any], record: VideoRecord) -> RemoteMediaFile | None:
        """The file of a video that was fetched from an address; None where there is none, or where such
        files are not served. Asks the store alone."""
        file = None if self.mode == "off" else fetched_from(catalog.files, record)
        if file is None:
            return None
        ending = PurePosixPath(file.name).suffix.lower().removeprefix(".")
        content_type = CONTENT_TYPES.get(_ENDINGS.get(ending, ending), UNKNOWN_CONTENT_TYPE)
        return RemoteMediaFile(file, record.size_bytes, content_type, f'"{record.content_sha256[:32]}"')

    async def address_of(self, media: RemoteMediaFile) -> str | None:
        """Where a client may fetch the file itself; None where it is streamed from here instead."""
        if self.mode != "redirect":
            return None
        return await to_thread.run_sync(_signed, media.file, limiter=self._limiter)

    async def open(self, media: RemoteMediaFile, wanted: range) -> AsyncIterator[bytes]:
        """The bytes at these positions, in blocks. The first has come when this returns.

        Raises MediaNotFoundError where the file is gone, or is not the one that was indexed.
        """
        try:
            opened = await to_thread.run_sync(_open_at, media.file, wanted.start, limiter=self._limiter)
            first = b""
            if opened is None:  # Its server gives whole files alone.
                copy = await self.copy(media)
                opened = await to_thread.run_sync(_open_copy, copy.path, wanted.start)
            if wanted:
                first = await self._read(opened, min(BLOCK_BYTES, len(wanted)))
        except Exception as error:
            if isinstance(error, MediaNotFoundError):
                raise
            logger.warning("%s cannot be served: %s", media.file, error)
            raise MediaNotFoundError("The video's file cannot be read from its address now.") from None
        return self._blocks(opened, first, len(wanted))

    async def copy(self, media: RemoteMediaFile) -> MediaFile:
        """A copy of the file on this machine, fetched where there is none yet. Raises MediaNotFoundError."""
        try:
            path = await to_thread.run_sync(self._fetch, media, limiter=self._limiter)
            return MediaFile(path, media.content_type, path.stat())
        except (FetchError, OSError) as error:
            logger.warning("%s cannot be fetched: %s", media.file, error)
            raise MediaNotFoundError("The video's file cannot be read from its address now.") from None

    async def _blocks(self, opened: Any, first: bytes, num_bytes: int) -> AsyncIterator[bytes]:
        try:
            block, left = first, num_bytes
            while left:
                if not block:
                    raise OSError(
                        "the file ended before its end"
                    )  # The answer is cut off: its client sees it.
                yield block
                left -= len(block)
                if left:
                    block = await self._read(opened, min(BLOCK_BYTES, left))
        finally:
            opened.close()

    async def _read(self, opened: Any, num_bytes: int) -> bytes:
        return await to_thread.run_sync(opened.read, num_bytes, limiter=self._limiter)

    def _fetch(self, media: RemoteMediaFile) -> Path:
        with self._lock:
            fetching = self._fetching.setdefault(media.file, threading.Lock())
        with fetching:  # Several pictures of one video wait for one copy.
            with self._lock:
                kept = self._kept.get(media.file)
                if kept is not None and kept[0].exists():
                    self._kept.move_to_end(media.file)
                    return kept[0]
            if media.size_bytes > self._cache_bytes:
                raise FetchError("it is larger than XCLIP_REMOTE_MEDIA_CACHE_BYTES")
            self._make_room(media.size_bytes)
            path = self._copies.fetch(media.file)
            os.utime(path, ns=(0, abs(media.file.version)))  # Pictures are kept by size and time.
            with self._lock:
                self._kept[media.file] = (path, media.size_bytes)
            return path

    def _make_room(self, num_bytes: int) -> None:
        with self._lock:
            while self._kept and self._size_bytes() + num_bytes > self._cache_bytes:
                file, (path, _) = self._kept.popitem(last=False)
                self._fetching.pop(file, None)
                self._copies.remove(path)

    def _size_bytes(self) -> int:
        return sum(num_bytes for _, num_bytes in self._kept.values())


def _signed(file: RemoteFile) -> str | None:
    if scheme_of(file.uri) in ("http", "https"):
        return file.uri
    try:
        file_system, path = open_file_system(file.uri)
        return str(file_system.sign(path, expiration=SIGNED_SECONDS))
    except NotImplementedError:
        return None
    except Exception as error:
        logger.warning("the address of %s cannot be signed: %s", file, error)
        return None


def _open_at(file: RemoteFile, position: int) -> Any:
    """The file from a position on; None where its file system has no positions. Raises FetchError."""
    if describe(file.uri).version != file.version:
        raise FetchError("it is not the file that was indexed any more")
    file_system, path = open_file_system(file.uri)
    opened = file_system.open(path, "rb", block_size=BLOCK_BYTES, cache_type="none")
    try:
        opened.seek(position)
        opened.read(1)
        opened.seek(position)
    except ValueError:
        opened.close()
        return None
    return opened


def _open_copy(path: Path, position: int) -> Any:
    opened = path.open("rb")
    opened.seek(position)
    return opened
