"""Merge patches of the title and metadata of a video."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from indexer.errors import InvalidRecordError, VideoNotFoundError
from indexer.store.filters import parse_filter
from indexer.store.records import merge_patch
from indexer.store.store import Store
from tests.support.catalog_builders import add_video, make_segment
from tests.support.stores import StoreFactory


@pytest.fixture
def catalog(store_factory: StoreFactory) -> Store[Any]:
    catalog = store_factory.create()
    segment = make_segment(np.random.default_rng(0))
    add_video(catalog, 1, [segment], title="one", metadata={"a": 1, "b": {"c": 2, "d": [1]}})
    add_video(catalog, 2, [segment], title="two")
    return catalog


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [  # Those of RFC 7396's appendix A whose patch is an object.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merging_is_that_of_rfc_7396(target: Any, patch: dict[str, Any], result: dict[str, Any]) -> None:
    before = repr(target)
    assert merge_patch(target, patch) == result
    assert repr(target) == before


def test_a_patch_changes_what_it_names_and_is_logged(catalog: Store[Any]) -> None:
    before = catalog.get_video("video-1")
    record = catalog.patch_video("video-1", {"metadata": {"a": None, "b": {"c": True}}})
    assert record == catalog.get_video("video-1")
    assert record.title == "one" and record.metadata == {"b": {"c": True, "d": [1]}}
    assert record.sequence == before.sequence, "its place in lists stays"
    (change,) = catalog.changes_since(2)
    assert (change.kind, change.video_id, change.segment_ids) == ("update", "video-1", ())
    assert catalog.patch_video("video-1", {"title": None, "metadata": None}).metadata == {}
    assert catalog.get_video("video-1").title is None


def test_a_patch_that_changes_nothing_is_not_logged(catalog: Store[Any]) -> None:
    for patch in ({}, {"title": "one"}, {"metadata": {}}, {"metadata": {"a": 1, "zebra": None}}):
        catalog.patch_video("video-1", patch)
    assert catalog.sequence == 2
    catalog.patch_video("video-1", {"metadata": {"a": True}})  # Equal to 1 for Python, not in JSON.
    assert catalog.sequence == 3


def test_a_patch_that_is_refused_changes_nothing(catalog: Store[Any]) -> None:
    def refuse(merged: Any) -> Any:
        raise ValueError(f"{len(merged)} members")

    with pytest.raises(ValueError, match="3 members"):
        catalog.patch_video("video-1", {"title": "new", "metadata": {"z": 1}}, check=refuse)
    for patch in ({"uri": "x"}, {"metadata": []}, {"title": 3}, {"metadata": {"x": float("nan")}}):
        with pytest.raises(InvalidRecordError):
            catalog.patch_video("video-1", patch)
    with pytest.raises(VideoNotFoundError):
        catalog.patch_video("unknown", {"title": "x"})
    assert catalog.sequence == 2 and catalog.get_video("video-1").title == "one"


def test_concurrent_patches_undo_nothing_of_each_other(catalog: Store[Any]) -> None:
    barrier = threading.Barrier(8)

    def patch(number: int) -> None:
        barrier.wait()
        catalog.patch_video("video-1", {"metadata": {f"key {number}": number}})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(patch, range(8)))
    assert {f"key {number}" for number in range(8)} <= catalog.get_video("video-1").metadata.keys()


def test_a_list_is_filtered_and_paged(catalog: Store[Any]) -> None:
    segment = make_segment(np.random.default_rng(1))
    for number in range(3, 12):
        add_video(catalog, number, [segment], metadata={"number": number})
    chosen = parse_filter({"metadata.number": {"gte": 5}})
    first = catalog.list_videos(4, chosen=chosen)
    assert [record.id for record in first] == ["video-11", "video-10", "video-9", "video-8"]
    rest = catalog.list_videos(4, first[-1].sequence, chosen=chosen)
    assert [record.id for record in rest] == ["video-7", "video-6", "video-5"]
