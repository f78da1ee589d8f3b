"""Damaged files: the answer is right or an error, never silently wrong, and `verify` finds what was done."""

from __future__ import annotations

import shutil
import sqlite3

import numpy as np
import pytest

from indexer.coarse.index import CoarseIndex
from indexer.errors import BackupDamagedError, IndexDamagedError
from indexer.maintenance.backup import backup, restore
from indexer.maintenance.verification import rebuild, verify
from indexer.search.searcher import FilterCache
from indexer.store.filters import parse_filter
from indexer.store.sqlite import integrity
from indexer.store.sqlite.catalog import Catalog
from tests.faults import damage_cases
from tests.faults.damage_cases import SHARES, Case, Judge, cases
from tests.support.catalog_builders import add_video, create_catalog, make_segment

GOOD = ("right", "noticed")


def bad_outcomes(judge: Judge, num_cases: int, seed: int) -> tuple[int, list[str]]:
    """How many cases there were, and those that are neither right nor noticed."""
    judged = [(case, *judge.outcome(case)) for case in cases(num_cases, seed)]
    assert {outcome for _, outcome, _ in judged} >= {"right", "noticed"}, "the damage does reach something"
    bad = [f"{outcome}: {case}: {why}" for case, outcome, why in judged if outcome not in GOOD]
    return len(judged), bad


def test_no_damage_to_any_file_leads_to_a_wrong_answer(tmp_path):
    num_cases, bad = bad_outcomes(Judge(tmp_path), 120, seed=0)
    assert num_cases >= 120 and bad == []


def test_a_schema_that_is_no_text_any_more_is_damage(tmp_path):
    """SQLite names what it cannot parse, and Python cannot decode its message then."""
    create_catalog(tmp_path / "index", embedding_dim=8, num_frames=4).close()
    path = tmp_path / "index" / "catalog.sqlite3"
    content = path.read_bytes()
    assert b"tablekept_out" in content
    path.write_bytes(content.replace(b"tablekept_out", b"tablekept_\xf5ut"))
    with pytest.raises(IndexDamagedError, match="malformed database schema"):
        Catalog.open(tmp_path / "index")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_damage_of_many_more_leads_to_a_wrong_answer(tmp_path):
    num_cases, bad = bad_outcomes(Judge(tmp_path), 1000, seed=1)
    assert num_cases >= 1000 and bad == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_of_a_catalog_too_large_to_be_read_whole_neither(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "WHOLE_SIZE_BYTES", 0)
    num_cases, bad = bad_outcomes(Judge(tmp_path), 500, seed=2)
    assert num_cases >= 500 and bad == []


def test_the_judge_sees_a_wrong_answer_and_what_verify_misses(tmp_path, monkeypatch):
    judge = Judge(tmp_path)
    case = Case("index", "catalog.sqlite3", "bit", 0)

    def change(path, case):
        """As damage would that no checksum notices."""
        with Catalog.open(path.parent) as catalog:
            catalog.update_video("video-0", title="changed")

    monkeypatch.setattr(damage_cases, "damage", change)
    assert judge.outcome(case)[0] == "silently wrong"
    monkeypatch.setattr(damage_cases, "damage", lambda path, case: path.write_bytes(b"no database"))
    monkeypatch.setattr(damage_cases, "verify", lambda path: type("Clean", (), {"is_clean": True}))
    assert judge.outcome(case)[0] == "missed by verify"


def test_every_kind_of_file_is_damaged(tmp_path):
    damage_cases.make_indexes(tmp_path)
    patterns = {file for _, file in SHARES}
    for of in {of for of, _ in SHARES}:
        for path in (tmp_path / of).rglob("*"):
            # SQLite's own files: it reads its log up to what is not what was written.
            if path.is_file() and not path.name.endswith(("-shm", "-wal")):
                assert any(path.match(pattern) for pattern in patterns), path


# What is looked at when a catalog is opened


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "index"
    random = np.random.default_rng(0)
    with create_catalog(directory) as catalog:
        for number in range(8):
            add_video(catalog, number, [make_segment(random)] * 2, title=f"t{number}", metadata={"n": number})
        CoarseIndex.build(catalog).save()
    return directory


