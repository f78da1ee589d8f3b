"""GET /metrics."""

from __future__ import annotations

from anyio import to_thread
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response

from service.auth.access import READ
from service.observability.metrics import Metrics

router = APIRouter(tags=["operation"], dependencies=[READ])


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"description": "Prometheus' text format"}},
)
async def get_metrics(request: Request) -> Response:
    """Figures for Prometheus; also while model and index are still being loaded."""
    metrics: Metrics = request.app.state.metrics
    return Response(await to_thread.run_sync(metrics.render), media_type=CONTENT_TYPE_LATEST)
