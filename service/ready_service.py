"""What the routes work with, once model and index are loaded; and the dependency that hands it to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request

from indexer.catalog import Catalog
from indexer.job_queue import JobQueue
from service.errors import NotReadyError
from service.media_store import MediaStore
from service.playability import Playability
from service.previews import Previews
from service.search_gate import SearchGate
from service.settings import ServiceSettings
from service.thumbnails import Thumbnails

if TYPE_CHECKING:
    from indexer.searcher import Searcher


@dataclass(frozen=True)
class ReadyService:
    """Everything that a route needs. Made by the application when loading has ended.

    ingest_limiter: of the threads that read and write whole files, so that others are left for all else.
    """

    settings: ServiceSettings
    searcher: Searcher
    catalog: Catalog
    job_queue: JobQueue
    media_store: MediaStore
    search_gate: SearchGate
    ingest_limiter: CapacityLimiter
    thumbnails: Thumbnails
    previews: Previews
    playability: Playability


async def get_service(request: Request) -> ReadyService:
    """The loaded service. Raises NotReadyError until it is."""
    service = request.app.state.service
    if service is None:
        raise NotReadyError()
    assert isinstance(service, ReadyService)
    return service


Service = Annotated[ReadyService, Depends(get_service)]
"""Annotation of a route's parameter that wants the loaded service."""