def change(directory, *statements):
    connection = sqlite3.connect(directory / "catalog.sqlite3", isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def lose_index_entry(directory, name: str, column: str, value: object) -> None:
    """An index of SQLite no longer leads to a row that is there."""
    connection = sqlite3.connect(directory / "catalog.sqlite3", isolation_level=None)
    (sql,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = ? WHERE name = ?",
        (f"{sql} WHERE {column} != {value}", name),
    )
    connection.close()
    connection = sqlite3.connect(directory / "catalog.sqlite3", isolation_level=None)
    connection.execute(f"REINDEX {name}")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, name))
    connection.close()


@pytest.mark.parametrize("whole_size_bytes", [0, integrity.WHOLE_SIZE_BYTES])
def test_rows_that_an_index_does_not_lead_to_are_noticed_at_opening_and_rebuilt(
    directory, monkeypatch, whole_size_bytes
):
    monkeypatch.setattr(integrity, "WHOLE_SIZE_BYTES", whole_size_bytes)
    lose_index_entry(directory, "segments_by_video", "video_number", 3)
    with pytest.raises(IndexDamagedError, match="segments_by_video"):
        Catalog.open(directory)
    assert not verify(directory).is_clean
    rebuild(directory)
    with Catalog.open(directory) as catalog:
        assert len(catalog.video_segments("video-2")) == 2
    assert verify(directory).is_clean


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE totals SET num_videos = 9",
        "DELETE FROM totals",
        "DELETE FROM changes WHERE sequence = 8",
        "UPDATE sqlite_sequence SET seq = 3 WHERE name = 'segments'",
        "UPDATE sqlite_sequence SET seq = 700 WHERE name = 'changes'",
        "UPDATE facts SET value = '0.5' WHERE name = 'created_at'",
    ],
)
def test_what_has_no_checksum_of_its_own_is_noticed_at_opening(directory, statement):
    Catalog.open(directory).close()
    change(directory, statement)
    with pytest.raises(IndexDamagedError):
        Catalog.open(directory)
    assert not verify(directory).is_clean


def test_a_number_of_a_deleted_segment_is_not_given_again(directory):
    with Catalog.open(directory) as catalog:
        catalog.delete_video("video-7")
    change(directory, "UPDATE sqlite_sequence SET seq = 14 WHERE name = 'segments'")
    with pytest.raises(IndexDamagedError, match="given before"):
        Catalog.open(directory)


def test_totals_are_made_again(directory):
    change(directory, "DELETE FROM totals")
    assert rebuild(directory) == (8, 16)
    Catalog.open(directory).close()


def test_a_large_catalog_is_opened_without_reading_it_whole(directory, monkeypatch):
    monkeypatch.setattr(integrity, "CHECKED_SIZE_BYTES", 1000)
    change(directory, "UPDATE totals SET num_videos = 9")
    Catalog.open(directory).close()
    change(directory, "DELETE FROM changes WHERE sequence = 8")
    with pytest.raises(IndexDamagedError, match="last change"):
        Catalog.open(directory)


# What is looked at whenever something is read, however large the catalog is


@pytest.fixture
def large(directory, monkeypatch):
    monkeypatch.setattr(integrity, "CHECKED_SIZE_BYTES", 0)
    return directory


def test_a_segment_whose_frames_are_gone_is_not_left_out(large):
    change(large, "DELETE FROM segment_frames WHERE segment_id = 5")
    with Catalog.open(large) as catalog:
        for read in (lambda: catalog.segment_features([5]), lambda: list(catalog.iterate_features())):
            with pytest.raises(IndexDamagedError, match="segment 5"):
                read()


def test_a_segment_that_is_not_found_and_has_frames_is_not_left_out(large):
    change(large, "PRAGMA foreign_keys = OFF", "DELETE FROM segments WHERE id = 5")
    with Catalog.open(large) as catalog:
        for read in (catalog.segment_features, catalog.segment_infos, catalog.video_features):
            with pytest.raises(IndexDamagedError, match="segment 5"):
                read([4, 5])
            assert len(read([4, 999])) > 0
        with pytest.raises(IndexDamagedError, match="16 segments 15 are found"):
            CoarseIndex.build(catalog)


def test_a_segment_whose_video_is_gone_is_not_left_out(large):
    change(large, "PRAGMA foreign_keys = OFF", "DELETE FROM videos WHERE id = 'video-2'")
    with Catalog.open(large) as catalog, pytest.raises(IndexDamagedError, match="segment 5"):
        catalog.segment_infos([5])


