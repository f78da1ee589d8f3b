"""GET /healthz, /readyz, /stats and /metrics."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.auth.access import OPEN, READ
from service.errors import IndexUnavailableError, NotReadyError
from service.http.observation import Metrics
from service.ingest.worker_process import WorkerState
from service.schemas.operation import HealthAnswer, StatsAnswer
from service.state import ReadyService, Service

router = APIRouter(tags=["operation"])


@router.head("/healthz", dependencies=[OPEN], include_in_schema=False)
@router.get("/healthz", dependencies=[OPEN])
async def healthz() -> HealthAnswer:
    """Whether the process lives."""
    return HealthAnswer(status="ok")


@router.head("/readyz", dependencies=[OPEN], include_in_schema=False)
@router.get("/readyz", dependencies=[OPEN])
async def readyz(request: Request, service: Service) -> HealthAnswer:
    """Whether model and index are loaded, the index's database answers, searches are answered, uploads are
    read where that is the server's task, and the server is not about to end.
    """
    if request.app.state.drain.begun:
        raise NotReadyError("The server is shutting down.")
    worker: WorkerState | None = request.app.state.worker
    if worker is not None and worker.problem is not None:
        raise NotReadyError(worker.problem)
    if not service.catalog.is_available:
        if service.catalog.stale_seconds is None:
            raise IndexUnavailableError()
        return HealthAnswer(status="stale")
    return HealthAnswer(status="outdated" if request.app.state.is_outdated else "ok")


@router.get("/stats", dependencies=[READ])
async def stats(service: Service) -> StatsAnswer:
    """What there is and what is going on."""
    return await to_thread.run_sync(_read_stats, service)


def _read_stats(service: ReadyService) -> StatsAnswer:
    catalog = service.catalog
    num_videos, num_segments = catalog.totals()
    figures = service.searcher.stats()
    # The spec of a model may be a path, which is not for clients.
    known = {"model_spec", *StatsAnswer.model_fields}
    return StatsAnswer(
        num_videos=num_videos,
        num_segments=num_segments,
        sequence=catalog.sequence,
        fingerprint=catalog.fingerprint,
        embedding_dim=catalog.embedding_dim,
        num_frames=catalog.num_frames,
        jobs=service.job_queue.counts(),
        num_searches_inside=service.search_limiter.num_inside,
        search={name: value for name, value in figures.items() if name not in known},
    )


@router.get(
    "/metrics",
    dependencies=[READ],
    response_class=PlainTextResponse,
    responses={200: {"description": "Prometheus' text format"}},
)
async def get_metrics(request: Request) -> Response:
    """Figures for Prometheus; also while model and index are still being loaded."""
    metrics: Metrics = request.app.state.metrics
    return Response(await to_thread.run_sync(metrics.render), media_type=CONTENT_TYPE_LATEST)
