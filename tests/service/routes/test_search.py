"""POST /search: what it takes, what it refuses, what it answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from indexer.search.types import Explanation, Moment, SearchQuery, SearchResult, Segment, TextHit
from service.routes.search import write_result
from service.schemas.search import ResultAnswer, SearchAnswerBody
from tests.support.servers.service_fakes import Service, add_video, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("index"), num_search_threads=1, max_waiting_searches=1) as service:
        add_video(service.catalog, "first", title="🐕 כלב 𠮷og", metadata={"naïve": ["𝄞", {"מפתח": None}]})
        add_video(service.catalog, "ünïcode-é", title=None, uri="/videos/a b.mp4")
        yield service


def post(service: Service, body: str | bytes) -> Any:
    return service.client.post("/search", content=body, headers={"Content-Type": "application/json"})


def test_a_search_answers_as_the_contract_says(service: Service) -> None:
    response = service.client.post("/search", json={"query": "a dog"})
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    body = response.json()
    SearchAnswerBody.model_validate(body)
    assert list(body) == [
        "query",
        "mode",
        "num_videos",
        "truncated",
        "warnings",
        "timings",
        "results",
    ]
    assert body["timings"] == {
        "encode_seconds": 0.1,
        "coarse_seconds": 0.2,
        "rerank_seconds": 0.3,
        "total_seconds": 0.6,
    }
    newest, first = body["results"]
    assert first == {
        "id": "first",
        "segment_id": 2,
        "rank": 2,
        "score": 5.0,
        "percentile": 99.5,
        "match": None,
        "scores": {"video_sentence": 1.5, "video_word": None, "sentence_frame": 2.5, "frame_word": None},
        "title": "🐕 כלב 𠮷og",
        "uri": None,
        "duration_seconds": 10.0,
        "recorded_at": None,
        "media_start_seconds": 0.0,
        "metadata": {"naïve": ["𝄞", {"מפתח": None}]},
        "segment": {"start_seconds": 0.0, "end_seconds": 10.0},
        "moments": [{"time_seconds": 5.0, "score": 3.0}, {"time_seconds": 0.0, "score": 1.0}],
        "thumbnail_url": "/videos/first/thumbnail?time_seconds=5.000",
        "media_url": "/videos/first/media",
        "preview_url": "/videos/first/preview?time_seconds=5.000",
        "playable": False,
    }
    assert newest["media_url"] == "/videos/%C3%BCn%C3%AFcode-%C3%A9/media"
    assert service.client.get(newest["thumbnail_url"].split("/thumbnail")[0]).json()["id"] == "ünïcode-é"


def test_defaults_and_every_field_reach_the_searcher(service: Service) -> None:
    service.client.post("/search", json={"query": "x"})
    assert service.searcher.queries[-1] == SearchQuery("x")
    body = {
        "query": " מה 🐈 ",
        "limit": 3,
        "offset": 4,
        "candidates": 50,
        "mode": "exhaustive",
        "group_by": "segment",
        "min_score": -1.5,
        "explain": True,
        "filter": {"metadata.year": {"gte": 2000}},
        "min_percentile": 99.5,
    }
    answer = service.client.post("/search", json=body).json()
    assert answer["query"] == " מה 🐈 "
    assert service.searcher.queries[-1] == SearchQuery(
        " מה 🐈 ", 3, 4, 50, "exhaustive", "segment", -1.5, True, {"metadata.year": {"gte": 2000}}, 99.5
    )
    assert answer["results"][0]["explanation"] == {
        "tokens": ["a"],
        "frame_times": [0.0],
        "similarity": [[0.5]],
    }


def test_a_result_is_written_as_the_schema_has_it() -> None:
    every_field = SearchResult(
        id="ä b",
        segment_id=7,
        rank=3,
        score=float(np.float32(0.1)),
        scores={"video_sentence": 1.5, "video_word": None, "sentence_frame": -0.0, "frame_word": 1e-7},
        title='"𝄞"\n',
        uri=None,
        duration_seconds=10.0,
        recorded_at=1_700_000_000.25,
        metadata={"ß": [1, 1.5, None, True, {"nested": "\u2028"}], "large": 2**70},
        segment=Segment(0.0, 10.0),
        moments=[Moment(5.0, 3.0)],
        explanation=Explanation(["a"], [0.0], [[0.5]]),
        percentile=99.5,
        media_start_seconds=0.5,
        text_hits=[TextHit("title", "a"), TextHit("transcript", "b", 1.0, 2.0, "en")],
        match="strong",
    )
    for result in (every_field, replace(every_field, explanation=None, text_hits=(), recorded_at=None)):
        written = write_result(result, True, "/below").decode()
        parsed = json.loads(written)
        assert ResultAnswer.model_validate_json(written).model_dump_json(exclude_unset=True) == written
        assert list(parsed) == [name for name in ResultAnswer.model_fields if name in parsed]
        assert parsed["media_url"].startswith("/below/videos/")
        assert ("explanation" in parsed, "text_hits" in parsed) == (result is every_field,) * 2


REFUSED = [
    *('{"query": ""}', '{"query": " \\n\\t"}', '{"query": null}', '{"query": 1}', '{"query": ["a"]}', "{}"),
    *('{"query": "a", "limit": 0}', '{"query": "a", "limit": 101}', '{"query": "a", "limit": "10"}'),
    *('{"query": "a", "limit": 1.5}', '{"query": "a", "limit": true}', '{"query": "a", "limit": null}'),
    *('{"query": "a", "offset": -1}', '{"query": "a", "candidates": 0}', '{"query": "a", "candidates": 1e9}'),
    *('{"query": "a", "mode": "RERANK"}', '{"query": "a", "group_by": ""}', '{"query": "a", "explain": 1}'),
    *('{"query": "a", "explain": "true"}', '{"query": "a", "min_score": "1"}', '{"query": "a", "top_k": 5}'),
    *('{"query": "a", "filter": {}}', '{"query": "a", "Limit": 5}', '"a"', "[]", "null", "1"),
    *(
        '{"query": "a", "filter": []}',
        '{"query": "a", "filter": {"secret": 1}}',
        '{"query": "a", "filter": "x"}',
    ),
    *('{"query": "a", "min_score": NaN}', '{"query": "a", "min_score": -Infinity}'),
    *('{"query": "\\ud800"}', '{"query": "a", "\\udfff": 1}'),
    *('{"query": "a", "min_score": 1e999}', '{"query": "' + "a" * 2001 + '"}'),
]
BROKEN = [
    *("", "{", '{"query": "a"} x', "{'query': 'a'}"),
    *(b'{"query": "\xff"}', "[" * 60_000, '{"query": ' + "9" * 5000 + "}"),
]


@pytest.mark.parametrize("number", ["3", "3.0", "3e0", "0.3e1"])
def test_a_whole_number_may_be_written_as_json_schema_allows(service: Service, number: str) -> None:
    assert post(service, f'{{"query": "a", "limit": {number}}}').status_code == 200
    assert service.searcher.queries[-1].limit == 3
    assert type(service.searcher.queries[-1].limit) is int


@pytest.mark.parametrize("body", REFUSED)
def test_a_body_outside_of_the_schema_is_refused(service: Service, body: str) -> None:
    num_before = len(service.searcher.queries)
    response = post(service, body)
    assert response.status_code == 422 and response.json()["errors"], response.text
    assert len(service.searcher.queries) == num_before


@pytest.mark.parametrize("body", BROKEN, ids=range(len(BROKEN)))
def test_a_body_that_is_not_json_is_refused(service: Service, body: str | bytes) -> None:
    response = post(service, body)
    assert response.status_code == 400, response.text


def test_the_refusal_names_the_field_and_what_it_takes(service: Service) -> None:
    body = post(service, '{"query": "a", "limit": 1000, "offset": -1}').json()
    assert body["detail"] == "limit: Input should be less than or equal to 100."
    assert [error["field"] for error in body["errors"]] == ["limit", "offset"]
    assert post(service, '{"query": 3}').json()["detail"] == "query: Input should be a valid string."
    unknown = post(service, '{"query": "a", "top_k": 1}').json()
    assert unknown["errors"][0]["field"] == "" and "candidates" in unknown["detail"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from([*SearchQuery.__dataclass_fields__, "query", "filter"]) | st.text(max_size=4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(field_names, json_values, max_size=4), query=st.none() | json_values)
def test_no_json_body_makes_the_server_fail(service: Service, body: dict[str, Any], query: Any) -> None:
    if query is not None:
        body = {**body, "query": query}
    assert post(service, json.dumps(body)).status_code in (200, 400, 422)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=40) | st.from_regex(rb'\{"query": ?.{0,8}"?.{0,5}\}?', fullmatch=True))
def test_no_bytes_make_the_server_fail(service: Service, body: bytes) -> None:
    assert post(service, body).status_code in (200, 400, 422)


def test_beyond_the_searches_that_may_wait_the_answer_is_503_and_then_all_is_well(service: Service) -> None:
    service.searcher.hold = threading.Event()
    num_before = len(service.searcher.queries)
    try:
        with ThreadPoolExecutor(2) as pool:
            held = [pool.submit(service.client.post, "/search", json={"query": "x"}) for _ in range(2)]
            deadline = time.monotonic() + 5
            while service.client.get("/stats").json()["num_searches_inside"] < 2:
                assert time.monotonic() < deadline
            refused = service.client.post("/search", json={"query": "x"})
            service.searcher.hold.set()
            assert [response.result().status_code for response in held] == [200, 200]
    finally:
        service.searcher.hold = None
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert len(service.searcher.queries) == num_before + 2
    assert service.client.get("/stats").json()["num_searches_inside"] == 0


def test_stats_and_health_report_what_there_is(service: Service) -> None:
    assert service.client.get("/healthz").json() == service.client.get("/readyz").json() == {"status": "ok"}
    stats = service.client.get("/stats").json()
    assert stats["num_videos"] == 2 and stats["jobs"] == {"queued": 0, "running": 0, "done": 0, "failed": 0}


def test_behind_a_proxy_addresses_carry_its_prefix(service: Service) -> None:
    client = TestClient(service.app, root_path="/clips")
    result = client.post("/search", json={"query": "x"}).json()["results"][1]
    assert result["media_url"] == "/clips/videos/first/media"
