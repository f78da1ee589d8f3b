"""What is known of files, and content that is kept out."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from indexer.errors import IndexDamagedError, InvalidRecordError, KeptOutError, VideoNotFoundError
from indexer.maintenance.verification import rebuild, verify
from indexer.store.postgres import files as postgres_files
from indexer.store.records import KnownFile
from indexer.store.sqlite import connections, files
from indexer.store.store import Store, open_store
from tests.support.catalog_builders import add_video, make_segment, new_video, sha256_of
from tests.support.stores import StoreFactory


@pytest.fixture
def catalog(store_factory: StoreFactory) -> Store[Any]:
    return store_factory.create()


def known(uri: str, number: int = 0, **changes: object) -> KnownFile:
    file = KnownFile(
        uri, size_bytes=10, modified_ns=1_700_000_000_123_456_789, content_sha256=sha256_of(number)
    )
    return replace(file, **changes)  # type: ignore[arg-type]


def execute(catalog: Store[Any], statement: str) -> None:
    connection = sqlite3.connect(catalog.path, isolation_level=None)
    connection.execute(statement)
    connection.close()


def test_files_are_found_by_address_content_and_folder(
    catalog: Store[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (connections, files):
        monkeypatch.setattr(module, "VALUES_AT_ONCE", 2)
    monkeypatch.setattr(postgres_files, "ROWS_AT_ONCE", 2)
    table = catalog.files
    listed = [known(f"file:///a/{name}", number) for number, name in enumerate("cabde")]
    other = [known("file:///a-b/x", 1), known("file:///a.mp4", 2), known("file:///a0", 3)]
    table.remember([*listed, *other])
    assert table.find([file.uri for file in listed] + ["file:///none"]) == {file.uri: file for file in listed}
    assert {file.uri for file in table.with_content([sha256_of(1)])} == {"file:///a/a", "file:///a-b/x"}
    assert list(table.below("file:///a")) == sorted(listed, key=lambda file: file.uri)


def test_what_is_remembered_last_counts(catalog: Store[Any]) -> None:
    table = catalog.files
    table.remember([known("file:///x", 1, failure="it holds no video", version="1")])
    table.remember([known("file:///x", 2)])
    assert table.find(["file:///x"]) == {"file:///x": known("file:///x", 2)}
    table.forget(["file:///x", "file:///y"])
    assert table.find(["file:///x"]) == {}


@pytest.mark.store("sqlite")
def test_a_damaged_row_of_a_file_is_as_good_as_none_and_rebuild_forgets_it(catalog: Store[Any]) -> None:
    add_video(catalog, 1, [make_segment(np.random.default_rng(0))])
    catalog.files.remember([known("file:///x"), known("file:///y")])
    execute(catalog, "UPDATE files SET size_bytes = 11 WHERE uri = 'file:///x'")
    assert catalog.files.find(["file:///x", "file:///y"]).keys() == {"file:///y"}
    (finding,) = verify(catalog.address).findings
    assert (finding.part, finding.is_derived) == ("files", True) and "file:///x" in finding.problem
    rebuild(catalog.index_directory)
    assert verify(catalog.address).is_clean


def test_content_that_is_kept_out_comes_back_only_when_it_is_let_in(catalog: Store[Any]) -> None:
    segments = [make_segment(np.random.default_rng(0))]
    add_video(catalog, 1, segments, title="private", uri="file:///x")
    catalog.delete_video("video-1", keep_out=True)
    with pytest.raises(KeptOutError, match="video-1"):
        add_video(catalog, 1, segments)
    table = catalog.kept_out
    (kept_out,) = table.list_all()
    assert (kept_out.video_id, kept_out.title, kept_out.uri) == ("video-1", "private", "file:///x")
    assert table.find([sha256_of(1), sha256_of(2)]) == {sha256_of(1): kept_out}
    assert table.let_in(kept_out.content_sha256) and not table.let_in(kept_out.content_sha256)
    assert add_video(catalog, 1, segments).created


def test_content_that_is_deleted_otherwise_may_come_back(catalog: Store[Any]) -> None:
    segments = [make_segment(np.random.default_rng(0))]
    add_video(catalog, 1, segments)
    catalog.delete_video("video-1")
    assert add_video(catalog, 1, segments).created
    with pytest.raises(VideoNotFoundError):
        catalog.delete_video("video-2", keep_out=True)
    assert catalog.kept_out.list_all() == []


@pytest.mark.store("sqlite")
def test_a_damaged_row_of_kept_out_content_is_noticed(catalog: Store[Any]) -> None:
    add_video(catalog, 1, [make_segment(np.random.default_rng(0))])
    catalog.delete_video("video-1", keep_out=True)
    execute(catalog, "UPDATE kept_out SET title = 'other'")
    with pytest.raises(IndexDamagedError):
        catalog.kept_out.list_all()
    assert [finding.part for finding in verify(catalog.address).findings] == ["catalog"]


def test_videos_are_found_by_address_content_size_and_folder(catalog: Store[Any]) -> None:
    random = np.random.default_rng(0)
    for number, uri in enumerate(["file:///a/x", "file:///a/b/y", "file:///a/x", "file:///ab", None]):
        add_video(catalog, number, [make_segment(random)], uri=uri)
    found = catalog.find_by_uris(["file:///a/x", "file:///none"])
    assert {uri: [video.id for video in videos] for uri, videos in found.items()} == {
        "file:///a/x": ["video-0", "video-2"]
    }
    assert catalog.find_by_contents([sha256_of(3), sha256_of(9)])[sha256_of(3)].id == "video-3"
    assert catalog.known_sizes([1000, 1003, 5]) == {1000, 1003}
    assert [video.id for video in catalog.videos_below("file:///a")] == ["video-1", "video-0", "video-2"]


def test_one_file_gives_way_to_another_in_one_transaction(catalog: Store[Any]) -> None:
    random = np.random.default_rng(0)
    add_video(catalog, 1, [make_segment(random)])
    with catalog.transaction() as transaction:
        catalog.delete_video("video-1", transaction)
        with open_store(catalog.address) as other:
            assert other.video_ids() == ["video-1"]
        catalog.add_video(new_video(2, [make_segment(random)], id="video-1"), transaction)
    assert [video.content_sha256 for video in catalog.list_videos()] == [sha256_of(2)]
    assert verify(catalog.address).is_clean


def test_a_time_that_is_none_is_refused(catalog: Store[Any]) -> None:
    with pytest.raises(InvalidRecordError, match="recorded_at"):
        add_video(catalog, 1, [make_segment(np.random.default_rng(0))], recorded_at=float("nan"))
