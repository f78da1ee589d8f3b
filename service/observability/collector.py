"""Figures for Prometheus that are read at each scrape: how index, queues and keys stand.

Those of requests and searches are counted in `service.http.observation`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from indexer.errors import IndexUnavailableError
from service.auth.access import AccessControl
from service.state import ReadyService

STATS_GAUGES = {
    "coarse_num_pending": (
        "xclip_coarse_pending_segments",
        "Segments added or deleted since the coarse index was last compacted.",
    ),
    "catalog_size_bytes": ("xclip_catalog_bytes", "Size of the catalog with its log."),
    "feature_memory_bytes": ("xclip_feature_memory_bytes", "Memory of the GPU used by features."),
}
"""Key of `Searcher.stats` -> name and meaning. One that a searcher does not report is left out."""


class StateCollector(Collector):
    """Figures that are read at each scrape, since other processes change them too."""

    def __init__(self, get_service: Callable[[], ReadyService | None], access: AccessControl) -> None:
        self._get_service = get_service
        self._access = access

    def describe(self) -> list[Metric]:
        """Nothing: a registry would else collect once when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The figures as they are now; few until model and index are loaded."""
        service = self._get_service()
        yield _gauge("xclip_ready", "Whether model and index are loaded.", service is not None)
        yield _gauge("xclip_keys", "Valid API keys.", self._access.ring.num_keys)
        yield CounterMetricFamily(
            "xclip_wrong_keys", "Requests with a wrong API key.", value=self._access.num_wrong_keys
        )
        if service is not None:
            yield from _queue_figures(service)
            figures: list[Metric] = []
            with contextlib.suppress(IndexUnavailableError):
                figures = [*_job_figures(service), *_index_figures(service.searcher.stats(), service)]
            yield _gauge("xclip_index_available", "Whether the index's database answers.", bool(figures))
            yield from figures


def _queue_figures(service: ReadyService) -> Iterator[Metric]:
    limiter = service.search_limiter
    yield _gauge("xclip_searches_running", "Searches that run.", limiter.num_running)
    yield _gauge("xclip_searches_waiting", "Searches that wait for a thread.", limiter.num_waiting)
    shed = CounterMetricFamily(
        "xclip_searches_shed", "Searches refused because too many waited, by problem.", labels=["problem"]
    )
    for kind in ("overloaded", "too-many-requests"):
        shed.add_metric([kind], limiter.num_shed[kind])
    yield shed


def _job_figures(service: ReadyService) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("xclip_jobs", "Ingest jobs by state, of the last 30 days.", labels=["state"])
    for state, count in service.job_queue.counts().items():
        jobs.add_metric([state], count)
    yield jobs
    reasons = GaugeMetricFamily(
        "xclip_failed_jobs", "Failed ingest jobs by kind of reason, of the last 30 days.", labels=["reason"]
    )
    for failure, count in service.job_queue.failure_counts().items():
        reasons.add_metric([failure], count)
    yield reasons


def _index_figures(stats: Mapping[str, Any], service: ReadyService) -> Iterator[Metric]:
    num_videos, num_segments = service.catalog.totals()
    sequence = service.catalog.sequence
    yield _gauge("xclip_index_videos", "Videos in the index.", num_videos)
    yield _gauge("xclip_index_segments", "Segments in the index.", num_segments)
    yield _gauge("xclip_index_sequence", "Number of the last change of the index.", sequence)
    if "coarse_sequence" in stats:
        lag = max(0, sequence - int(stats["coarse_sequence"]))
        yield _gauge(
            "xclip_coarse_lag", "Changes not yet visible to searches; the next search takes them in.", lag
        )
    if (saved_at := _saved_at(service.catalog.directory)) is not None:
        age_seconds = max(0.0, time.time() - saved_at)
        yield _gauge("xclip_snapshot_age_seconds", "Age of the saved coarse index.", age_seconds)
    for key, (name, meaning) in STATS_GAUGES.items():
        if stats.get(key) is not None:
            yield _gauge(name, meaning, stats[key])
    info = InfoMetricFamily("xclip_index", "Fingerprint of model and sampling, kind of the coarse index.")
    info.add_metric(
        [],
        {"fingerprint": service.catalog.fingerprint, "coarse_kind": str(stats.get("coarse_kind", ""))},
    )
    yield info


def _saved_at(directory: Path) -> float | None:
    """When the coarse index was last saved, in seconds since 1970; None where it never was."""
    from indexer.coarse.snapshots import MANIFEST_FILE

    try:
        return (directory / MANIFEST_FILE).stat().st_mtime
    except OSError:
        return None


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))
