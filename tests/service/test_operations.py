"""What operators see: metrics, log lines, spans, limits; and that docs/operations.md documents them."""

from __future__ import annotations

import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from indexer.store.job import FailureReason
from service.errors import ERROR_CLASSES
from service.ingest.worker_process import WorkerState
from service.observability import logs
from service.observability.collector import STATS_GAUGES
from tests.service.routes.test_docs import DOCS, rows
from tests.service.routes.test_errors import check_problem
from tests.support.catalog_builders import enqueue
from tests.support.servers.service_fakes import Service, add_video, running
from tests.support.servers.web_server import reply, serving

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for package in ("service", "xclip_search") for path in (REPOSITORY / package).rglob("*.py")
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path) as service:
        add_video(service.catalog, "known")
        yield service


def samples(service: Service) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = service.client.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(service: Service, name: str, **labels: str) -> float:
    return samples(service)[name, frozenset(labels.items())]


# Metrics


def test_requests_are_counted_by_the_template_of_their_route(service: Service) -> None:
    service.client.get("/videos/known")
    service.client.get("/videos/unknown")
    service.client.get("/nowhere")
    service.client.request("BREW", "/videos/known")
    route = "/videos/{video_id}"
    assert value(service, "xclip_http_requests_total", method="GET", route=route, status="200") == 1
    assert value(service, "xclip_http_requests_total", method="GET", route=route, status="404") == 1
    assert value(service, "xclip_http_requests_total", method="GET", route="none", status="404") == 1
    assert value(service, "xclip_http_request_seconds_count", method="GET", route=route) == 2
    assert "known" not in {label for _, labels in samples(service) for _, label in labels}
    assert {dict(labels)["method"] for name, labels in samples(service) if "http_requests_total" in name} == {
        "GET",
        "other",
    }


def test_searches_are_counted_by_stage(service: Service) -> None:
    service.client.post("/search", json={"query": "x"})
    for stage, seconds in {"encode": 0.1, "coarse": 0.2, "rerank": 0.3, "total": 0.6}.items():
        assert value(service, "xclip_search_stage_seconds_count", stage=stage) == 1
        assert value(service, "xclip_search_stage_seconds_sum", stage=stage) == pytest.approx(seconds)
    assert value(service, "xclip_search_stage_seconds_count", stage="wait") == 1


def test_index_and_jobs_are_reported_as_they_are_at_the_scrape(service: Service) -> None:
    assert value(service, "xclip_index_videos") == 1
    add_video(service.catalog, "another")
    assert value(service, "xclip_index_videos") == 2
    enqueue(service.job_queue, None, "/x")
    job = enqueue(service.job_queue, None, "/y")
    service.job_queue.cancel(job.id)
    assert value(service, "xclip_jobs", state="queued") == 1
    assert value(service, "xclip_jobs", state="failed") == 1
    assert value(service, "xclip_failed_jobs", reason="cancelled") == 1
    assert value(service, "xclip_index_info", fingerprint="f" * 64, coarse_kind="") == 1


@pytest.mark.parametrize("failure", list(FailureReason))
def test_failed_jobs_are_counted_by_the_reason_that_they_were_stored_with(
    service: Service, failure: FailureReason
) -> None:
    job = enqueue(service.job_queue, None, "/x")
    service.job_queue.lease("worker", 60.0)
    service.job_queue.fail(job.id, "any sentence", failure)
    assert service.job_queue.get(job.id).failure is failure
    assert value(service, "xclip_failed_jobs", reason=failure) == 1


