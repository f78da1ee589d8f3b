"""Every error is a problem object of one shape, whichever route or layer it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from indexer import errors as indexer_errors
from indexer.errors import IndexDamagedError
from service.app import create_app
from service.errors import ERROR_CLASSES, PROBLEM_MEDIA_TYPE, TYPE_PREFIX, ServiceError
from service.http.problems import from_indexer_error
from service.http.request_body import MAX_MISTAKES
from service.schemas import Problem
from service.settings import ServiceSettings
from tests.support.servers.service_fakes import Service, add_video, running

SECRET = "zebra-crossing-4711"
"""Put into every request that is to fail; no answer may repeat it."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("index")) as service:
        add_video(service.catalog, "known")
        yield service


def check_problem(response: Any, status: int | None = None) -> dict[str, Any]:
    """`response` is a problem object as documented, without a word of the request or of our insides."""
    assert response.headers["content-type"] == PROBLEM_MEDIA_TYPE
    body: dict[str, Any] = response.json()
    Problem.model_validate(body, strict=True)
    assert set(body) <= {"type", "title", "status", "detail", "errors", "job"}
    assert body["status"] == response.status_code
    assert status is None or response.status_code == status, body
    assert body["type"].startswith(TYPE_PREFIX) and body["title"] and body["detail"].endswith(".")
    text = response.text
    assert SECRET not in text
    assert "Traceback" not in text and "/tmp" not in text and ".py" not in text
    return body


WRONG_REQUESTS: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", f"/{SECRET}", {}, 404),
    ("GET", f"/page/{SECRET}", {}, 404),
    ("GET", "/page/../app.py", {}, 404),
    ("PUT", f"/search?{SECRET}", {}, 405),
    ("DELETE", "/", {}, 405),
    ("POST", "/search", {"content": SECRET}, 415),
    ("POST", "/search", {"content": SECRET, "headers": {"Content-Type": SECRET}}, 415),
    ("POST", "/search", {"content": SECRET, "headers": {"Content-Type": "application/json"}}, 400),
    ("POST", "/search", {"json": {SECRET: SECRET}}, 422),
    ("POST", "/search", {"json": {"query": "x", "filter": {"year": SECRET}}}, 422),
    ("POST", "/search", {"json": {"query": SECRET, "limit": SECRET}}, 422),
    ("POST", "/search", {"json": {"query": SECRET, "mode": SECRET}}, 422),
    ("POST", "/search", {"json": {"query": SECRET * 200}}, 422),
    ("POST", "/search", {"json": [SECRET]}, 422),
    ("POST", "/search", {"json": {"query": "x" * 70_000}}, 413),
    ("POST", "/videos", {"content": SECRET}, 415),
    ("POST", "/videos", {"json": {"uri": f"/{SECRET}"}}, 403),
    ("POST", "/videos", {"json": {"uri": f"/{SECRET}", "id": f"{SECRET}/.."}}, 422),
    ("POST", "/videos", {"json": {"uri": "/etc/passwd", "metadata": {SECRET: "x" * 17_000}}}, 422),
    ("POST", f"/videos?wait={SECRET}", {"json": {"uri": "/x"}}, 422),
    ("POST", f"/videos?{SECRET}=1", {"json": {"uri": "/x"}}, 422),
    ("POST", "/videos", {"content": SECRET, "headers": {"Content-Type": "multipart/form-data"}}, 400),
    ("POST", "/videos", {"files": {SECRET: (SECRET, b"x")}}, 422),
    ("POST", "/videos", {"files": {"title": (None, SECRET)}}, 422),
    ("POST", "/videos", {"files": {"file": (SECRET, b"")}}, 422),
    ("GET", f"/videos?limit={SECRET}", {}, 422),
    ("GET", f"/videos?after={SECRET}", {}, 422),
    ("GET", f"/videos?{SECRET}=1", {}, 422),
    ("GET", f"/videos/{SECRET}", {}, 404),
    ("DELETE", f"/videos/{SECRET}", {}, 404),
    ("GET", f"/videos/{SECRET}/media", {}, 404),
    ("GET", "/videos/known/media", {}, 404),
    ("GET", f"/videos/{SECRET}/thumbnail", {}, 404),
    ("GET", "/videos/known/thumbnail?time_seconds=nan", {}, 422),
    ("GET", "/videos/known/thumbnail?time_seconds=-1", {}, 422),
    ("GET", f"/videos/known/thumbnail?width={SECRET}", {}, 422),
    ("GET", f"/jobs/{SECRET}", {}, 404),
    ("DELETE", f"/jobs/{SECRET}", {}, 404),
    ("GET", f"/jobs?state={SECRET}", {}, 422),
    ("GET", "/jobs?after=-1", {}, 422),
]


