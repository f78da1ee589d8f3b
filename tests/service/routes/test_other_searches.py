"""Lists of queries, similar videos and texts for a video over HTTP."""

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


# Near duplicates


def test_results_that_look_the_same_come_as_one_with_the_ids_of_the_others(service: Service) -> None:
    for number in range(3):
        add_video(service.catalog, f"copy{number}", metadata={"looks": "a boat"})
    answers = [
        service.client.post("/search", json={"query": "a boat", "fold": True}),
        service.client.get("/videos/v1/similar", params={"fold": "true"}),
        service.client.post("/search/media", files={"file": b"x"}, data={"fold": "0.9"}),
    ]
    for answer in answers:
        first, second = answer.json()["results"][:2]
        assert first["id"] == "copy2"
        assert [copy["id"] for copy in first["copies"]] == ["copy1", "copy0"] and first["num_copies"] == 2
        assert set(first["copies"][0]) == {"id", "segment_id", "similarity"}
        assert second["id"] == "v3" and not {"copies", "num_copies"} & set(second)
    plain = service.client.post("/search", json={"query": "a boat"}).json()["results"]
    assert len(plain) == 7 and not any("copies" in result for result in plain)


@pytest.mark.parametrize(
    ("fold", "meant"), [(True, True), (False, False), (0.97, 0.97), (1, 1.0), (1.0, 1.0), (0.5, 0.5)]
)
def test_fold_is_a_boolean_or_a_cosine(service: Service, fold: bool | float, meant: bool | float) -> None:
    assert service.client.post("/search", json={"query": "a", "fold": fold}).status_code == 200
    found = service.searcher.queries[-1].fold
    assert found == meant and type(found) is type(meant)
    assert service.client.get(f"/videos/v1/similar?fold={fold}").status_code == 200
    found = service.searcher.queries[-1].fold
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize("fold", [0.49, 1.01, "0.9", "true", None, [True], 2, -1])
def test_other_values_of_fold_are_refused_with_what_it_may_be(service: Service, fold: Any) -> None:
    response = service.client.post("/search", json={"query": "a", "fold": fold})
    assert problem(response) == (422, "invalid-request")
    assert {error["field"] for error in response.json()["errors"]} == {"fold"}
    for value in ("0.4", "yes please", "2"):
        assert problem(service.client.get("/videos/v1/similar", params={"fold": value}))[0] == 422
