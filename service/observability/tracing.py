"""Spans: FastAPI makes those of requests, this module those of a search's stages, where tracing is asked for.

The SDK reads its variables itself: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and so on. It comes with
the extra `otel` and is imported only here, only when tracing starts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

FLUSH_SECONDS = 1.0
"""At the end of the process, longest wait for the last spans to be sent; there is none where the collector
did not take the batch before."""

STAGES_IN_ORDER = ("wait", "encode", "coarse", "rerank")


class TracingUnavailableError(Exception):
    """OpenTelemetry is not installed."""

    def __init__(self) -> None:
        super().__init__("tracing needs OpenTelemetry: install xclip-search with the extra otel")


def make_tracer_provider(processor: SpanProcessor | None = None) -> TracerProvider:
    """What makes spans and sends them.

    Args:
        processor: Takes the spans, instead of one that sends them in batches by OTLP over HTTP.

    Raises:
        TracingUnavailableError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError as error:
        raise TracingUnavailableError() from error
    resource = Resource({SERVICE_NAME: "xclip-search"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor or _make_processor(OTLPSpanExporter()))
    return provider


def _make_processor(exporter: SpanExporter) -> SpanProcessor:
    """Sends spans in batches, and does not hold up the end of the process.

    The SDK's own waits up to half a minute for a collector that does not answer.
    """
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Noting(SpanExporter):
        is_answered = True

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.is_answered = False  # Until it is: a collector that is gone is tried for ten seconds.
            result = exporter.export(spans)
            self.is_answered = result is SpanExportResult.SUCCESS
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    class Processor(BatchSpanProcessor):
        def shutdown(self) -> None:
            limit_seconds = FLUSH_SECONDS if noting.is_answered else 0.0
            ending = threading.Thread(target=super().shutdown, daemon=True)
            ending.start()
            ending.join(limit_seconds)

    noting = Noting()
    return Processor(noting)


def add_stage_spans(provider: TracerProvider, seconds: Mapping[str, float]) -> None:
    """Spans for the stages of a search that has just ended, one after the other, below the request's.

    A search may go through its stages several times; the spans then say how long each took, not when.
    """
    tracer = provider.get_tracer("xclip_search")
    stages = [(name, seconds[name]) for name in STAGES_IN_ORDER if name in seconds]
    start = time.time_ns() - int(1e9 * sum(length for _, length in stages))
    for name, length in stages:
        end = start + int(1e9 * length)
        tracer.start_span(f"search {name}", start_time=start).end(end)
        start = end