def test_every_metric_is_documented_and_every_documented_one_is_there(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = dict.fromkeys((*STATS_GAUGES, "coarse_sequence"), 1)
    monkeypatch.setattr(service.searcher, "stats", lambda: stats)
    (service.catalog.directory / "coarse.json").touch()
    service.client.post("/search", json={"query": "x"})
    endings = {"counter": "_total", "info": "_info"}
    reported = {
        (family.name + endings.get(family.type, ""), family.type, family.documentation.rstrip("."))
        for family in service.app.state.metrics.registry.collect()
    }
    documented = {
        (name.strip("`"), kind, meaning) for name, kind, meaning in rows("What there is", "operations.md")
    }
    assert documented == reported


def test_every_metric_of_an_alert_is_one_that_there_is() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bxclip_[a-z_]+\b", text[text.index("### Alerts") : text.index("## Logs")]))
    there = {cells[0].strip("`") for cells in rows("What there is", "operations.md")}
    assert named and {name.removesuffix("_bucket") for name in named} <= there


# Troubleshooting


def test_every_problem_has_its_advice() -> None:
    text = (DOCS / "operations.md").read_text(encoding="utf-8")
    text = text[text.index("Problems that clients get") : text.index("## Settings")]
    assert set(re.findall(r"`([a-z-]+)`", text)) >= {error.kind for error in ERROR_CLASSES}


@pytest.mark.parametrize(
    "message", [cells[0].strip("`") for cells in rows("Troubleshooting", "operations.md")]
)
def test_every_message_with_advice_is_one_that_is_printed(message: str) -> None:
    assert any(message in path.read_text(encoding="utf-8") for path in SOURCES)


# Logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where our log lines go, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.getLogger("xclip_search")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)


def test_each_request_is_a_line_of_json_without_what_was_asked(service: Service, stream: io.StringIO) -> None:
    service.client.post("/search?secret=1", json={"query": "zebra"}, headers={"X-Request-ID": "abc-1"})
    service.client.get("/videos/zebra")
    service.client.get("/healthz")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/search", 200),
        ("GET", "/videos/{video_id}", 404),
    ]
    assert lines[0]["request_id"] == "abc-1" and lines[0]["key"] is None and lines[0]["seconds"] >= 0
    assert "zebra" not in stream.getvalue() and "secret" not in stream.getvalue()


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("boom"), False),
    ],
)
def test_a_server_whose_memory_was_full_ends_instead_of_serving_what_may_be_old(
    error: Exception, is_full: bool, service: Service, stream: io.StringIO
) -> None:
    failures: list[BaseException] = []
    service.app.state.on_failure = failures.append
    service.searcher.error = error
    assert service.client.post("/search", json={"query": "x"}).status_code == 500
    assert failures == ([error] if is_full else [])


def test_an_unforeseen_error_has_its_request_id_and_the_headers_of_every_answer(
    service: Service, stream: io.StringIO
) -> None:
    service.searcher.error = RuntimeError("boom")
    response = service.client.post("/search", json={"query": "x"})
    assert response.status_code == 500 and response.headers["x-content-type-options"] == "nosniff"
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert "boom" in first["exception"] and first["level"] == "error"
    assert first["request_id"] == second["request_id"] == response.headers["x-request-id"]
    assert second["status"] == 500


@pytest.mark.parametrize("offered", ["", "a b", "a" * 129, "é", 'a"b', "a\tb"])
def test_a_request_id_that_could_spoil_a_log_is_replaced(service: Service, offered: str) -> None:
    headers = {"X-Request-ID": offered.encode("latin-1")}
    given = service.client.get("/healthz", headers=headers).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", given)


def test_logging_writes_json_or_text_and_a_line_break_breaks_no_line() -> None:
    record = logging.makeLogRecord(
        {"msg": "a\nb %s", "args": ("c",), "levelname": "INFO", "job": "7", "_ns": 1}
    )
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line).items() >= {"message": "a\nb c", "level": "info", "job": "7"}.items()
    assert "_ns" not in line
    assert logs.TextFormatter().format(record).endswith("a\nb c job=7")


