"""Spans of requests and of the stages of searches, sent by OpenTelemetry where that is asked for.

The SDK reads its variables itself: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and so on. It comes
with the extra `otel` and is imported only here, only when tracing starts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

STAGES_IN_ORDER = ("wait", "encode", "coarse", "rerank")


class TracingUnavailableError(Exception):
    """OpenTelemetry is not installed."""

    def __init__(self) -> None:
        super().__init__("tracing needs OpenTelemetry: install xclip-search with the extra otel")


class Tracing:
    """Makes spans. processor: takes them, instead of one that sends them in batches by OTLP over HTTP.

    Raises TracingUnavailableError.
    """

    def __init__(self, processor: SpanProcessor | None = None) -> None:
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise TracingUnavailableError() from error
        if processor is None:
            try:
                from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            except ImportError as error:
                raise TracingUnavailableError() from error
            processor = BatchSpanProcessor(OTLPSpanExporter())
        resource = Resource({SERVICE_NAME: "xclip-search"}).merge(_resource_from_environment())
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("xclip_search")
        self._extract = propagate.extract
        self._trace = trace

    @contextlib.contextmanager
    def request(self, scope: Scope) -> Iterator[RequestSpan]:
        """A span around the answering of a request; child of the caller's, where it names one."""
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"],
            context=self._extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.scheme": scope["scheme"]},
        ) as span:
            yield RequestSpan(span, scope["method"])

    def add_stages(self, seconds: Mapping[str, float]) -> None:
        """Spans for the stages of a search that has just ended, one after the other.

        A search may do them by turns; the spans then say how long each took, not when.
        """
        stages = [(name, seconds[name]) for name in STAGES_IN_ORDER if name in seconds]
        start = time.time_ns() - int(1e9 * sum(length for _, length in stages))
        for name, length in stages:
            end = start + int(1e9 * length)
            self._tracer.start_span(f"search {name}", start_time=start).end(end)
            start = end

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class RequestSpan:
    """The span of a request under way."""

    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    def finish(self, route: str, status: int) -> None:
        """Say which endpoint it was and what it answered."""
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{self._method} {route}")
        self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)


def _resource_from_environment() -> Any:
    from opentelemetry.sdk.resources import OTELResourceDetector

    return OTELResourceDetector().detect()
