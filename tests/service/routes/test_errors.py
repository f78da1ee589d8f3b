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
from service.schemas.fields import MAX_FIELDS
from service.schemas.operation import Problem
from service.settings import Settings
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


def test_an_unforeseen_error_becomes_a_500_that_reveals_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.searcher.error = RuntimeError(f"{SECRET} in /tmp/index")
    try:
        check_problem(service.client.post("/search", json={"query": "x"}), 500)
    finally:
        service.searcher.error = None
    assert SECRET in caplog.text  # The log is where it belongs.


def test_a_damaged_index_becomes_a_500_that_reveals_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.searcher.error = IndexDamagedError(f"/tmp/{SECRET} is damaged")
    try:
        check_problem(service.client.post("/search", json={"query": "x"}), 500)
    finally:
        service.searcher.error = None
    assert SECRET in caplog.text


def test_before_loading_has_ended_only_health_is_answered(tmp_path: Path) -> None:
    client = TestClient(create_app(Settings(index=tmp_path)))  # Not entered: its lifespan does not run.
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


@pytest.mark.parametrize(("num_fields", "listed"), [(MAX_FIELDS, 20), (MAX_FIELDS + 1, 1), (5000, 1)])
def test_mistakes_by_the_thousand_are_not_listed(service: Service, num_fields: int, listed: int) -> None:
    body = dict.fromkeys(map(str, range(num_fields)))
    problem = check_problem(service.client.post("/search", json=body), 422)
    assert len(problem["errors"]) == listed


JSON = {"Content-Type": "application/json"}

BODIES: list[tuple[bytes, dict[str, str], int]] = [
    (b"", JSON, 400),
    (b"null", JSON, 422),
    (b"{", JSON, 400),
    (b'{"query": "\xff"}', JSON, 400),
    (b"[" * 5000, JSON, 400),
    (b'{"query": ' + b"9" * 5000 + b"}", JSON, 400),
    (b"[]", JSON, 422),
    (b'"text"', JSON, 422),
    (b"{}", JSON, 422),
    (b'{"query": "\\ud800"}', JSON, 422),
    (b'{"query": "x", "\\udfff": 1}', JSON, 422),
    (b'{"query": "x", "min_score": NaN}', JSON, 422),
    (b'{"query": "x", "min_score": -Infinity}', JSON, 422),
    (b'{"query": "x", "min_score": 1e999}', JSON, 422),
    (b'{"query": "x", "filter": {"metadata.a": NaN}}', JSON, 422),
    (b'{"query": "x", "filter": {"metadata.a": "\\ud800"}}', JSON, 422),
    (b'{"query": "x", "limit": "10"}', JSON, 422),
    (b'{"query": "x", "limit": true}', JSON, 422),
    (b'{"query": "x", "explain": 1}', JSON, 422),
    (b'{"query": 1}', JSON, 422),
    (b'{"query": "x", "limit": 1e1}', JSON, 200),
    (b'{"query": "x"}', {"Content-Type": "application/json; charset=utf-8"}, 200),
    (b'{"query": "x"}', {"Content-Type": "Application/JSON"}, 200),
    (b'{"query": "x"}', {}, 415),
    (b'{"query": "x"}', {"Content-Type": ""}, 415),
    (b'{"query": "x"}', {"Content-Type": "text/plain"}, 415),
    (b'{"query": "x"}', {"Content-Type": "application/jsonx"}, 415),
    (b"query=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    (b"", {}, 415),
]


@pytest.mark.parametrize(("content", "headers", "status"), BODIES)
def test_a_body_is_strict_json_of_the_type_that_it_says(
    service: Service, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = service.client.post("/search", content=content, headers=headers)
    if status == 200:
        assert response.status_code == 200
    else:
        check_problem(response, status)


def test_a_patch_cannot_store_what_utf_8_and_json_cannot_hold(service: Service) -> None:
    for value in (b"NaN", b"-Infinity", b'"\\ud800"', b'{"\\udfff": 1}'):
        for field in (b"title", b"metadata"):
            content = b'{"%s": %s}' % (field, value if field == b"title" else b'{"a": %s}' % value)
            check_problem(service.client.patch("/videos/known", content=content, headers=JSON), 422)


LIMIT_BYTES = Settings(index=Path("nowhere")).body_limit_bytes


@pytest.mark.parametrize("path", ["/search", "/videos", "/session"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_limit_is_refused_announced_or_not(
    service: Service, path: str, announced: bool
) -> None:
    for num_bytes in (LIMIT_BYTES, LIMIT_BYTES + 1):
        content = b"{" + b" " * (num_bytes - 2) + b"}"
        pieces = content if announced else iter([content[:1000], content[1000:]])
        response = service.client.post(path, content=pieces, headers=JSON)
        problem = check_problem(response, 413 if num_bytes > LIMIT_BYTES else 422)
        assert response.headers["x-request-id"] and response.headers["x-content-type-options"]
        assert (problem["type"] == TYPE_PREFIX + "body-too-large") == (num_bytes > LIMIT_BYTES)


def test_a_thousand_texts_have_a_larger_limit(service: Service) -> None:
    body = {"texts": ["x" * 2000] * 1000}
    assert service.client.post("/videos/known/texts", json=body).status_code == 200
    body = {"texts": ["x" * 5000] * 1000}
    check_problem(service.client.post("/videos/known/texts", json=body), 413)


def test_a_wrong_field_is_named_and_an_unknown_one_answered_with_those_known(service: Service) -> None:
    problem = check_problem(service.client.post("/search", json={"query": "x", "limit": 0, SECRET: 1}), 422)
    assert [error["field"] for error in problem["errors"]] == ["limit", ""]
    assert "query, queries, limit" in problem["errors"][1]["message"]


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
def test_what_the_index_cannot_do_has_a_status_of_its_own_and_reveals_no_path(
    error: Exception, status: int
) -> None:
    response = from_indexer_error(error).to_response()
    assert response.status_code == status and b"a path" not in response.body
    assert ("retry-after" in response.headers) == (status == 503)
