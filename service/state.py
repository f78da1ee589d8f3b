"""What the routes work with, once model and index are loaded, and the dependency that gives it to them.

`Playability` says which videos of the loaded index browsers play themselves, by container and codec. `Drain`
says whether the server is ending: then it is not ready, waits for no job, and ends its worker.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Request

from indexer import errors as indexer_errors
from indexer.store.records import VideoRecord
from indexer.store.store import Jobs, Store
from service.admission import SearchLimiter
from service.derived_media import MediaReader, Previews, Thumbnails
from service.errors import IndexUnavailableError, NotReadyError, may_raise
from service.ingest.media_store import MediaStore
from service.remote_media import RemoteMedia
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.search.searcher import Searcher


PLAYED_CODECS = {
    "video/mp4": frozenset({"h264", "vp9", "av1"}),
    "video/webm": frozenset({"vp8", "vp9", "av1"}),
}
"""Content type -> FFmpeg's names of the codecs that today's Chrome, Edge, Firefox and Safari play in it.
Depth and layout of the colours are not known here, so a player still has to be ready for a file that it
cannot play."""

MAX_REMEMBERED = 100_000


class Playability:
    """Answers for one catalog and its files, remembered until the catalog changes. Methods block, briefly."""

    def __init__(self, catalog: Store[Any], media_store: MediaStore, remote_media: RemoteMedia) -> None:
        self._catalog = catalog
        self._media_store = media_store
        self._remote_media = remote_media
        self._lock = threading.Lock()
        self._sequence = -1
        self._remembered: dict[str, bool] = {}

    def of_record(self, record: VideoRecord) -> bool:
        """Whether browsers play this video's file; false too where the file is not at hand."""
        media = self._media_store.locate(record) or self._remote_media.find(self._catalog, record)
        return media is not None and record.codec in PLAYED_CODECS.get(media.content_type, ())

    def of_ids(self, video_ids: Collection[str]) -> dict[str, bool]:
        """The same for each id; false for those that the index does not hold."""
        sequence = self._catalog.sequence
        with self._lock:
            if self._sequence != sequence or len(self._remembered) > MAX_REMEMBERED:
                self._remembered, self._sequence = {}, sequence
            remembered = self._remembered
        unknown = [video_id for video_id in video_ids if video_id not in remembered]
        try:
            records = self._catalog.get_videos(unknown) if unknown else {}
        except indexer_errors.IndexUnavailableError:  # Nothing is known of them, and nothing remembered.
            return {video_id: remembered.get(video_id, False) for video_id in video_ids}
        for video_id in unknown:
            remembered[video_id] = video_id in records and self.of_record(records[video_id])
        return {video_id: remembered[video_id] for video_id in video_ids}


@dataclass(frozen=True)
class ReadyService:
    """Everything that a route needs. Made by the application when loading has ended.

    ingest_limiter: of the threads that read and write whole files, so that others are left for all else.
    """

    settings: Settings
    searcher: Searcher
    catalog: Store[Any]
    job_queue: Jobs[Any]
    media_store: MediaStore
    remote_media: RemoteMedia
    search_limiter: SearchLimiter
    ingest_limiter: CapacityLimiter
    thumbnails: Thumbnails
    previews: Previews
    media_reader: MediaReader
    playability: Playability


@may_raise(NotReadyError, IndexUnavailableError)
async def get_service(request: Request) -> ReadyService:
    """The loaded service. Raises NotReadyError until it is."""
    service = request.app.state.service
    if service is None:
        raise NotReadyError()
    assert isinstance(service, ReadyService)
    return service


Service = Annotated[ReadyService, Depends(get_service)]
"""Annotation of a route's parameter that takes the loaded service."""


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
