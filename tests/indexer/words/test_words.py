"""The index of words: what finds what, in many scripts; and that it follows every change of the truth."""

# ruff: noqa: RUF001, letters of many scripts are what is tested.

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.errors import (
    IndexDamagedError,
    InvalidRecordError,
    TranscriptNotFoundError,
    VideoNotFoundError,
)
from indexer.maintenance.verification import rebuild, verify
from indexer.store import word_rows
from indexer.store.postgres import words as postgres_words
from indexer.store.sqlite import words as index_of_words
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.schema import SCHEMA_VERSION
from indexer.store.store import Store
from indexer.store.transcripts import (
    MAX_TRACKS,
    PASSAGE_SECONDS,
    Line,
    Transcript,
    TranscriptFile,
    check_transcript,
    passages,
)
from indexer.store.words import found_in, terms_of, words_of_query
from tests.support.catalog_builders import add_video, create_catalog, make_segment
from tests.support.stores import StoreFactory

RANDOM = np.random.default_rng(0)


@pytest.fixture
def catalog(store_factory: StoreFactory) -> Store[Any]:
    return store_factory.create()


def add(catalog: Store[Any], number: int, title: str | None = None, **fields: object) -> str:
    return add_video(catalog, number, [make_segment(RANDOM)], title=title, **fields).video_id


def found(catalog: Store[Any], query: str) -> list[int]:
    """Numbers of the videos that a query finds, best first."""
    return catalog.find_words(query).video_keys.tolist()


def spoken(*texts: str, track: str = "en", step_seconds: float = 5.0) -> Transcript:
    lines = (Line(step_seconds * n, step_seconds * (n + 1), text) for n, text in enumerate(texts))
    return Transcript(track, tuple(lines))


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("Holiday 2019 - Crete", "crete"),
        ("VID_20190801_123456", "2019"),
        ("VID_20190801_123456", "20190801"),
        ("Walking the dog", "walk"),
        ("Größe und Maße", "GRÖSSE"),
        ("Größe und Maße", "grosse"),
        ("Café crème", "cafe creme"),
        ("Cafe\u0301", "Café"),
        ("Ёлка и ежик", "елка"),
        ("Άνοιξη", "ανοιξη"),
        ("黑猫在沙滩上跑", "沙滩"),
        ("黑猫在沙滩上跑", "跑"),
        ("黑猫在沙滩上跑", "一只黑猫跑步"),
        ("猫が庭で遊ぶ", "庭"),
        ("バスケットボール", "バスケ"),
        ("แมวดำวิ่งบนชายหาด", "ชายหาด"),
        ("बिल्ली दौड़ती है", "बिल्ली"),
        ("قِطَّة", "قطة"),
        ("４Ｋ　ＶＩＤＥＯ", "4k video"),
        ("Don't look up", "don't"),
        ("TV at 5", "tv"),
        ("x-ray of a hand", "X-Ray"),
    ],
)
def test_a_title_is_found_by_what_people_type(catalog, title, query):
    add(catalog, 1, "something else")
    add(catalog, 2, title)
    assert found(catalog, query) == [2]


@pytest.mark.parametrize(
    ("title", "query"),
    [("category", "cat"), ("weather", "the"), ("स्कूल", "सकल"), ("黑猫", "猫黑"), ("ガラス", "カラス")],
)
def test_what_means_something_else_is_not_found(catalog, title, query):
    add(catalog, 1, title)
    assert found(catalog, query) == []


@pytest.mark.parametrize(
    "query",
    ['"', "in OR", "NEAR(", "title : x", "^", "-", "*", "'; DROP TABLE words", "\0", "x" * 10_000, "( ) { }"],
)
def test_a_query_is_text_and_never_syntax(catalog, query):
    add(catalog, 1, "a title")
    assert found(catalog, query) == ([1] if query == "title : x" else [])


def test_rare_words_and_short_titles_come_first(catalog):
    for number in range(1, 20):
        add(catalog, number, f"on the {'holiday' if number % 4 == 0 else 'beach'} part {number}")
    add(catalog, 20, "a holiday with a camel")
    add(catalog, 21, "camel")
    assert found(catalog, "holiday camel")[:2] == [20, 21]
    assert found(catalog, "camel") == [21, 20]


def test_texts_of_metadata_are_found_at_any_depth_and_names_and_numbers_are_not(catalog):
    add(catalog, 1, metadata={"camera": "North", "tags": ["Hund", {"place": "Kreta"}], "lens": 50})
    assert [found(catalog, query) for query in ("north", "hund", "kreta", "camera", "50")] == [[1]] * 3 + [
        []
    ] * 2