def test_a_gap_in_the_change_log_is_never_followed(large):
    change(large, "DELETE FROM changes WHERE sequence = 4")
    with Catalog.open(large) as catalog:
        with pytest.raises(IndexDamagedError, match="change 4 is missing"):
            catalog.changes_since(1)
        assert len(catalog.changes_since(5)) == 3


def test_values_of_other_types_are_damage(large):
    connection = sqlite3.connect(large / "catalog.sqlite3", isolation_level=None)
    connection.execute("UPDATE videos SET title = CAST(x'ff' AS TEXT) WHERE id = 'video-3'")
    connection.close()
    with Catalog.open(large) as catalog, pytest.raises(IndexDamagedError):
        catalog.get_video("video-3")


def test_a_change_does_not_cover_up_damage(large):
    change(large, "UPDATE videos SET title = 'flipped' WHERE id = 'video-3'")
    with Catalog.open(large) as catalog:
        with pytest.raises(IndexDamagedError):
            catalog.update_video("video-3", metadata={"n": 7})
        with pytest.raises(IndexDamagedError):
            catalog.get_video("video-3")
    assert not verify(large).is_clean


def test_a_filter_does_not_miss_a_video_for_a_damaged_record(directory):
    change(directory, "UPDATE videos SET metadata = '{\"n\":70}' WHERE id = 'video-3'")
    with Catalog.open(directory) as catalog:
        matches = FilterCache(catalog)
        for _ in range(2):
            with pytest.raises(IndexDamagedError, match="video number 4"):
                matches.matching(parse_filter({"metadata.n": {"lt": 5}}))
        catalog.delete_video("video-3")
        assert len(matches.matching(parse_filter({"metadata.n": {"lt": 5}}))) == 8


# The end of the log


FRAME_BYTES = 24 + 8192


@pytest.fixture
def killed(directory, tmp_path):
    """What a killed process leaves: eight videos, and a ninth and a tenth in the log alone."""
    random = np.random.default_rng(1)
    with Catalog.open(directory) as catalog:
        add_video(catalog, 8, [make_segment(random)])
        add_video(catalog, 9, [make_segment(random)])
        shutil.copytree(directory, tmp_path / "killed")
    return tmp_path / "killed"


def damage_last_frame(directory, *, flip: bool) -> None:
    """Flip a bit of the log's last frame, or cut the log off before it; its index is gone."""
    path = directory / "catalog.sqlite3-wal"
    content = bytearray(path.read_bytes())
    num_frames = (len(content) - 32) // FRAME_BYTES
    start = 32 + FRAME_BYTES * (num_frames - 1)
    if flip:
        content[start + 4000] ^= 4
    else:
        del content[start:]
    path.write_bytes(content)
    (directory / "catalog.sqlite3-shm").unlink()


def num_videos(directory) -> int:
    with Catalog.open(directory) as catalog:
        return catalog.num_videos


def test_a_whole_log_is_taken_in(killed):
    assert num_videos(killed) == 10


@pytest.mark.parametrize("flip", [True, False])
def test_after_a_power_failure_the_change_that_was_being_written_is_no_damage(killed, flip):
    damage_last_frame(killed, flip=flip)
    assert num_videos(killed) == 9
    assert verify(killed).is_clean


def test_a_log_under_way_is_no_damage(directory):
    random = np.random.default_rng(2)
    with Catalog.open(directory) as writer:
        for number in range(20, 60):
            add_video(writer, number, [make_segment(random)])
            if number % 10 == 0:
                with writer.connections.reading() as connection:
                    how = ("PASSIVE", "RESTART", "TRUNCATE")[number // 10 % 3]
                    connection.execute(f"PRAGMA wal_checkpoint({how})").fetchall()
            assert num_videos(directory) == number - 20 + 1 + 8


# A backup


def test_a_changed_manifest_of_a_backup_is_noticed(directory, tmp_path):
    backup(directory, tmp_path / "backup")
    path = tmp_path / "backup" / "backup.json"
    path.write_text(path.read_text().replace('"index_directory": "/', '"index_directory": "/0'))
    with pytest.raises(BackupDamagedError, match=r"backup\.json is damaged"):
        restore(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()
