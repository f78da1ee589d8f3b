"""The application: routes, errors, and a lifespan that loads model and index while /healthz answers.

python -m service.app > docs/openapi.json
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import math
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware.cors import CORSMiddleware

from indexer.media.sampling import Sampling
from indexer.store.transcripts import MAX_TRANSCRIPT_BYTES
from service.admission import SearchLimiter
from service.auth.access import KEY_HEADER, AccessControl, KeyRing
from service.auth.keys import keys_path
from service.derived_media import Decoders, MediaReader, Previews, Thumbnails
from service.http.middleware import (
    DeadlineMiddleware,
    ForwardingMiddleware,
    HeadersMiddleware,
    RequestChecksMiddleware,
)
from service.http.observation import Metrics, ObservationMiddleware, SearchObserver
from service.http.openapi import install_openapi, problems
from service.http.problems import install_error_handlers
from service.index_switch import watch_generations
from service.ingest.media_store import MediaStore, delete_orphans
from service.ingest.upload import FORM_OVERHEAD_BYTES
from service.ingest.worker_process import WorkerState, keep_worker_running, worker_command
from service.loading import freeze_loaded_objects, load_searcher, log_failure
from service.remote_media import RemoteMedia
from service.routes import (
    health,
    ingest,
    media,
    media_search,
    page,
    search,
    transcripts,
    videos,
)
from service.settings import Settings
from service.state import Drain, Playability, ReadyService

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from indexer.search.query_media import QueryMedia
    from indexer.search.searcher import Searcher

logger = logging.getLogger("xclip_search.service")

NUM_INGEST_THREADS = 8
"""Of the forty that the event loop has: uploads that are written, and files that are hashed, concurrently."""

PICTURE_TIMEOUT_SECONDS = 30.0
"""Longest work on one thumbnail or preview; a client does not wait longer."""

CORS_HEADERS = (
    *("Authorization", KEY_HEADER, "Content-Type", "Range", "If-Range", "If-None-Match", "If-Modified-Since"),
    *("X-Request-ID", "traceparent", "tracestate"),
)
"""What a page of another origin may send."""

CORS_EXPOSED_HEADERS = (
    *("Accept-Ranges", "Content-Range", "ETag", "Location", "Retry-After"),
    *("X-Request-ID", search.STALE_HEADER),
)
"""What it may read beyond what every page may."""

ROUTERS = (
    search.router,
    media_search.router,
    ingest.router,
    videos.router,
    transcripts.router,
    media.router,
    ingest.jobs_router,
    health.router,
    page.router,
)


def create_app(
    settings: Settings,
    *,
    searcher: Searcher | None = None,
    decoders: Decoders | None = None,
    on_failure: Callable[[BaseException], None] | None = None,
    tracing: TracerProvider | None = None,
) -> FastAPI:
    """The application. Nothing is loaded before its lifespan starts.

    Args:
        settings: Of the service; names the index.
        searcher: Used instead of loading one; the application is then ready immediately, and has no worker.
        decoders: Used instead of child processes that decode files.
        on_failure: Called with the error when model or index cannot be loaded, or memory was full: the
            process should end.
        tracing: Makes spans; shut down at the end.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with contextlib.ExitStack() as closing:
            opened = decoders or closing.enter_context(_decoders(settings))
            remote_media = closing.enter_context(
                RemoteMedia(settings.remote_media, settings.remote_media_cache_bytes)
            )
            assemble = partial(_assemble, app, settings, opened, remote_media)
            tasks: list[asyncio.Task[None]] = []
            if searcher is not None:
                app.state.service = assemble(searcher)
            else:
                tasks.append(asyncio.create_task(_load_and_run(app, settings, assemble)))
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                service, app.state.service = app.state.service, None
                if service is not None and searcher is None:
                    await to_thread.run_sync(service.searcher.close)
                gc.unfreeze()  # So that Python frees at its end what libraries would call leaked.
                if tracing is not None:
                    await to_thread.run_sync(tracing.shutdown)

    app = FastAPI(
        title="xclip-search",
        summary="Type a sentence, find the video and the moment in it.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # Its redirects name the Host, which a proxy may have changed; ours do not.
        responses=problems(),
        telemetry={**_SPANS_ALONE, "tracing": tracing is not None, "tracer_provider": tracing},
    )
    _set_state(app, settings, tracing)
    app.state.on_failure = on_failure or (lambda error: None)
    _add_middleware(app, settings)
    install_error_handlers(app, ROUTERS)
    for router in ROUTERS:
        limit_bytes = settings.body_limit_bytes
        if router is ingest.router:
            limit_bytes = settings.upload_limit_bytes + FORM_OVERHEAD_BYTES
        elif router is media_search.router:
            limit_bytes = settings.query_media_limit_bytes + FORM_OVERHEAD_BYTES
        elif router is transcripts.router:
            limit_bytes = MAX_TRANSCRIPT_BYTES
        app.include_router(router, max_body_size=limit_bytes)
    install_openapi(app, ROUTERS)
    return app


_SPANS_ALONE: TelemetryConfig = {"metrics": False, "logs": False, "operation_spans": False}
"""Of what FastAPI can record; figures and log lines are ours."""


