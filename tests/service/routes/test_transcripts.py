"""Transcripts over HTTP: stored, shown as WebVTT, deleted; and what a search says of words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.search.types import TextHit
from indexer.store.transcripts import MAX_TRANSCRIPT_BYTES, Line, Transcript, TranscriptFile
from tests.service.routes.test_errors import check_problem
from tests.support.servers.service_fakes import Service, add_video, running
from xclip_search.client import Client

SUBRIP = b"1\r\n00:00:01,500 --> 00:00:03,000\r\n<i>Gr\xfc\xdfe</i> & mehr --> hier\r\n\r\n"
VTT = {"Content-Type": "text/vtt"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "index") as service:
        add_video(service.catalog, "film")
        yield service


def check(answer: Any, status: int, kind: str) -> None:
    check_problem(answer)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, kind)


def test_a_transcript_is_stored_listed_shown_found_and_deleted(service: Service) -> None:
    path = "/videos/film/transcripts"
    assert service.client.get(path).json() == {"transcripts": []}
    for content_type in ("application/x-subrip", "text/plain; charset=latin-1", "application/octet-stream"):
        answer = service.client.put(f"{path}/de", content=SUBRIP, headers={"Content-Type": content_type})
        assert answer.status_code == 200
    expected = {
        "track": "de",
        "num_lines": 1,
        "end_seconds": 3.0,
        "from_file": False,
        "url": "/videos/film/transcripts/de",
    }
    assert answer.json() == expected
    assert service.client.get(path).json() == {"transcripts": [expected]}
    shown = service.client.get(f"{path}/de")
    assert shown.headers["content-type"].startswith("text/vtt")
    assert shown.text == ("WEBVTT\n\n00:00:01.500 --> 00:00:03.000\nGrüße &amp; mehr --&gt; hier\n")
    assert service.catalog.find_words("grüße").video_keys.tolist() == [1]
    # What is shown can be stored again.
    assert service.client.put(f"{path}/en", content=shown.content, headers=VTT).status_code == 200
    assert service.client.delete(f"{path}/de").status_code == 204
    check(service.client.delete(f"{path}/de"), 404, "transcript-not-found")
    check(service.client.get(f"{path}/de"), 404, "transcript-not-found")


def test_one_of_a_file_says_so(service: Service) -> None:
    file = TranscriptFile("file:///a/film.srt", 5, 6)
    service.catalog.transcripts.put("film", Transcript("und", (Line(0.0, 1.0, "hello"),), file))
    (found,) = service.client.get("/videos/film/transcripts").json()["transcripts"]
    assert found["from_file"] is True


@pytest.mark.parametrize(
    ("path", "content", "content_type", "status", "kind"),
    [
        ("film/transcripts/en", b"no times", "text/vtt", 422, "transcript-rejected"),
        ("film/transcripts/en", b"", "text/vtt", 422, "transcript-rejected"),
        ("film/transcripts/e%20n", SUBRIP, "text/vtt", 422, "invalid-request"),
        (f"film/transcripts/{'a' * 41}", SUBRIP, "text/vtt", 422, "invalid-request"),
        ("film/transcripts/en", SUBRIP, "application/json", 415, "unsupported-content-type"),
        ("film/transcripts/en", b"x" * (MAX_TRANSCRIPT_BYTES + 1), "text/vtt", 413, "body-too-large"),
        ("none/transcripts/en", SUBRIP, "text/vtt", 404, "video-not-found"),
    ],
)
def test_what_cannot_be_stored_is_a_problem(
    service: Service, path: str, content: bytes, content_type: str, status: int, kind: str
) -> None:
    answer = service.client.put(f"/videos/{path}", content=content, headers={"Content-Type": content_type})
    check(answer, status, kind)
    assert service.catalog.transcripts.of_videos(["film"]) == {}


def test_reading_of_a_video_that_is_not_there_is_a_problem(service: Service) -> None:
    for path in ("/videos/none/transcripts", "/videos/none/transcripts/en"):
        check(service.client.get(path), 404, "video-not-found")
    check(service.client.delete("/videos/none/transcripts/en"), 404, "video-not-found")


def test_a_search_says_where_the_words_are(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = service.client.post("/search", json={"query": "a"}).json()["results"]
    assert all("text_hits" not in result for result in plain)
    search = service.searcher.search
    hit = TextHit("transcript", "hello", 1.5, 3.0, "en")

    def with_hits(query):
        answer = search(query)
        return replace(answer, results=[replace(result, text_hits=[hit]) for result in answer.results])

    monkeypatch.setattr(service.searcher, "search", with_hits)
    answer = service.client.post("/search", json={"query": "a", "text_match": "boost"})
    assert service.searcher.queries[-1].text_match == "boost"
    assert answer.json()["results"][0]["text_hits"] == [vars(hit)]
    check(service.client.post("/search", json={"query": "a", "text_match": "x"}), 422, "invalid-request")


def test_the_client_does_all_of_it(service: Service, tmp_path: Path) -> None:
    (tmp_path / "film.srt").write_bytes(SUBRIP)
    with Client("http://testserver", transport=httpx.ASGITransport(service.app)) as client:
        stored = client.put_transcript("film", tmp_path / "film.srt", track="de")
        assert [one.track for one in client.list_transcripts("film")] == [stored.track] == ["de"]
        assert "Grüße" in client.get_transcript("film", "de")
        client.delete_transcript("film", "de")
        assert client.list_transcripts("film") == []
