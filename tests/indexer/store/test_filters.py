"""Filters: what they mean, held to a plain reading of the same words; and searches that keep to them."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import date
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.coarse.exact import SegmentSet
from indexer.coarse.index import CoarseIndex
from indexer.errors import DuplicateIdError, InvalidQueryError
from indexer.search.searcher import FilterCache
from indexer.store.checksums import checksum_of_row
from indexer.store.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, parse_filter
from indexer.store.video_rows import COLUMNS
from tests.support.catalog_builders import add_video, create_catalog, make_segment

RANGES = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


# What a filter means, read word by word from the module's own description.


def kind_of(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    return "number" if isinstance(value, int | float) else type(value).__name__


def nfc(value: Any) -> Any:
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


def same(one: Any, other: Any) -> bool:
    return kind_of(one) == kind_of(other) and one == nfc(other)


def caseless(text: str) -> str:
    return nfc(nfc(text).casefold())


def moment(value: Any) -> Fraction | None:
    """Days since the year 1 of a date or time as RFC 3339 writes them, by hand."""
    found = isinstance(value, str) and re.fullmatch(
        r"(\d{4})-(\d\d)-(\d\d)([Tt ](\d\d):(\d\d)(:(\d\d)(\.\d+)?)?([Zz]|([+-])(\d\d):(\d\d))?)?",
        value,
        re.ASCII,
    )
    if not found:
        return None
    year, month, day, hours, minutes, seconds, zone_hours, zone_minutes = (
        int(found[group] or 0) for group in (1, 2, 3, 5, 6, 8, 12, 13)
    )
    try:
        days = date(year, month, day).toordinal()
    except ValueError:
        return None
    zone = (60 * zone_hours + zone_minutes) * (-1 if found[11] == "-" else 1)
    if hours > 23 or minutes > 59 or seconds > 60 or zone_hours > 23 or zone_minutes > 59:
        return None
    return days + Fraction(60 * (60 * hours + minutes - zone) + seconds, 86_400)


def lies_within(element: Any, bounds: dict[str, Any]) -> bool:
    for name, bound in bounds.items():
        if kind_of(element) != kind_of(bound):
            return False
        one, other = moment(element), moment(bound)
        if one is None or other is None:
            one, other = element, nfc(bound)
        if not RANGES[name](one, other):
            return False
    return True


def lies_below(uri: str, folder: str) -> bool:
    """By the names of the folders on the way."""
    folder = f"file://{folder}" if folder.startswith("/") else folder
    parts, wanted = ([nfc(unquote(part)) for part in text.split("/")] for text in (uri, folder))
    if wanted[-1] == "":
        return len(parts) >= len(wanted) and parts[: len(wanted) - 1] == wanted[:-1]
    return parts[: len(wanted)] == wanted


def found_at(metadata: Any, keys: list[str]) -> tuple[bool, Any]:
    for key in keys:
        if not isinstance(metadata, dict) or key not in metadata:
            return False, None
        metadata = metadata[key]
    return True, metadata


def fulfils(video: dict[str, Any], chosen: dict[str, Any]) -> bool:
    return all(holds(video, name, value) for name, value in chosen.items())


def holds(video: dict[str, Any], name: str, value: Any) -> bool:
    if name == "and":
        return all(fulfils(video, one) for one in value)
    if name == "or":
        return any(fulfils(video, one) for one in value)
    if name == "not":
        return not fulfils(video, value)
    if name.startswith("metadata."):
        exists, found = found_at(video["metadata"], nfc(name).split(".")[1:])
        elements = found if isinstance(found, list) else [found]
        elements = [] if not exists or isinstance(found, dict) else elements
    else:
        found = video[name]
        exists, elements = found is not None, [found]
    if not isinstance(value, dict):
        value = {"eq": value}
    if "exists" in value:
        return exists is value["exists"]
    if "eq" in value:
        return any(same(element, value["eq"]) for element in elements)
    if "in" in value:
        return any(same(element, one) for element in elements for one in value["in"])
    if "contains" in value:
        return any(isinstance(one, str) and caseless(value["contains"]) in caseless(one) for one in elements)
    if "prefix" in value:
        return found is not None and lies_below(found, value["prefix"])
    if not name.startswith("metadata."):  # Columns of text have no dates.
        return found is not None and all(RANGES[one](found, nfc(bound)) for one, bound in value.items())
    return any(lies_within(element, value) for element in elements)


keys = st.sampled_from(["a", "b", "c d", "ä", "a\u0308"])
TIMES = [
    "2024-05-01", "2024-05-01T00:00:00Z", "2024-05-01t02:00:00+02:00", "2024-04-30 23:59:59.5-00:30",
    "2024-05-01T10:00", "2024-04-30T22:00:00", "2016-12-31T23:59:60Z", "2017-01-01T00:00:00.25Z",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-23:59", "2024-06-31", "0000-01-01", "2024-05",
    "2024-05-01T25:00:00Z", "2024-05-01T00:00:00+24:00",
]  # fmt: skip
times = st.sampled_from(TIMES)
texts = (
    st.sampled_from(["", "x", "X", "x y", "3", "true", "é", "E\u0301", "Straße", "STRASSE", "z" * 40]) | times
)
parts = st.sampled_from(["x", "Y", "é", "e", "e\u0301", "ss", "strasse", "05-01", " "])
FOLDERS = [
    "file:///a",
    "file:///a/",
    "/a/b",
    "/a/b/",
    "file:///a%20b",
    "/a b",
    "file:///caf%C3%A9",
    "/cafe\u0301/",
    "https://h/a",
    "/",
]
URIS = ["file:///a", "file:///a/b", "file:///a/b/1.mp4", "file:///ab/1.mp4", "file:///a%20b/1.mp4", "file:///caf%C3%A9/1.mp4",
    "file:///cafe%CC%81/2.mp4", "https://h/a/1.mp4", "https://h/ab"]  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, -0.0, 1e300, 2**53 + 1, 2**62, -(2**63)]), st.floats(-3, 3)
)
scalars = st.one_of(texts, numbers, st.booleans(), st.none())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
)
metadatas = st.dictionaries(keys, values, max_size=4)
metadata_fields = st.lists(keys, min_size=1, max_size=2).map(lambda path: ".".join(["metadata", *path]))


def ranges(bounds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(sorted(RANGES)), bounds, min_size=1, max_size=2)


def conditions(like: st.SearchStrategy[Any], bounds: list[st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return st.one_of(
        like,
        like.map(lambda value: {"eq": value}),
        st.lists(like, min_size=1, max_size=3).map(lambda several: {"in": several}),
        st.booleans().map(lambda truth: {"exists": truth}),
        *[ranges(one) for one in bounds],
    )


leaves = st.one_of(
    st.dictionaries(metadata_fields, conditions(scalars, [texts, numbers]), min_size=1, max_size=2),
    st.fixed_dictionaries({"title": conditions(texts, [texts])}),
    st.fixed_dictionaries({"id": conditions(st.sampled_from(["video-0", "video-1", "x"]), [texts])}),
    st.fixed_dictionaries({"title": st.fixed_dictionaries({"contains": parts})}),
    st.dictionaries(metadata_fields, st.fixed_dictionaries({"contains": parts}), min_size=1, max_size=2),
    st.dictionaries(metadata_fields, ranges(times), min_size=1, max_size=1),
    st.fixed_dictionaries({"uri": st.sampled_from(FOLDERS).map(lambda folder: {"prefix": folder})}),
    st.fixed_dictionaries({"duration_seconds": conditions(st.sampled_from([10.0, 20, 30.5]), [numbers])}),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
    ),
    max_leaves=5,
)


videos_and_filters = (
    st.lists(
        st.tuples(metadatas, st.none() | texts.filter(bool), st.none() | st.sampled_from(URIS)),
        min_size=1,
        max_size=6,
    ),
    st.lists(filters, min_size=1, max_size=8),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(*videos_and_filters)
def test_a_filter_matches_the_videos_that_a_plain_evaluation_of_it_matches(store_factory, videos, chosen):
    catalog = store_factory.only_one()
    for video_id in catalog.video_ids():  # Of the example before.
        catalog.delete_video(video_id)
    random = np.random.default_rng(0)
    records, segments = [], {}
    for number, (metadata, title, uri) in enumerate(videos):
        segments_of_it = [make_segment(random) for _ in range(number % 2 + 1)]
        add_video(catalog, number, segments_of_it, metadata=metadata, title=title, uri=uri)
        records.append(vars(catalog.get_video(f"video-{number}")))
        segments[number] = [info.segment_id for info in catalog.video_segments(f"video-{number}")]
    matches = FilterCache(catalog)
    for one in chosen:
        expected = sorted(i for n, video in enumerate(records) if fulfils(video, one) for i in segments[n])
        assert matches.matching(parse_filter(one)).ids.tolist() == expected, one


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ([], "filter must be an object"),
        ({}, "filter must be an object that is not empty"),
        ({"colour": "red"}, "filter.(field 1): there is no such field"),
        ({"metadata": {"a": 1}}, "filter.(field 1): there is no such field"),
        ({"metadata.": 1}, "a key of metadata is not empty"),
        ({'metadata.a"b': 1}, "no quotation mark"),
        ({"metadata.a\ud800": 1}, "no quotation mark"),
        ({"metadata.a": {}}, "must be one comparison"),
        ({"metadata.a": {"eq": 1, "gt": 0}}, "must be one comparison"),
        ({"metadata.a": {"like": "x"}}, "filter.metadata.(key) has a comparison that does not exist"),
        ({"metadata.a": [1, 2]}, 'say {"in": [...]}'),
        ({"metadata.a": {"in": []}}, "must be a list of 1 to"),
        ({"metadata.a": {"in": 3}}, "must be a list of 1 to"),
        ({"metadata.a": {"in": list(range(MAX_VALUES + 1))}}, "must be a list of 1 to"),
        ({"metadata.a": {"in": [{}]}}, "text, numbers, true, false or null"),
        ({"metadata.a": {"gt": 1, "lt": "b"}}, "all numbers or all text"),
        ({"metadata.a": {"contains": 3}}, "filter.metadata.(key).contains must be a non-empty text"),
        ({"metadata.a": {"contains": ""}}, "must be a non-empty text"),
        ({"title": {"contains": "x\0"}}, "zero character"),
        ({"id": {"contains": "x"}}, "contains is for title and metadata, prefix for uri"),
        ({"uri": {"contains": "x"}}, "contains is for title and metadata, prefix for uri"),
        ({"uri": {"gt": "x"}}, "a range not for uri"),
        ({"uri": {"prefix": None}}, "must be a non-empty text"),
        ({"title": {"prefix": "x"}}, "prefix for uri"),
        ({"metadata.a": {"prefix": "x"}}, "prefix is for uri"),
        ({"recorded_at": {"gte": "yesterday"}}, "date and time"),
        ({"metadata.a": {"gt": True}}, "numbers or text"),
        ({"metadata.a": {"gt": None}}, "numbers or text"),
        ({"metadata.a": {"exists": 1}}, "must be true or false"),
        ({"metadata.a": math.nan}, "finite"),
        ({"metadata.a": 10**400}, "finite"),
        ({"metadata.a": "\ud800"}, "not valid Unicode"),
        ({"metadata.a": "x" * 2000}, "longer than"),
        ({"metadata.a": "x\0"}, "zero character"),
        ({"title": {"in": ["x\0"]}}, "zero character"),
        ({"title": 3}, "must be compared with text"),
        ({"title": {"gt": None}}, "must be compared with text"),
        ({"duration_seconds": "long"}, "must be compared with a number"),
        ({"duration_seconds": True}, "must be compared with a number"),
        ({"added_at": {"gte": "yesterday"}}, "date and time"),
        ({"and": []}, "a list of filters that is not empty"),
        ({"or": {"title": "a"}}, "a list of filters"),
        ({"not": [{"title": "a"}]}, "filter.not must be an object"),
        ({"or": [{"title": "a"}, {"colour": 1}]}, "filter.or[1].(field 1)"),
        ({"or": [{"title": "a"}] * (MAX_CONDITIONS + 1)}, f"more than {MAX_CONDITIONS} conditions"),
    ],
)
def test_what_is_no_filter_is_refused_with_its_position(wrong, place):
    with pytest.raises(InvalidQueryError) as error:
        parse_filter(wrong)
    assert place in str(error.value)


def test_an_error_never_repeats_what_came_in():
    for wrong in ({"secret": 1}, {"metadata.secret": {"secret": 1}}, {"metadata.secret": {"gt": None}}):
        with pytest.raises(InvalidQueryError) as error:
            parse_filter({"or": [wrong]})
        assert "secret" not in str(error.value)


def test_a_filter_that_is_too_deep_is_refused():
    deep: dict[str, Any] = {"title": "a"}
    for _ in range(MAX_DEPTH + 1):
        deep = {"not": deep}
    with pytest.raises(InvalidQueryError, match="levels deep"):
        parse_filter(deep)


def test_a_value_never_becomes_part_of_the_sql(store_factory):
    with store_factory.create() as catalog:
        add_video(
            catalog, 1, [make_segment(np.random.default_rng(0))], title="x' OR 1=1 --", metadata={"k'": 1}
        )
        matches = FilterCache(catalog)
        assert len(matches.matching(parse_filter({"title": "' OR 1=1 --"}))) == 0
        assert len(matches.matching(parse_filter({"title": "x' OR 1=1 --"}))) == 1
        assert len(matches.matching(parse_filter({"metadata.k'": 1}))) == 1


def test_the_time_added_is_compared_with_seconds_or_with_a_date(store_factory):
    with store_factory.create() as catalog:
        catalog.clock = lambda: 1_000_000_000.0  # 2001-09-09T01:46:40Z
        add_video(catalog, 1, [make_segment(np.random.default_rng(0))])
        matches = FilterCache(catalog)
        for early in (999_999_999, "2001-09-09", "2001-09-09T01:46:39Z", "2001-09-09T03:46:39+02:00"):
            assert len(matches.matching(parse_filter({"added_at": {"gt": early}}))) == 1
            assert len(matches.matching(parse_filter({"added_at": {"lte": early}}))) == 0


def test_a_name_is_found_in_whichever_unicode_form_it_was_given(store_factory):
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    with store_factory.create() as catalog:
        for number, text in enumerate((composed, decomposed)):
            segments = [make_segment(np.random.default_rng(number))]
            add_video(catalog, number, segments, title=text, metadata={text: [text, 1]})
        catalog.update_video("video-0", title=decomposed)
        catalog.patch_video("video-1", {"title": decomposed, "metadata": {"x": {decomposed: decomposed}}})
        assert [video.title for video in catalog.list_videos()] == [composed] * 2
        assert catalog.get_video("video-1").metadata == {composed: [composed, 1], "x": {composed: composed}}
        for text in (composed, decomposed):
            for chosen in (
                {"title": text},
                {"title": {"in": ["x", text]}},
                {f"metadata.{text}": text},
                {f"metadata.{text}": {"gte": text, "lte": text}},
            ):
                assert len(catalog.list_videos(chosen=parse_filter(chosen))) == 2, chosen


def test_an_id_is_found_in_whichever_unicode_form_it_was_given(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    random = np.random.default_rng(0)
    with create_catalog(tmp_path) as catalog:
        add_video(catalog, 0, [make_segment(random)], id=decomposed)
        add_video(catalog, 1, [make_segment(random)], id="other")
        with pytest.raises(DuplicateIdError):
            add_video(catalog, 2, [make_segment(random)], id=composed)
        for text in (composed, decomposed):
            assert catalog.get_video(text).id == composed
            assert len(catalog.video_segments(text)) == 1
            assert catalog.update_video(text, title=text).id == composed
            assert catalog.patch_video(text, {"metadata": {"a": text}}).metadata == {"a": composed}
            assert [video.id for video in catalog.list_videos(chosen=parse_filter({"id": text}))] == [
                composed
            ]
        catalog.delete_video(decomposed)
        assert {change.video_id for change in catalog.changes_since(0)} == {composed, "other"}
        # An index of an earlier version keeps the ids that it has.
        with catalog.connections.transaction() as connection:
            connection.execute("UPDATE videos SET id = ?", (decomposed,))
            row = connection.execute(f"SELECT {COLUMNS} FROM videos").fetchone()
            connection.execute("UPDATE videos SET row_crc32 = ?", (checksum_of_row(row),))
        assert catalog.get_video(decomposed).id == decomposed
        assert len(catalog.list_videos(chosen=parse_filter({"id": decomposed}))) == 1


def test_metadata_whose_names_would_become_equal_is_stored_as_it_is(store_factory):
    metadata = {"Caf\u00e9": 1, "Cafe\u0301": 2}
    with store_factory.create() as catalog:
        add_video(catalog, 0, [make_segment(np.random.default_rng(0))], metadata=metadata)
        assert catalog.get_video("video-0").metadata == metadata


def test_times_of_the_metadata_are_compared_as_moments_whatever_their_zone(store_factory):
    with store_factory.create() as catalog:
        taken = ["2024-05-01T00:30:00+02:00", "2024-04-30T22:29:59Z", "2024-05-01", "spring"]
        for number, text in enumerate(taken):
            add_video(
                catalog, number, [make_segment(np.random.default_rng(number))], metadata={"taken": [text, 1]}
            )

        def found(condition: dict[str, Any]) -> list[int]:
            chosen = parse_filter({"metadata.taken": condition})
            return sorted(int(video.id[6:]) for video in catalog.list_videos(chosen=chosen))

        assert found({"gte": "2024-04-30T17:30:00-05:00"}) == [0, 2, 3]  # By code points, "spring" is later.
        assert found({"gte": "2024-04-30T17:30:00-05:00", "lt": "2024-05-01"}) == [0]
        assert found({"lt": "2024-04-30T22:30:00Z"}) == [1]
        assert found({"gt": "2024-04-30T23:59:59.999999Z", "lte": "2024-05-01"}) == [2]
        assert found({"gte": "2024-05", "lt": "2024-06"}) == [0, 2]  # Neither is a date.
        assert found({"eq": "2024-04-30T22:30:00Z"}) == []


def test_a_uri_is_found_by_its_folder_however_it_is_written(store_factory):
    uris = ["file:///films/caf%C3%A9/a.mp4", "file:///films/cafe%CC%81/b%20c.mp4", "file:///films/caf%E9/d.mp4",
        "file:///films2/e.mp4", "https://example.org/films/f.mp4", None, "/films/g.mp4"]  # fmt: skip
    with store_factory.create() as catalog:
        for number, uri in enumerate(uris):
            add_video(catalog, number, [make_segment(np.random.default_rng(number))], uri=uri)

        def found(condition: object) -> list[int]:
            chosen = parse_filter({"uri": condition})
            return sorted(int(video.id[6:]) for video in catalog.list_videos(chosen=chosen))

        for folder in ("/films", "/films/", "file:///films", "file://localhost/films/"):
            assert found({"prefix": folder}) == [0, 1, 2, 6]
        for folder in ("/films/café", "/films/cafe\u0301/", "file:///films/caf%C3%A9"):
            assert found({"prefix": folder}) == [0, 1]
        assert found({"prefix": "file:///films/caf%E9"}) == [2]
        assert found({"prefix": "https://example.org"}) == [4]
        assert found({"prefix": "/films/caf"}) == []
        assert found("/films/cafe\u0301/b c.mp4") == [1]
        assert found({"in": ["/films/g.mp4", "file:///films2/e.mp4"]}) == [3, 6]
        assert found({"exists": False}) == found(None) == [5]


def test_remembered_matches_follow_additions_deletions_and_new_metadata(store_factory):
    random = np.random.default_rng(1)
    chosen = parse_filter({"metadata.kept": True})
    with store_factory.create() as catalog, store_factory.create() as other:
        matches = FilterCache(catalog)
        live: set[int] = set()
        for step in range(120):
            action = random.integers(4)
            if action <= 1 or not live:
                kept = bool(random.integers(2))
                add_video(catalog, step, [make_segment(random) for _ in range(2)], metadata={"kept": kept})
                live.add(step)
            elif action == 2:
                catalog.delete_video(f"video-{live.pop()}")
            else:
                number = int(random.choice(sorted(live)))
                catalog.update_video(f"video-{number}", metadata={"kept": bool(random.integers(2))})
            if step == 60:
                catalog.forget_changes(catalog.sequence)
            uncached = FilterCache(catalog).matching(chosen)
            assert matches.matching(chosen).ids.tolist() == uncached.ids.tolist()
            assert matches.matching(chosen) is matches.matching(chosen), "kept with its bitmap"
        assert len(FilterCache(other).matching(chosen)) == 0


def test_only_the_filters_used_last_are_remembered(store_factory):
    with store_factory.create() as catalog:
        add_video(catalog, 1, [make_segment(np.random.default_rng(0))], metadata={"n": 1})
        matches = FilterCache(catalog, max_filters=2)
        for number in (1, 2, 3, 1):
            assert len(matches.matching(parse_filter({"metadata.n": number}))) == (number == 1)
        assert len(matches._kept) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_a_filtered_coarse_search_is_the_whole_order_without_the_others(tmp_path, share):
    random = np.random.default_rng(2)
    with create_catalog(tmp_path) as catalog:
        for number in range(300):
            add_video(catalog, number, [make_segment(random)])
        index = CoarseIndex.build(catalog)
        for number in range(300, 340):  # In the delta.
            add_video(catalog, number, [make_segment(random)])
        for number in (5, 17, 320):
            catalog.delete_video(f"video-{number}")
        index.follow()
        query = random.standard_normal((1, 8)).astype(np.float32)
        scores, ids = index.search(query, 1000)
        allowed = np.sort(random.permutation(np.arange(1, 341))[: round(share * 340)])
        found_scores, found_ids = index.search(query, 1000, SegmentSet(allowed))
        inside = np.isin(ids[0], allowed)
        assert found_ids[0].tolist() == ids[0][inside].tolist()
        assert found_scores[0].tolist() == scores[0][inside].tolist()
        few = index.search(query, 7, SegmentSet(allowed))[1][0]
        assert few.tolist() == ids[0][inside][:7].tolist()


def test_equal_filters_are_equal_trees_and_1_is_not_true():
    parsed = [parse_filter({"metadata.a": {"in": [value]}}) for value in (1, True, "1", None)]
    assert len(set(parsed)) == 4
    assert parse_filter({"metadata.a": 1}) == parsed[0] and hash(parse_filter({"metadata.a": 1})) == hash(
        parsed[0]
    )
    assert parse_filter({"title": None}) == parse_filter({"title": {"exists": False}})
    bounds = [parse_filter({"added_at": bound}) for bound in ({"gt": 1, "lt": 5}, {"lt": 5.0, "gt": 1.0})]
    assert bounds[0] == bounds[1]
