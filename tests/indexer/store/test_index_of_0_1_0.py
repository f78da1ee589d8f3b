"""An index made by version 0.1.0 opens: brought to today's format in one transaction, nothing lost.

tests/data/index-0.1.0 was made with the code of that version and the demo model: three of four videos, one of
them changed, three jobs; the other archive is the same index after it was reindexed to segments of at most
four seconds, with both generations. expected.json says what that version answered. The demo model has been
trained again since; of the one of that version model.safetensors holds what scores one query: the query's
features, the matrices and the scale.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from indexer.errors import IndexDamagedError
from indexer.maintenance.backup import backup, restore
from indexer.maintenance.reindexing import roll_back
from indexer.maintenance.verification import verify
from indexer.search.searcher import Searcher
from indexer.search.types import SearchQuery
from indexer.store.checksums import checksum_of_row
from indexer.store.filters import parse_filter
from indexer.store.job import FailureReason
from indexer.store.sqlite import schema
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.files import FileTable, KeptOutTable
from indexer.store.sqlite.jobs import JobQueue
from model import TextFeatures, XClip, XClipConfig
from tests.support.catalog_builders import add_and_finish, add_video, make_segment

DATA = Path(__file__).resolve().parents[2] / "data/index-0.1.0"
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(DATA / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return unpack("index", tmp_path)


@pytest.fixture(scope="module")
def demo_model() -> XClip:
    """That of version 0.1.0, which knows one query."""
    tensors = load_file(DATA / "model.safetensors")
    text = TextFeatures(*(tensors.pop(f"text.{name}") for name in ("sentence", "words", "word_mask")))
    model = XClip(XClipConfig.from_json((DATA / "model.json").read_text(encoding="utf-8"))).eval()
    _, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    model.__dict__["_weights_fingerprint"] = EXPECTED["model_fingerprint"]

    def encode(input_ids: Tensor) -> TextFeatures:
        return text[[0] * len(input_ids)]

    model.encode_tokens = encode  # type: ignore[method-assign]
    return model


def check_results(index: Path, model: XClip, expected: list[list[Any]]) -> None:
    with Searcher(index, model) as searcher:
        for mode in ("exhaustive", "rerank"):
            results = searcher.search(SearchQuery(EXPECTED["query"], mode=mode)).results
            assert [result.id for result in results] == [video_id for video_id, _ in expected]
            # Another processor may round features and scores otherwise.
            wanted = [score for _, score in expected]
            np.testing.assert_allclose([result.score for result in results], wanted, rtol=1e-3)


@pytest.fixture(params=[3, 4])
def index_of_format(request: pytest.FixtureRequest, index: Path) -> Path:
    """The same index in the formats of versions 0.1.0 and 0.2.0."""
    if request.param == 4:
        connection = sqlite3.connect(index / "catalog.sqlite3", isolation_level=None)
        schema._MIGRATIONS[3](connection)
        connection.execute("PRAGMA user_version = 4")
        connection.close()
    return index


def test_it_is_searched_as_before(index: Path, demo_model: XClip) -> None:
    check_results(index, demo_model, EXPECTED["results"])
    assert verify(index).is_clean


def test_nothing_that_it_holds_is_lost(index_of_format: Path) -> None:
    index = index_of_format
    with Catalog.open(index, fingerprint=EXPECTED["fingerprint"]) as catalog:
        assert catalog.sequence == EXPECTED["sequence"]
        assert {video.id: video.title for video in catalog.list_videos()} == EXPECTED["titles"]
        chosen = parse_filter({"metadata.tags": "é", "metadata.year": 2024})
        assert [video.title for video in catalog.list_videos(chosen=chosen)] == ["A title of version 0.1.0"]
        queue = JobQueue(catalog)
        assert {job.id: job.state for job in queue.list_jobs()} == EXPECTED["jobs"]
        (failed,) = queue.list_jobs(state="failed")
        assert (failed.reason, failed.failure) == ("the file is empty", FailureReason.UNKNOWN)
        (waiting,) = queue.list_jobs(state="queued")
        assert (waiting.title, waiting.metadata, waiting.delete_source) == ("waits", {"n": 1}, True)


def test_it_takes_videos_and_ends_jobs(index: Path) -> None:
    random = np.random.default_rng(0)
    with Catalog.open(index) as catalog:
        segment = make_segment(random, catalog.embedding_dim, catalog.num_frames)
        assert add_video(catalog, 1, [segment]).created
        leased = JobQueue(catalog).lease("worker", 60.0)
        assert leased is not None
        add_and_finish(catalog, 2, [segment], leased, id=leased.video_id)
        assert JobQueue(catalog).counts()["done"] == 2 and catalog.num_videos == 5
    assert verify(index).is_clean


def test_its_backup_is_restored(index: Path, tmp_path: Path) -> None:
    backup(index, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    with Catalog.open(tmp_path / "restored") as catalog:
        assert catalog.num_videos == len(EXPECTED["titles"])


def test_a_reindexed_one_is_searched_as_before_and_goes_back(tmp_path: Path, demo_model: XClip) -> None:
    index = unpack("two-generations", tmp_path)
    expected = EXPECTED["two_generations"]
    with Catalog.open(index, fingerprint=expected["fingerprint"]) as catalog:
        assert (catalog.generation, catalog.num_segments) == (2, expected["num_segments"])
    check_results(index, demo_model, expected["results"])
    assert verify(index).is_clean
    roll_back(index)
    check_results(index, demo_model, EXPECTED["results"])
    with Catalog.open(index) as catalog:
        assert {job.id: job.state for job in JobQueue(catalog).list_jobs()} == EXPECTED["jobs"]


def test_a_migration_that_fails_leaves_the_former_format(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def broken(connection: sqlite3.Connection) -> None:
            whole(connection)
            connection.execute("INSERT INTO nowhere VALUES (1)")

        whole = schema._MIGRATIONS[4]
        patch.setitem(schema._MIGRATIONS, 4, broken)
        with pytest.raises(IndexDamagedError):
            Catalog.open(index)
    connection = sqlite3.connect(index / "catalog.sqlite3")
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    assert connection.execute("SELECT count(*) FROM idempotency_keys").fetchone() == (1,)
    connection.close()
    Catalog.open(index).close()


def test_its_records_get_what_was_not_known_of_them(index_of_format: Path) -> None:
    with Catalog.open(index_of_format) as catalog:
        for video in catalog.list_videos():
            assert (video.media_start_seconds, video.recorded_at, video.missing_since) == (0.0, None, None)
        assert FileTable(catalog).find([video.uri or "" for video in catalog.list_videos()]) == {}
        assert KeptOutTable(catalog).list_all() == []
    assert verify(index_of_format).is_clean


def test_its_titles_and_metadata_are_found_in_whichever_unicode_form(index_of_format: Path) -> None:
    decomposed, composed = "Cafe\u0301", "Caf\u00e9"
    columns = schema._VIDEO_COLUMNS_OF_4
    connection = sqlite3.connect(index_of_format / "catalog.sqlite3", isolation_level=None)
    values = list(connection.execute(f"SELECT {columns} FROM videos WHERE number = 1").fetchone())
    values[3], values[4] = decomposed, json.dumps({decomposed: [decomposed]}, ensure_ascii=False)
    connection.execute(
        "UPDATE videos SET title = ?, metadata = ?, row_crc32 = ? WHERE number = 1",
        (values[3], values[4], checksum_of_row(values)),
    )
    connection.close()
    with Catalog.open(index_of_format) as catalog:
        for text in (composed, decomposed):
            for chosen in (
                {"title": text},
                {f"metadata.{text}": text},
                {"title": {"contains": text.upper()}},
            ):
                (video,) = catalog.list_videos(chosen=parse_filter(chosen))
                assert (video.title, video.metadata) == (composed, {composed: [composed]})
    assert verify(index_of_format).is_clean


def test_a_record_that_was_damaged_before_stays_so(index_of_format: Path) -> None:
    connection = sqlite3.connect(index_of_format / "catalog.sqlite3", isolation_level=None)
    connection.execute("UPDATE videos SET width = width + 1 WHERE number = 1")
    connection.close()
    assert [finding.part for finding in verify(index_of_format).findings] == ["catalog"]