def _set_state(app: FastAPI, settings: Settings, tracing: TracerProvider | None) -> None:
    """What the routes and the middleware find in `app.state`."""
    app.state.service = None
    app.state.worker = None
    app.state.is_outdated = False
    app.state.is_loading = threading.Event()
    app.state.settings = settings
    app.state.drain = Drain()
    app.state.access = AccessControl(KeyRing(keys_path(settings.index_directory, settings.keys_file)))
    app.state.metrics = Metrics(lambda: app.state.service, app.state.access)
    app.state.observe_search = SearchObserver(app.state.metrics, tracing)


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """The innermost first: each one added sees a request before those that were added earlier."""
    drain: Drain = app.state.drain
    access: AccessControl = app.state.access

    app.add_middleware(
        DeadlineMiddleware,
        request_timeout_seconds=settings.request_timeout_seconds,
        body_timeout_seconds=settings.body_timeout_seconds,
        min_bytes_per_second=settings.min_upload_bytes_per_second,
    )
    app.add_middleware(
        RequestChecksMiddleware,
        allowed_hosts=settings.allowed_hosts,
        keys_required=lambda: access.ring.required,
        cors_origins=settings.cors_origins,
    )
    app.add_middleware(
        ObservationMiddleware,
        metrics=app.state.metrics,
        on_full_memory=lambda error: app.state.on_failure(error),
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "PATCH", "DELETE"],
            allow_headers=CORS_HEADERS,
            expose_headers=CORS_EXPOSED_HEADERS,
        )
    app.add_middleware(
        HeadersMiddleware,
        is_ending=lambda: drain.begun,
        media_elsewhere=settings.remote_media == "redirect",
    )
    app.add_middleware(
        ForwardingMiddleware, trusted_proxies=settings.trusted_proxies, root_path=settings.root_path
    )


def _assemble(
    app: FastAPI, settings: Settings, decoders: Decoders, remote_media: RemoteMedia, searcher: Searcher
) -> ReadyService:
    store = MediaStore(settings.index_directory, settings.allowed_roots)
    if searcher.catalog.is_read_only:
        logger.warning("the index is on a read-only file system: it can be searched, not changed")
    else:
        store.prepare()
        searcher.catalog.keep_reserve()
    return ReadyService(
        settings=settings,
        searcher=searcher,
        catalog=searcher.catalog,
        job_queue=searcher.catalog.jobs,
        media_store=store,
        remote_media=remote_media,
        search_limiter=SearchLimiter(
            settings.num_search_threads, settings.max_waiting_searches, app.state.observe_search
        ),
        ingest_limiter=CapacityLimiter(NUM_INGEST_THREADS),
        thumbnails=Thumbnails(settings.thumbnail_cache_bytes, decoders.take_picture),
        previews=Previews(settings.preview_cache_bytes, decoders.make_clip),
        media_reader=MediaReader(decoders.read_media),
        playability=Playability(searcher.catalog, store, remote_media),
    )


@contextlib.contextmanager
def _decoders(settings: Settings) -> Iterator[Decoders]:
    """Decoding processes of the server's own: the worker's may be busy for minutes.

    There are two, and only one clip is made, and one file read that is searched with, at a time, so that
    pictures need not wait long.
    """
    from indexer.media.decode_pool import DecodePool
    from indexer.media.probing import MediaLimits

    def read_media(path: Path, searcher: Searcher) -> QueryMedia:
        from indexer.search.query_media import read_media

        sampling = Sampling.from_json(searcher.catalog.sampling_json)
        return read_media(pool, path, searcher.model.config.resizing, sampling)

    timeout_seconds = min(PICTURE_TIMEOUT_SECONDS, settings.decode_timeout_seconds)
    limits = MediaLimits(max_duration_seconds=math.inf)  # Its length was judged when it was added.
    with DecodePool(2, timeout_seconds, limits=limits) as pool:
        yield Decoders(
            take_picture=lambda *values: pool.submit_picture(*values).result(),
            make_clip=lambda *values: pool.submit_clip(*values).result(),
            read_media=read_media,
        )


async def _load_and_run(
    app: FastAPI,
    settings: Settings,
    assemble: Callable[[Searcher], ReadyService],
) -> None:
    """Load, then keep a worker running and follow the current generation of the index until cancelled."""

    async def load() -> ReadyService:
        def load_and_note() -> Searcher:
            try:
                return load_searcher(settings)
            finally:
                app.state.is_loading.clear()

        app.state.is_loading.set()
        # A shutdown must not wait until a model is loaded: the thread is left to itself, and so to the exit.
        return assemble(await to_thread.run_sync(load_and_note, abandon_on_cancel=True))

    try:
        service = await load()
        if not service.catalog.is_read_only:
            await to_thread.run_sync(delete_orphans, service.media_store, service.catalog, service.job_queue)
    except Exception as error:
        log_failure("cannot serve", error)
        app.state.on_failure(error)
        return
    freeze_loaded_objects()
    runs_worker = settings.start_worker and not service.catalog.is_read_only
    if runs_worker:
        app.state.worker = WorkerState()
    app.state.service = service
    logger.info("ready")
    watch = asyncio.create_task(
        watch_generations(app, load, settings.request_timeout_seconds + settings.wait_limit_seconds)
    )
    watch.add_done_callback(partial(_note_failure, app))
    try:
        if runs_worker:
            await _run_worker(app, settings)
        await watch
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


def _note_failure(app: FastAPI, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        app.state.on_failure(error)


async def _run_worker(app: FastAPI, settings: Settings) -> None:
    # The worker is asked to end as soon as the server is, not when the last request is answered.
    command, grace_seconds = worker_command(settings), settings.worker_grace_seconds + 5.0
    worker = asyncio.create_task(keep_worker_running(command, grace_seconds, app.state.worker))
    try:
        await app.state.drain.wait()
    finally:
        worker.cancel()
        await _wait_even_if_cancelled(worker)


async def _wait_even_if_cancelled(task: asyncio.Task[None]) -> None:
    """Until `task` has ended: the application ends when all is answered, long before a worker may."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


def openapi_text() -> str:
    """The OpenAPI document of this version, as docs/openapi.json holds it."""
    document = create_app(Settings(index=Path("nowhere"))).openapi()
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(openapi_text())
