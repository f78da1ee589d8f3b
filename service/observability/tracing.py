"""Spans: FastAPI makes those of requests, this module those of a search's stages, where tracing is asked for.

The SDK reads its variables itself: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME and so on. It comes with
the extra `otel` and is imported only here, only when tracing starts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

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
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailableError() from error
    resource = Resource({SERVICE_NAME: "xclip-search"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
    return provider


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