# Names of hosts, sizes


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("10.1.2.3:8000", 200),
        ("app.localhost", 200),
        ("search", 200),
        ("evil.example:8000", 421),
        ("evil.example.", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_without_keys_a_name_that_anybody_could_point_here_is_not_answered(
    service: Service, host: str, status: int
) -> None:
    assert service.client.get("/videos", headers={"Host": host}).status_code == status
    assert service.client.get("/healthz", headers={"Host": host}).status_code == 200


def test_with_a_list_of_names_those_alone_are_answered(tmp_path: Path) -> None:
    with running(tmp_path, allowed_hosts=("search.example",)) as service:
        for host, status in (
            ("Search.Example:443", 200),
            ("localhost", 200),
            ("10.1.2.3", 421),
            ("a.b", 421),
        ):
            assert service.client.get("/videos", headers={"Host": host}).status_code == status


def test_long_addresses_and_large_headers_are_refused(service: Service) -> None:
    assert service.client.get("/videos?" + "a" * 9000).status_code == 414
    assert service.client.get("/videos", headers={"X": "a" * 17_000}).status_code == 431
    assert service.client.get("/videos", headers={f"X{n}": "a" for n in range(101)}).status_code == 431


def test_a_server_that_is_ending_is_not_ready_and_closes_connections(service: Service) -> None:
    service.app.state.drain.begin()
    assert service.client.get("/readyz").status_code == 503
    response = service.client.get("/healthz")
    assert response.status_code == 200 and response.headers["connection"] == "close"


def test_a_server_that_is_ending_keeps_no_client_waiting_for_a_job(service: Service) -> None:
    threading.Timer(0.3, service.app.state.drain.begin).start()
    response = service.client.post("/videos?wait=true", files={"file": ("a.mp4", b"x")})
    assert response.status_code == 202 and response.json()["job"]["state"] == "queued"


# Traces


def test_requests_and_stages_are_spans_below_the_callers(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from starlette.testclient import TestClient

    from service.app import create_app
    from service.observability.tracing import make_tracer_provider

    exporter = InMemorySpanExporter()
    service = Service(tmp_path)
    app = create_app(
        service.settings,
        searcher=service.searcher,  # type: ignore[arg-type]
        decoders=service.decoders,
        tracing=make_tracer_provider(SimpleSpanProcessor(exporter)),
    )
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with TestClient(app) as client:
        client.post("/search", json={"query": "x"}, headers={"traceparent": caller})
        spans = {span.name: span for span in exporter.get_finished_spans()}
    request = spans.pop("POST /search")
    assert request.parent is not None and f"{request.parent.span_id:016x}" == "b7ad6b7169203331"
    assert request.attributes is not None and request.attributes["http.response.status_code"] == 200
    assert set(spans) == {f"search {stage}" for stage in ("wait", "encode", "coarse", "rerank")}
    for span in spans.values():
        assert span.parent is not None and span.parent.span_id == request.get_span_context().span_id
    service.catalog.close()


@pytest.mark.parametrize("is_tried", [True, False], ids=["given up", "never tried"])
def test_a_dead_collector_of_traces_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, is_tried: bool
) -> None:
    """It accepts connections and never answers. The SDK's own shutdown takes half a minute."""
    from service.observability.tracing import FLUSH_SECONDS, make_tracer_provider

    with socket.create_server(("127.0.0.1", 0)) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10" if is_tried else "60000")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(FLUSH_SECONDS + 1))
        provider = make_tracer_provider()
        provider.get_tracer("test").start_span("a span").end()
        if is_tried:
            collector.settimeout(10)
            connection, _ = collector.accept()
            connection.recv(10)
        started = time.monotonic()
        provider.shutdown()
        assert time.monotonic() - started < FLUSH_SECONDS + 0.5
        if is_tried:
            assert time.monotonic() - started < 0.5
            connection.close()
    # What still tries to send takes random numbers for its pauses, which other tests draw from meanwhile.
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.name.startswith("Otel"):
            thread.join(20)


def test_the_last_spans_reach_a_collector_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from service.observability.tracing import make_tracer_provider

    monkeypatch.setattr("service.observability.tracing.FLUSH_SECONDS", 30.0)
    with serving(reply(b"")) as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
        provider = make_tracer_provider()
        provider.get_tracer("test").start_span("a span").end()
        provider.shutdown()
        assert len(collector.requests) == 1 and "POST /v1/traces" in collector.requests[0]


def test_a_server_whose_worker_cannot_start_is_not_ready_and_says_why(service: Service) -> None:
    assert service.client.get("/readyz").status_code == 200
    state = service.app.state.worker = WorkerState()
    problem = check_problem(service.client.get("/readyz"), 503)
    assert "is being started" in problem["detail"]
    state.note_ended(2)
    detail = check_problem(service.client.get("/readyz"), 503)["detail"]
    assert "cannot start: its arguments or one of its settings are wrong" in detail
    # Searches are answered all the same.
    assert service.client.post("/search", json={"query": "x"}).status_code == 200
    state.note_alive()
    assert service.client.get("/readyz").status_code == 200
    state.begin()
    assert service.client.get("/readyz").status_code == 200


def test_a_traceback_is_not_repeated_with_every_request() -> None:
    log = io.StringIO()
    logger = logging.getLogger("xclip_search.repeats")
    handler = logging.StreamHandler(log)
    handler.setFormatter(logs.TextFormatter())
    handler.addFilter(logs.RepeatedTracebacks())
    logger.addHandler(handler)

    def fail(number: int) -> None:
        try:
            int(f"number {number}")
        except ValueError as error:
            logger.error("request %d failed", number, exc_info=error)

    for number in range(1000):
        fail(number)
    text = log.getvalue()
    assert text.count("Traceback") == 1 and "request 999 failed (ValueError again: " in text
    try:
        raise ValueError("elsewhere")
    except ValueError as error:
        logger.error("another", exc_info=error)
    assert log.getvalue().count("Traceback") == 2