def test_a_transcript_is_found_passage_by_passage(catalog):
    add(catalog, 1, transcripts=[spoken(*["blah"] * 30, "the camel speaks", *["blah"] * 30)])
    matches = catalog.find_words("camel")
    number = int(matches.passages[0])
    (transcript,) = catalog.transcripts.of_videos(["video-1"])["video-1"]
    passage = list(passages([transcript]))[number - 1]
    assert any("camel" in line.text for line in transcript.lines[passage.first : passage.end])
    assert (
        transcript.lines[passage.end - 1].start_seconds - transcript.lines[passage.first].start_seconds
        <= PASSAGE_SECONDS
    )


def test_every_change_is_followed(catalog):
    first = add(catalog, 1, "camel", metadata={"place": "desert"}, transcripts=[spoken("hello")])
    catalog.update_video(first, title="llama")
    assert (found(catalog, "camel"), found(catalog, "llama"), found(catalog, "desert")) == ([], [1], [1])
    catalog.patch_video(first, {"metadata": {"place": "mountain"}})
    assert (found(catalog, "desert"), found(catalog, "mountain")) == ([], [1])
    before = catalog.sequence
    catalog.transcripts.put(first, spoken("goodbye"))
    catalog.transcripts.put(first, spoken("auf wiedersehen", track="de"))
    assert (found(catalog, "hello"), found(catalog, "goodbye"), found(catalog, "wiedersehen")) == (
        [],
        [1],
        [1],
    )
    assert [change.kind for change in catalog.changes_since(before)] == ["update", "update"]
    catalog.transcripts.delete(first, "en")
    assert (found(catalog, "goodbye"), found(catalog, "wiedersehen")) == ([], [1])
    assert verify(catalog.address).is_clean
    catalog.delete_video(first)
    assert all(found(catalog, word) == [] for word in ("llama", "mountain", "wiedersehen"))
    assert verify(catalog.address).is_clean


def test_a_transaction_that_fails_leaves_no_words(catalog):
    with pytest.raises(RuntimeError), catalog.transaction() as transaction:
        catalog.add_video(new := _video(1, "camel"), transaction)
        assert new.title == "camel"
        raise RuntimeError
    assert found(catalog, "camel") == []


def _video(number, title):
    from tests.support.catalog_builders import new_video

    return new_video(number, [make_segment(RANDOM)], title=title)


def test_transcripts_come_back_as_they_were_and_their_files_too(catalog):
    file = TranscriptFile("file:///a/b.en.srt", 10, 20)
    given = Transcript("en", (Line(1.0, 2.5, "Cafe\u0301"), Line(0.5, 1.0, "first")), file)
    video = add(catalog, 1, transcripts=[given])
    assert catalog.transcripts.of_videos([video, "other"]) == {video: [check_transcript(given)]}
    assert catalog.transcripts.files_of_videos([video]) == {video: {"en": file}}
    assert check_transcript(given).lines == (Line(0.5, 1.0, "first"), Line(1.0, 2.5, "Café"))


@pytest.mark.parametrize(
    "transcript",
    [
        spoken(),
        spoken("a", track=""),
        spoken("a", track="../x"),
        spoken("a", track="a" * 41),
        Transcript("en", (Line(2.0, 1.0, "a"),)),
        Transcript("en", (Line(-1.0, 1.0, "a"),)),
        Transcript("en", (Line(float("nan"), 1.0, "a"),)),
        Transcript("en", (Line(0.0, float("inf"), "a"),)),
        spoken("a\0b"),
        spoken("\ud800"),
        spoken("x" * (5 << 20)),
    ],
)
def test_a_transcript_that_cannot_be_is_refused(catalog, transcript):
    video = add(catalog, 1)
    with pytest.raises(InvalidRecordError):
        catalog.transcripts.put(video, transcript)
    with pytest.raises(InvalidRecordError):
        add(catalog, 2, transcripts=[transcript])
    assert catalog.transcripts.of_videos([video]) == {} and catalog.num_videos == 1


def test_tracks_are_bounded_and_what_is_not_there_is_said(catalog):
    video = add(catalog, 1, transcripts=[spoken("a", track=f"t{n}") for n in range(MAX_TRACKS)])
    with pytest.raises(InvalidRecordError, match="16"):
        catalog.transcripts.put(video, spoken("a", track="another"))
    catalog.transcripts.put(video, spoken("new", track="t3"))
    assert found(catalog, "new") == [1]
    with pytest.raises(TranscriptNotFoundError):
        catalog.transcripts.delete(video, "another")
    with pytest.raises(VideoNotFoundError):
        catalog.transcripts.put("no-such", spoken("a"))


