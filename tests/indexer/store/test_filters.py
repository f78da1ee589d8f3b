"""Filters: what they mean, held to a plain reading of the same words; and searches that keep to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.coarse.index import CoarseIndex
from indexer.errors import InvalidQueryError
from indexer.search.caches import FilterCache
from indexer.store.filters import MAX_CONDITIONS, MAX_DEPTH, MAX_VALUES, parse_filter
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


def same(one: Any, other: Any) -> bool:
    return kind_of(one) == kind_of(other) and one == other


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
        exists, found = found_at(video["metadata"], name.split(".")[1:])
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
    return any(
        all(
            kind_of(element) == kind_of(bound) and RANGES[name](element, bound)
            for name, bound in value.items()
        )
        for element in elements
    )


keys = st.sampled_from(["a", "b", "c d", "ä"])
texts = st.sampled_from(["", "x", "X", "x y", "3", "true", "é", "z" * 40])
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


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(metadatas, st.none() | texts.filter(bool)), min_size=1, max_size=6),
    st.lists(filters, min_size=1, max_size=8),
)
def test_a_filter_matches_the_videos_that_a_plain_evaluation_of_it_matches(tmp_path_factory, videos, chosen):
    directory = tmp_path_factory.mktemp("index")
    random = np.random.default_rng(0)
    with create_catalog(directory) as catalog:
        records, segments = [], {}
        for number, (metadata, title) in enumerate(videos):
            count = number % 2 + 1
            add_video(
                catalog, number, [make_segment(random) for _ in range(count)], metadata=metadata, title=title
            )
            records.append(vars(catalog.get_video(f"video-{number}")))
            segments[number] = [info.segment_id for info in catalog.video_segments(f"video-{number}")]
        matches = FilterCache(catalog)
        for one in chosen:
            expected = sorted(
                i for n, video in enumerate(records) if fulfils(video, one) for i in segments[n]
            )
            assert matches.segment_ids(parse_filter(one)).tolist() == expected, one


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


def test_a_value_never_becomes_part_of_the_sql(tmp_path):
    with create_catalog(tmp_path) as catalog:
        add_video(
            catalog, 1, [make_segment(np.random.default_rng(0))], title="x' OR 1=1 --", metadata={"k'": 1}
        )
        matches = FilterCache(catalog)
        assert len(matches.segment_ids(parse_filter({"title": "' OR 1=1 --"}))) == 0
        assert len(matches.segment_ids(parse_filter({"title": "x' OR 1=1 --"}))) == 1
        assert len(matches.segment_ids(parse_filter({"metadata.k'": 1}))) == 1


def test_the_time_added_is_compared_with_seconds_or_with_a_date(tmp_path):
    with create_catalog(tmp_path) as catalog:
        catalog.clock = lambda: 1_000_000_000.0  # 2001-09-09T01:46:40Z
        add_video(catalog, 1, [make_segment(np.random.default_rng(0))])
        matches = FilterCache(catalog)
        for early in (999_999_999, "2001-09-09", "2001-09-09T01:46:39Z", "2001-09-09T03:46:39+02:00"):
            assert len(matches.segment_ids(parse_filter({"added_at": {"gt": early}}))) == 1
            assert len(matches.segment_ids(parse_filter({"added_at": {"lte": early}}))) == 0


def test_a_name_is_found_in_whichever_unicode_form_it_was_given(tmp_path):
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    with create_catalog(tmp_path) as catalog:
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


def test_metadata_whose_names_would_become_equal_is_stored_as_it_is(tmp_path):
    metadata = {"Caf\u00e9": 1, "Cafe\u0301": 2}
    with create_catalog(tmp_path) as catalog:
        add_video(catalog, 0, [make_segment(np.random.default_rng(0))], metadata=metadata)
        assert catalog.get_video("video-0").metadata == metadata


def test_remembered_matches_follow_additions_deletions_and_new_metadata(tmp_path):
    random = np.random.default_rng(1)
    chosen = parse_filter({"metadata.kept": True})
    with create_catalog(tmp_path) as catalog, create_catalog(tmp_path / "other") as other:
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
            uncached = FilterCache(catalog).segment_ids(chosen)
            assert matches.segment_ids(chosen).tolist() == uncached.tolist()
        assert len(FilterCache(other).segment_ids(chosen)) == 0


def test_only_the_filters_used_last_are_remembered(tmp_path):
    with create_catalog(tmp_path) as catalog:
        add_video(catalog, 1, [make_segment(np.random.default_rng(0))], metadata={"n": 1})
        matches = FilterCache(catalog, max_filters=2)
        for number in (1, 2, 3, 1):
            assert len(matches.segment_ids(parse_filter({"metadata.n": number}))) == (number == 1)
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
        found_scores, found_ids = index.search(query, 1000, allowed)
        inside = np.isin(ids[0], allowed)
        assert found_ids[0].tolist() == ids[0][inside].tolist()
        assert found_scores[0].tolist() == scores[0][inside].tolist()
        few = index.search(query, 7, allowed)[1][0]
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
