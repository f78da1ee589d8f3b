"""Lists of queries, similar videos, texts for a video and patches over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from indexer.search.types import SearchQuery
from indexer.store.filters import parse_filter
from service.schemas.search import SearchAnswersBody, SimilarAnswerBody, TextsAnswerBody
from tests.support.servers.service_fakes import Service, add_video, running


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("index")) as service:
        for number in range(4):
            add_video(service.catalog, f"v{number}", metadata={"number": number})
        yield service


def problem(response: Any) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["type"].rpartition(":")[2]


def test_queries_are_answered_in_their_order(service: Service) -> None:
    texts = [f"query {number}" for number in range(20)]
    response = service.client.post("/search", json={"queries": texts, "limit": 2, "mode": "coarse"})
    body = response.json()
    SearchAnswersBody.model_validate(body)
    assert [answer["query"] for answer in body["answers"]] == texts
    assert service.searcher.queries == [SearchQuery(text, limit=2, mode="coarse") for text in texts]
    assert body["answers"][3]["results"][0]["preview_url"].startswith("/videos/v3/preview")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"query": "a", "queries": ["b"]},
        {"queries": []},
        {"queries": ["a"] * 33},
        {"queries": ["a", " "]},
        {"queries": "a"},
        {"query": "a", "cursor": "x"},
        {"query": "a", "min_percentile": 100.5},
        {"query": "a", "min_percentile": -1},
        {"query": "a", "min_percentile": "99"},
    ],
)
def test_searches_that_contradict_themselves_are_refused(service: Service, body: dict[str, Any]) -> None:
    assert problem(service.client.post("/search", json=body)) == (422, "invalid-request")
    assert service.searcher.queries == []


def test_similar_videos_are_results_with_addresses(service: Service) -> None:
    chosen = {"metadata.number": {"lt": 3}}
    response = service.client.get(
        "/videos/v1/similar", params={"limit": 7, "offset": 2, "filter": json.dumps(chosen)}
    )
    body = response.json()
    SimilarAnswerBody.model_validate(body)
    assert service.searcher.similar_calls == [("v1", 7, 2, parse_filter(chosen))]
    assert body["id"] == "v1" and [result["id"] for result in body["results"]] == ["v3", "v2", "v0"]
    assert body["results"][0]["media_url"] == "/videos/v3/media"
    assert set(body["results"][0]["scores"].values()) == {None} and body["results"][0]["percentile"] is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/videos/unknown/similar", (404, "video-not-found")),
        ("/videos/v1/similar?limit=0", (422, "invalid-request")),
        ("/videos/v1/similar?limit=101", (422, "invalid-request")),
        ("/videos/v1/similar?top=1", (422, "invalid-request")),
        ("/videos/v1/similar?filter={", (422, "invalid-request")),
        ('/videos/v1/similar?filter={"secret":1}', (422, "invalid-request")),
        ("/videos?filter=[]", (422, "invalid-request")),
        ("/videos?filter=" + "[" * 5000, (422, "invalid-request")),
    ],
)
def test_what_cannot_be_asked_for_is_refused(service: Service, path: str, expected: tuple[int, str]) -> None:
    assert problem(service.client.get(path)) == expected


def test_texts_are_ranked(service: Service) -> None:
    response = service.client.post("/videos/v1/texts", json={"texts": ["a dog", "a dog runs"]})
    body = response.json()
    TextsAnswerBody.model_validate(body)
    assert [(r["rank"], r["index"], r["text"]) for r in body["results"]] == [
        (1, 1, "a dog runs"),
        (2, 0, "a dog"),
    ]
    many = {"texts": ["x" * 2000] * 1000}
    assert service.client.post("/videos/v1/texts", json=many).status_code == 200
    for texts in ([], ["a"] * 1001, [""], ["x" * 2001], [1], "a", None):
        refused = service.client.post("/videos/v1/texts", json={"texts": texts})
        assert problem(refused) == (422, "invalid-request")
    assert problem(service.client.post("/videos/x/texts", json={"texts": ["a"]})) == (404, "video-not-found")


def test_many_texts_are_ranked_in_parts_as_if_together(service: Service) -> None:
    texts = ["x" * (1 + number * 7 % 150) for number in range(150)]
    body: dict[str, Any] = service.client.post("/videos/v1/texts", json={"texts": texts}).json()
    assert service.searcher.ranked == [texts[:64], texts[64:128], texts[128:]]
    at_once = service.searcher.rank_texts("v1", texts)
    assert [(r["rank"], r["index"], r["text"], r["score"]) for r in body["results"]] == [
        (r.rank, r.index, r.text, r.score) for r in at_once.results
    ]
    assert body["warnings"] == ["150 texts"]
    assert body["timings"]["total_seconds"] == pytest.approx(3 * 0.3)


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_a_patch_merges_and_answers_the_video(service: Service, media_type: str) -> None:
    def patch(body: Any) -> Any:
        headers = {"Content-Type": media_type}
        return service.client.patch("/videos/v1", content=json.dumps(body), headers=headers)

    answer = patch({"title": "new", "metadata": {"a": {"b": 1}}}).json()
    assert (answer["title"], answer["metadata"]) == ("new", {"number": 1, "a": {"b": 1}})
    assert answer == service.client.get("/videos/v1").json()
    assert patch({"metadata": {"a": {"b": None}}}).json()["metadata"] == {"number": 1, "a": {}}
    assert patch({"title": None, "metadata": None}).json()["metadata"] == {}
    assert patch({}).json()["title"] is None
    for body in ({"id": "x"}, {"title": ""}, {"metadata": []}, {"metadata": 1}, []):
        assert problem(patch(body)) == (422, "invalid-request")


def test_what_a_patch_comes_to_is_held_to_the_limits(service: Service) -> None:
    big = {f"key {number}": "x" * 1000 for number in range(12)}
    assert service.client.patch("/videos/v1", json={"metadata": big}).status_code == 200
    more = {f"more {number}": "x" * 1000 for number in range(12)}
    assert problem(service.client.patch("/videos/v1", json={"metadata": more})) == (422, "invalid-request")
    assert len(service.client.get("/videos/v1").json()["metadata"]) == 13
    assert problem(service.client.patch("/videos/no", json={})) == (404, "video-not-found")
    refused = service.client.patch("/videos/v1", content="{}", headers={"Content-Type": "text/plain"})
    assert problem(refused) == (415, "unsupported-content-type")


def test_a_list_takes_a_filter(service: Service) -> None:
    chosen = json.dumps({"metadata.number": {"gte": 1}})
    first = service.client.get("/videos", params={"limit": 2, "filter": chosen}).json()
    assert [video["id"] for video in first["videos"]] == ["v3", "v2"]
    rest = service.client.get("/videos", params={"limit": 2, "filter": chosen, "after": first["next"]}).json()
    assert [video["id"] for video in rest["videos"]] == ["v1"] and rest["next"] is None