def test_common_words_choose_nothing_and_a_query_of_them_alone_gives_the_latest(catalog, monkeypatch):
    for module in (word_rows, index_of_words, postgres_words):
        monkeypatch.setattr(module, "MAX_ROWS", 5)
    monkeypatch.setattr(word_rows, "COMMON_ROWS", 4)
    for number in range(1, 11):
        add(catalog, number, f"the clip {number}" if number != 7 else "the camel clip")
    matches = catalog.find_words("the camel")
    assert (matches.video_keys.tolist(), matches.is_cut) == ([7], False)
    assert [word.text for word in matches.words] == ["camel"]
    matches = catalog.find_words("the clip")
    assert (matches.video_keys.tolist(), matches.is_cut) == ([10, 9, 8, 7, 6], True)
    # A word that is nowhere takes no one's place.
    assert catalog.find_words("unheard-of the clip").video_keys.tolist() == [10, 9, 8, 7, 6]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(st.sampled_from("abé黑猫跑 -'ガゴต์ि"), max_size=12), min_size=1, max_size=4),
    st.text(st.sampled_from("abé黑猫跑 -'ガゴต์ि"), max_size=6),
)
def test_python_finds_in_a_text_what_the_database_finds(catalog, titles, query):
    for video_id in catalog.video_ids():  # Of the example before.
        catalog.delete_video(video_id)
    added = [add(catalog, number, title) for number, title in enumerate(titles)]
    words = words_of_query(query)
    expected = {
        video_id
        for video_id, title in zip(added, titles, strict=True)
        if any(found_in(word, terms_of(title)) for word in words)
    }
    spans = catalog.segments_of_videos(found(catalog, query))
    infos = catalog.segment_infos(spans.segment_ids)
    assert {info.video_id for info in infos.values()} == expected


def _to_format_5(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        for table in ("words", "transcripts", "words_to_fill"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 5")
    connection.close()


def test_an_index_from_before_is_filled_in_several_transactions_and_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(index_of_words, "FILLED_AT_ONCE", 3)
    with create_catalog(tmp_path) as catalog:
        for number in range(1, 9):
            add(catalog, number, f"camel {number}", metadata={"n": "desert"})
        path = catalog.path
    _to_format_5(path)
    with Catalog.open(tmp_path) as catalog:
        assert len(found(catalog, "camel")) == len(found(catalog, "desert")) == 8
    assert "indexing the words" in caplog.text
    caplog.clear()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()
    with Catalog.open(tmp_path) as catalog:
        assert verify(tmp_path).is_clean
    assert not caplog.records


def test_filling_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(index_of_words, "FILLED_AT_ONCE", 3)
    with create_catalog(tmp_path) as catalog:
        for number in range(1, 9):
            add(catalog, number, f"camel {number}")
        path = catalog.path
    _to_format_5(path)
    from indexer.store.sqlite import catalog as catalog_module

    calls = []

    def interrupted(connection):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return index_of_words.fill_words(connection)

    monkeypatch.setattr(catalog_module, "fill_words", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Catalog.open(tmp_path)
    monkeypatch.setattr(catalog_module, "fill_words", index_of_words.fill_words)
    with Catalog.open(tmp_path) as catalog:
        assert len(found(catalog, "camel")) == 8 and verify(tmp_path).is_clean


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM words WHERE rowid = (SELECT min(rowid) FROM words)",
        "UPDATE words SET title = 'other' WHERE rowid = (SELECT min(rowid) FROM words)",
        "INSERT INTO words (rowid, title) VALUES (99 << 20, 'of nothing')",
    ],
)
def test_verify_finds_words_that_are_wrong_and_rebuild_makes_them_again(tmp_path, statement):
    with create_catalog(tmp_path) as catalog:
        add(catalog, 1, "camel", transcripts=[spoken("llama")])
        add(catalog, 2, "camel too")
        path = catalog.path
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    findings = verify(tmp_path).findings
    assert [finding.part for finding in findings] == ["words"] and findings[0].is_derived
    rebuild(tmp_path)
    assert verify(tmp_path).is_clean
    with Catalog.open(tmp_path) as catalog:
        assert (sorted(found(catalog, "camel")), found(catalog, "llama")) == ([1, 2], [1])


def test_a_transcript_that_was_damaged_is_noticed(tmp_path):
    with create_catalog(tmp_path) as catalog:
        video = add(catalog, 1, transcripts=[spoken("camel")])
        with catalog.transaction() as transaction:
            transaction.connection.execute("UPDATE transcripts SET track = 'de'")
        with pytest.raises(IndexDamagedError):
            catalog.transcripts.of_videos([video])
    assert "catalog" in {finding.part for finding in verify(tmp_path).findings}


def test_passages_hold_every_line_once():
    lines = spoken(*(f"line {n} " + "x" * (n % 300) for n in range(500)), step_seconds=1.7)
    both = [lines, spoken("short", track="de")]
    seen: dict[str, list[int]] = {"de": [], "en": []}
    for passage in passages(both):
        assert passage.first < passage.end
        seen[passage.track] += range(passage.first, passage.end)
    assert seen == {"de": [0], "en": list(range(500))}