@pytest.mark.parametrize(("method", "path", "options", "status"), WRONG_REQUESTS)
def test_a_wrong_request_gets_a_problem_that_does_not_repeat_it(
    service: Service, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    check_problem(service.client.request(method, path, **options), status)


def test_every_documented_endpoint_answers_a_method_that_it_lacks_with_a_problem(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in {"get", "post", "put", "patch", "delete"} - set(methods):
            response = service.client.request(method.upper(), re.sub(r"{\w+}", "known", path))
            check_problem(response, 405)
            allowed = {name.strip().lower() for name in response.headers["allow"].split(",")}
            assert set(methods) <= allowed <= {*methods, "head"}, path


def test_every_endpoint_documents_its_errors_as_problems(service: Service) -> None:
    document = service.client.get("/openapi.json").json()
    assert document["components"]["schemas"]["Problem"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            errors = {status: answer for status, answer in operation["responses"].items() if status >= "4"}
            assert {"422", "500"} <= set(errors), (method, path)
            for status, answer in errors.items():
                assert list(answer["content"]) == [PROBLEM_MEDIA_TYPE], (method, path, status)
                content = answer["content"][PROBLEM_MEDIA_TYPE]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
                for example in content["examples"].values():
                    assert example["value"]["status"] == int(status)
                    Problem.model_validate(example["value"])


def test_every_reference_of_the_openapi_document_leads_somewhere(service: Service) -> None:
    text = service.client.get("/openapi.json").text
    schemas = service.client.get("/openapi.json").json()["components"]["schemas"]
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) <= set(schemas)
    assert "HTTPValidationError" not in text


def test_every_error_class_has_its_own_type_and_a_status_of_errors() -> None:
    assert len({error.kind for error in ERROR_CLASSES}) == len(ERROR_CLASSES)
    assert set(ServiceError.__subclasses__()) == set(ERROR_CLASSES)
    for error in ERROR_CLASSES:
        assert 400 <= error.status < 600
        assert error().to_problem()["detail"].endswith(".")


def test_an_unforeseen_error_becomes_a_500_that_tells_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.searcher.error = RuntimeError(f"{SECRET} in /tmp/index")
    try:
        check_problem(service.client.post("/search", json={"query": "x"}), 500)
    finally:
        service.searcher.error = None
    assert SECRET in caplog.text  # The log is where it belongs.


def test_a_damaged_index_becomes_a_500_that_tells_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.searcher.error = IndexDamagedError(f"/tmp/{SECRET} is damaged")
    try:
        check_problem(service.client.post("/search", json={"query": "x"}), 500)
    finally:
        service.searcher.error = None
    assert SECRET in caplog.text


def test_before_loading_has_ended_only_health_is_answered(tmp_path: Path) -> None:
    client = TestClient(create_app(ServiceSettings(tmp_path)))  # Not entered: its lifespan does not run.
    assert client.get("/healthz").status_code == 200
    for method, path in [
        ("GET", "/readyz"),
        ("GET", "/stats"),
        ("POST", "/search"),
        ("POST", "/videos"),
        ("GET", "/videos"),
        ("GET", "/videos/a/media"),
        ("GET", "/jobs"),
    ]:
        response = client.request(method, path)
        check_problem(response, 503)
        assert int(response.headers["retry-after"]) > 0


def test_a_page_of_another_site_cannot_change_anything(service: Service) -> None:
    files = {"file": ("a.mp4", b"x")}
    for headers in [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ]:
        check_problem(service.client.post("/videos", files=files, headers=headers), 403)
        check_problem(service.client.delete("/videos/known", headers=headers), 403)
    assert service.client.get("/videos/known", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
    own = {"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}
    assert service.client.post("/search", json={"query": "x"}, headers=own).status_code == 200


def test_mistakes_by_the_thousand_are_counted_and_not_listed(service: Service) -> None:
    for num_mistakes in (MAX_MISTAKES - 1, MAX_MISTAKES):
        body = {"query": 0, **dict.fromkeys(map(str, range(num_mistakes)))}
        problem = check_problem(service.client.post("/search", json=body), 422)
        assert ("errors" in problem) == (num_mistakes + 1 <= MAX_MISTAKES)
        assert "mistakes" in problem["detail"] or len(problem["errors"]) == 20


def test_a_body_with_two_lengths_is_refused_and_ends_the_connection(service: Service) -> None:
    response = service.client.post(
        "/search",
        content=b'{"query": "x"}',
        headers={
            "Content-Type": "application/json",
            "Content-Length": "5",
            "Transfer-Encoding": "chunked",
        },
    )
    check_problem(response, 400)
    assert response.headers["connection"] == "close"


def test_every_answer_has_the_security_headers(service: Service) -> None:
    for path in ("/", "/healthz", "/nowhere", "/videos/known"):
        headers = service.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (indexer_errors.IndexBusyError("a path"), 503),
        (indexer_errors.IndexFullError("a path"), 507),
        (indexer_errors.IndexStorageError("a path"), 500),
        (indexer_errors.IndexDamagedError("a path"), 500),
    ],
)
def test_what_the_index_cannot_do_has_a_status_of_its_own_and_tells_no_path(
    error: Exception, status: int
) -> None:
    response = from_indexer_error(error).to_response()
    assert response.status_code == status and b"a path" not in response.body
    assert ("retry-after" in response.headers) == (status == 503)
