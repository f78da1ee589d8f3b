"""Generations of an index: features keep to their fingerprint, and one catalog at a time takes changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.errors import (
    FingerprintMismatchError,
    IndexDamagedError,
    IndexExistsError,
    IndexNotFoundError,
    IndexSupersededError,
)
from indexer.maintenance.verification import rebuild, verify
from indexer.store.records import Successor
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.connections import write_successor
from indexer.store.sqlite.generations import (
    POINTER_FILE,
    index_exists,
    name_generation,
    named_generation,
)
from indexer.store.store import generations_of, store_exists
from tests.support.catalog_builders import FINGERPRINT, add_video, create_catalog, enqueue, make_segment
from tests.support.stores import StoreFactory

OTHER = "0123456789abcdef" * 4


def fill(catalog: Any, num_videos: int = 3) -> Any:
    random = np.random.default_rng(0)
    for number in range(num_videos):
        add_video(catalog, number, [make_segment(random), make_segment(random)])
    return catalog


def splice_a_segment(directory: Path, other: Path, segment_id: int) -> None:
    """Put a segment, features, checksums and all, from one catalog in the place of that of another."""
    connection = sqlite3.connect(directory / "catalog.sqlite3", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("ATTACH ? AS other", (str(other / "catalog.sqlite3"),))
    for table, name in (("segments", "id"), ("segment_frames", "segment_id")):
        connection.execute(f"DELETE FROM {table} WHERE {name} = ?", (segment_id,))
        connection.execute(f"INSERT INTO {table} SELECT * FROM other.{table} WHERE {name} = ?", (segment_id,))
    connection.close()


READINGS: dict[str, Callable[[Catalog], Any]] = {
    "by ids": lambda catalog: catalog.segment_features([1, 3]),
    "video features by ids": lambda catalog: catalog.video_features([1, 3]),
    "all": lambda catalog: list(catalog.iterate_features()),
    "all video features": lambda catalog: list(catalog.iterate_video_features()),
}


@pytest.mark.parametrize("reading", READINGS)
def test_features_of_another_fingerprint_are_refused_and_both_are_named(tmp_path: Path, reading: str) -> None:
    fill(create_catalog(tmp_path / "index")).close()
    fill(create_catalog(tmp_path / "other", fingerprint=OTHER)).close()
    splice_a_segment(tmp_path / "index", tmp_path / "other", 3)
    with Catalog.open(tmp_path / "index") as catalog:
        with pytest.raises(FingerprintMismatchError, match=f"segment 3 .*{OTHER}.*{FINGERPRINT}") as caught:
            READINGS[reading](catalog)
        assert (caught.value.expected, caught.value.found) == (FINGERPRINT, OTHER)
        assert len(catalog.segment_features([1, 2])) == 2
    (finding,) = verify(tmp_path / "index").findings
    assert "segment 3" in finding.problem and OTHER in finding.problem and FINGERPRINT in finding.problem


def test_a_fingerprint_is_part_of_what_the_checksums_of_features_cover(tmp_path: Path) -> None:
    with fill(create_catalog(tmp_path)) as catalog:
        connection = sqlite3.connect(catalog.path)
        with connection:
            connection.execute("UPDATE segments SET fingerprint = ? WHERE id = 3", (bytes.fromhex(OTHER),))
        connection.close()
        with pytest.raises(IndexDamagedError, match="segment 3"):
            catalog.segment_features([3])
    assert [finding.part for finding in verify(tmp_path).findings] == ["catalog"]


# Successor


def supersede(catalog: Any, generation: int, epoch: int) -> None:
    """The first step of a switch alone."""
    write: Any = write_successor
    if not isinstance(catalog, Catalog):
        from indexer.store.postgres.generations import write_successor as write
    with catalog.connections.transaction(although_superseded=True) as connection:
        write(connection, Successor(generation, epoch))


def successor(directory: Path, generation: int = 2, successor_of: int = 1) -> Catalog:
    return create_catalog(directory, fingerprint=OTHER, generation=generation, successor_of=successor_of)


def make_successor(catalog: Any) -> Any:
    facts = replace(catalog.facts, fingerprint=OTHER)
    return generations_of(catalog.address).create(facts, successor_of=catalog.generation)


WRITINGS: dict[str, Callable[[Any], Any]] = {
    "add": lambda catalog: add_video(catalog, 9, [make_segment(np.random.default_rng(1))]),
    "delete": lambda catalog: catalog.delete_video("video-1"),
    "update": lambda catalog: catalog.update_video("video-1", title="x"),
    "forget": lambda catalog: catalog.forget_changes(1),
    "enqueue": lambda catalog: enqueue(catalog.jobs, None, "/x"),
}


@pytest.mark.parametrize("writing", WRITINGS)
def test_a_superseded_catalog_is_read_and_takes_no_changes(store_factory: StoreFactory, writing: str) -> None:
    catalog = fill(store_factory.create())
    with make_successor(catalog) as later:
        assert catalog.superseded_by is None
        supersede(catalog, 2, epoch=1)
        sequence = catalog.sequence
        with pytest.raises(IndexSupersededError, match="generation 2") as caught:
            WRITINGS[writing](catalog)
        assert caught.value.generation == 2 and catalog.superseded_by == Successor(2, 1)
        assert catalog.sequence == sequence and len(catalog.segment_features([1, 2, 3])) == 3
        assert later.num_videos == 0


def test_a_generation_in_the_making_takes_changes_from_its_maker_alone(store_factory: StoreFactory) -> None:
    index = fill(store_factory.create())
    generations = generations_of(index.address)
    with make_successor(index) as maker:
        fill(maker)
        with generations.open(2) as other, pytest.raises(IndexSupersededError):
            other.delete_video("video-1")
        with generations.open(2, although_superseded=True) as maker_again:
            maker_again.delete_video("video-1")
        with store_factory.open(index.address) as current:
            assert (current.generation, current.fingerprint, current.num_videos) == (1, FINGERPRINT, 3)
    assert generations.numbers() == [1, 2]


def test_a_generation_that_is_served_can_be_removed_and_says_which_one_is_current(
    store_factory: StoreFactory,
) -> None:
    former = fill(store_factory.create())
    with make_successor(former) as later, former.transaction() as transaction:
        fill(later)
        former.hand_over(later, transaction)
    generations = generations_of(former.address)
    generations.open_current().close()
    generations.remove(1)
    assert former.superseded_by is not None and former.superseded_by.generation == 2
    with pytest.raises(IndexSupersededError):
        former.delete_video("video-1")
    with pytest.raises(IndexExistsError):
        store_factory.create(former.address)
    with store_factory.open(former.address, fingerprint=OTHER) as current:
        assert (current.generation, current.num_videos) == (2, 3)
    assert generations.numbers() == [2]


@pytest.mark.store("postgres")
def test_a_name_that_its_generation_contradicts_is_an_error(store_factory: StoreFactory) -> None:
    former = fill(store_factory.create())
    with make_successor(former):
        supersede(former, 2, epoch=1)
        with pytest.raises(IndexDamagedError, match="restore all schemas"):
            store_factory.open(former.address)


def test_opening_completes_a_switch_that_was_interrupted_after_its_first_step(tmp_path: Path) -> None:
    with fill(create_catalog(tmp_path)) as former, successor(tmp_path) as later:
        fill(later)
        supersede(former, 2, epoch=1)
        with Catalog.open(tmp_path) as current:
            assert (current.generation, current.fingerprint) == (2, OTHER)
            current.delete_video("video-1")
        with pytest.raises(IndexSupersededError):
            former.delete_video("video-1")
        # And back: the row of the higher epoch counts.
        supersede(later, 1, epoch=2)
        with Catalog.open(tmp_path) as current:
            assert current.generation == 1
            current.delete_video("video-2")
        with pytest.raises(IndexSupersededError):
            Catalog.open_generation(tmp_path, 2).delete_video("video-2")
        former.delete_video("video-1")  # It is the current one again, for those too who had it open.


def test_damage_to_the_generation_that_an_interrupted_switch_left_is_reported_and_rebuild_names_the_next(
    tmp_path: Path,
) -> None:
    with fill(create_catalog(tmp_path)) as former, successor(tmp_path) as later:
        fill(later, 5)
        supersede(former, 2, epoch=1)
    connection = sqlite3.connect(tmp_path / "catalog.sqlite3")
    with connection:
        connection.execute("UPDATE totals SET num_videos = 9")
    connection.close()
    with pytest.raises(IndexDamagedError):
        Catalog.open(tmp_path)
    (finding,) = verify(tmp_path).findings
    assert (finding.part, finding.is_derived) == ("current.json", True)
    assert rebuild(tmp_path) == (5, 10) and named_generation(tmp_path) == 2
    with Catalog.open(tmp_path) as current:
        assert current.generation == 2
    assert verify(tmp_path).is_clean


def test_the_pointer_says_where_the_current_generation_is(tmp_path: Path) -> None:
    with fill(create_catalog(tmp_path)) as former, successor(tmp_path) as later:
        supersede(former, 2, epoch=1)
        later.take_over(Successor(1, 0))
    name_generation(tmp_path, 2)
    assert named_generation(tmp_path) == 2
    for name in ("catalog.sqlite3", "catalog.sqlite3-wal", "catalog.sqlite3-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    with Catalog.open(tmp_path, fingerprint=OTHER) as current:
        assert current.directory == tmp_path / "generations" / "2" and current.index_directory == tmp_path
    assert index_exists(tmp_path)
    with pytest.raises(IndexExistsError):
        create_catalog(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_text(path.read_text().replace("2", "1", 1)),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_bytes(b"\xff" * 30),
    ],
)
def test_a_damaged_pointer_is_an_error_and_no_other_generation_is_taken(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with successor(tmp_path) as later:
        later.take_over(Successor(1, 0))
    name_generation(tmp_path, 2)
    damage(tmp_path / POINTER_FILE)
    with pytest.raises(IndexDamagedError, match=r"current\.json"):
        Catalog.open(tmp_path)


def test_an_index_that_is_not_there_is_not_found(store_factory: StoreFactory) -> None:
    index = store_factory.address()
    assert not store_exists(index)
    with pytest.raises(IndexNotFoundError):
        store_factory.open(index)
    with pytest.raises(IndexNotFoundError), generations_of(index).locked():
        pass
    store_factory.create(index).close()
    with pytest.raises(IndexNotFoundError, match=r"generation 2|_g2"):
        generations_of(index).open(2)
