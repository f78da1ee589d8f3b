"""What the routes work with, once model and index are loaded, and the dependency that gives it to them.

`Drain` says whether the server is ending: then it is not ready, waits for no job, and ends its worker.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from service.admission import SearchLimiter
from service.derived_media import Playability, Previews, Thumbnails
from service.errors import NotReadyError, may_raise
from service.ingest.media_store import MediaStore
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.search.searcher import Searcher


@dataclass(frozen=True)
class ReadyService:
    """Everything that a route needs. Made by the application when loading has ended.

    ingest_limiter: of the threads that read and write whole files, so that others are left for all else.
    """

    settings: Settings
    searcher: Searcher
    catalog: Catalog
    job_queue: JobQueue
    media_store: MediaStore
    search_limiter: SearchLimiter
    ingest_limiter: CapacityLimiter
    thumbnails: Thumbnails
    previews: Previews
    playability: Playability


@may_raise(NotReadyError)
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
