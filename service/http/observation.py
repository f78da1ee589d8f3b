"""What is recorded of a request: its id, a line in the log, figures; and of a search its stages.

Each application has its own registry of figures. Labels take few values: templates of routes, never paths.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import (
    GC_COLLECTOR,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.auth.access import CLIENT, AccessControl, network_of
from service.errors import PROBLEM_MEDIA_TYPE, BodyTooLargeError, InternalError, is_full_memory
from service.http.middleware import PROBES
from service.observability.collector import StateCollector
from service.observability.logs import REQUEST_ID, choose_request_id
from service.observability.tracing import add_stage_spans
from service.state import ReadyService

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger("xclip_search.service")
access_logger = logging.getLogger("xclip_search.access")

QUIET_ROUTES = PROBES | {"/metrics"}
"""Asked every few seconds: in the log at the level debug only."""

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

NO_ROUTE = "none"
"""Stands for the route of what no endpoint answers."""


class Metrics:
    """The figures of one application.

    get_service: what is loaded, or None.
    """

    def __init__(self, get_service: Callable[[], ReadyService | None], access: AccessControl) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "xclip_http_requests", "Answered requests.", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "xclip_http_request_seconds",
            "Time from a request's headers to the end of its answer.",
            ["method", "route"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.requests_inside = Gauge(
            "xclip_http_requests_inside", "Requests that are being answered.", registry=registry
        )
        self._stage_seconds = Histogram(
            "xclip_search_stage_seconds",
            "Time of a search by stage: wait (for a thread), encode (waiting for a batch of texts included),"
            " coarse, rerank; total without wait.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        build = Info("xclip_build", "Version of this program and of Python.", registry=registry)
        build.info({"version": version("xclip-search"), "python": platform.python_version()})
        registry.register(StateCollector(get_service, access))
        registry.register(GC_COLLECTOR)
        ProcessCollector(registry=registry)

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(method, route).observe(seconds)

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Count one search by the seconds of its stages."""
        for stage, value in seconds.items():
            self._stage_seconds.labels(stage).observe(value)

    def render(self) -> bytes:
        """All figures in Prometheus' text format. Reads the catalog: blocks for a moment."""
        return generate_latest(self.registry)


def stage_seconds(answer: object) -> dict[str, float]:
    """The stages of whatever a search answered: the `..._seconds` of its `timings`, without that ending."""
    timings = getattr(answer, "timings", None)
    if not is_dataclass(timings):
        return {}
    ending = "_seconds"
    return {
        field.name.removesuffix(ending): float(getattr(timings, field.name))
        for field in fields(timings)
        if field.name.endswith(ending)
    }


class ObservationMiddleware:
    """Watches each request from its headers to the end of its answer; an unforeseen error becomes a 500.

    on_full_memory: called with an error of which `is_full_memory` is true.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, on_full_memory: Callable[[Exception], None]
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._on_full_memory = on_full_memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})
        address = scope["client"][0] if scope.get("client") else "unknown"
        REQUEST_ID.set(request_id)
        CLIENT.set(f"address {network_of(address)}")
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        self._metrics.requests_inside.inc()
        try:
            await self._answer(scope, receive, send_with_id)
        finally:
            self._metrics.requests_inside.dec()
            seconds = time.perf_counter() - started
            method, route = scope["method"], route_of(scope)
            self._metrics.observe_request(method, route, status, seconds)
            access_logger.log(
                logging.DEBUG if route in QUIET_ROUTES else logging.INFO,
                "%s %s %d",
                method,
                route,
                status,
                extra={
                    "method": method,
                    "route": route,
                    "status": status,
                    "seconds": round(seconds, 6),
                    "client": address,
                    "key": scope["state"].get("key_name"),
                },
            )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = is_replaced = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun, is_replaced
            begun = True
            if message["type"] == "http.response.start" and message["status"] == 413:
                # Starlette puts a plain text in place of any answer to a body that was announced too large.
                is_replaced = Headers(raw=message["headers"])["content-type"] != PROBLEM_MEDIA_TYPE
                if is_replaced:
                    await BodyTooLargeError().to_response()(scope, receive, send)
            if not is_replaced:
                await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            logger.error("%s %s failed", scope["method"], route_of(scope), exc_info=error)
            if is_full_memory(error):
                self._on_full_memory(error)
            if begun:
                raise  # Too late for another answer: the server cuts the connection.
            await InternalError().to_response()(scope, receive, send)


class SearchObserver:
    """Notes the stages of each search. Call it with the answer and the seconds that the search waited."""

    def __init__(self, metrics: Metrics, tracing: TracerProvider | None) -> None:
        self._metrics = metrics
        self._tracing = tracing

    def __call__(self, answer: object, waited_seconds: float) -> None:
        """Note one search."""
        stages = {"wait": waited_seconds, **stage_seconds(answer)}
        self._metrics.observe_stages(stages)
        if self._tracing is not None:
            add_stage_spans(self._tracing, stages)


def route_of(scope: Scope) -> str:
    """The template of the endpoint that a request went to, or would have gone to."""
    return getattr(scope.get("route"), "path", None) or NO_ROUTE
