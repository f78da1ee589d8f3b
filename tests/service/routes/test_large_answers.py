"""How large an answer may be: known before the work where it can be, and sent in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.routes import search
from service.schemas.search import MAX_EXPLAINED_RESULTS, MAX_LIMIT, MAX_QUERIES, MAX_RESULTS
from tests.service.routes.test_errors import check_problem
from tests.support.servers.service_fakes import Service, add_video, running


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path) as service:
        for number in range(20):
            add_video(service.catalog, f"v{number}", metadata={"note": "x" * 10_000})
        yield service


@pytest.mark.parametrize(
    ("num_queries", "limit", "explain", "is_answered"),
    [
        (MAX_RESULTS // MAX_LIMIT, MAX_LIMIT, False, True),
        (MAX_RESULTS // MAX_LIMIT + 1, MAX_LIMIT, False, False),
        (MAX_QUERIES, MAX_LIMIT, True, False),
        (MAX_EXPLAINED_RESULTS // MAX_LIMIT, MAX_LIMIT, True, True),
        (MAX_EXPLAINED_RESULTS // MAX_LIMIT + 1, MAX_LIMIT, True, False),
        (MAX_QUERIES, MAX_EXPLAINED_RESULTS // MAX_QUERIES, True, True),
    ],
)
def test_queries_times_results_is_bounded_before_the_work(
    num_queries: int, limit: int, explain: bool, is_answered: bool, service: Service
) -> None:
    body = {"queries": ["a"] * num_queries, "limit": limit, "explain": explain}
    response = service.client.post("/search", json=body)
    assert (response.status_code == 200) == is_answered == bool(service.searcher.queries)
    if not is_answered:
        detail = check_problem(response, 422)["detail"]
        assert f"at most {MAX_RESULTS}" in detail and "fewer queries" in detail


def test_one_query_may_ask_for_as_many_explained_results_as_there_are_in_a_page(service: Service) -> None:
    response = service.client.post("/search", json={"query": "a", "limit": MAX_LIMIT, "explain": True})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/search", {"query": "a", "limit": 20}),
        ("POST", "/search", {"queries": ["a", "b", "c"], "limit": 7}),
        ("GET", "/videos/v1/similar?limit=20", None),
    ],
)
def test_an_answer_with_the_longest_metadata_is_refused_where_it_is_too_large(
    method: str, path: str, body: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(service.client.request(method, path, json=body).content)
    assert size > 190_000
    monkeypatch.setattr(search, "MAX_ANSWER_BYTES", size + 100)
    assert service.client.request(method, path, json=body).status_code == 200
    monkeypatch.setattr(search, "MAX_ANSWER_BYTES", size - 1000)
    detail = check_problem(service.client.request(method, path, json=body), 422)["detail"]
    assert "larger than" in detail and "lower limit" in detail


def test_a_large_answer_is_sent_in_pieces_and_says_its_length(service: Service) -> None:
    sent: list[Any] = []
    pieces = search.Pieces()
    for number in range(100):
        pieces.write(json.dumps({"number": number, "text": "x" * 5000}).encode())

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        await pieces.to_response()({"type": "http"}, None, send)  # type: ignore[arg-type]

    assert service.client.portal is not None
    service.client.portal.call(main)
    start, *bodies = sent
    sizes = [len(message["body"]) for message in bodies]
    assert max(sizes) < search.PIECE_BYTES + 6000 and len(sizes) > 5
    assert dict(start["headers"])[b"content-length"] == str(sum(sizes)).encode()
    assert [message["more_body"] for message in bodies] == [True] * (len(sizes) - 1) + [False]
