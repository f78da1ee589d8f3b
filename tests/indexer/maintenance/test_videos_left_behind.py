"""Videos that a new generation could not take over: the former one keeps them, and their files stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from indexer.maintenance.reindexing import ReindexReport, discard_others, reindex, roll_back
from indexer.maintenance.verification import verify
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from service.ingest.media_store import MediaStore, sweep
from tests.support.catalog_builders import create_catalog
from tests.support.reindex_stand_in import (
    OTHER_SAMPLING,
    SAMPLING,
    StandIn,
    encoder_of,
    fingerprint_of,
    write_clip,
)

LEFT, KEPT, ORPHAN = "a" * 32, "b" * 32, "c" * 32


def run(index: Path) -> ReindexReport:
    return reindex(index, encoder_of(OTHER_SAMPLING), allow_missing=True)


def upload(catalog: Catalog, video_id: str, **fields: Any) -> Path:
    """An indexed video whose file lies in the store."""
    path = catalog.index_directory / "media" / f"{video_id}.bin"
    write_clip(path, f"bytes of {video_id}".encode())
    StandIn(catalog).add(path, id=video_id, **fields)
    return path


def swept(index: Path) -> list[str]:
    """Names in the store after cleaning up for the current generation."""
    store = MediaStore(index)
    with Catalog.open(index) as catalog:
        sweep(store, catalog, JobQueue(catalog))
    return sorted(path.name for path in store.media_directory.iterdir())


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Two generations, after a switch that left LEFT behind, whose file was other bytes then."""
    index = tmp_path / "index"
    with create_catalog(
        index, fingerprint=fingerprint_of(SAMPLING), sampling_json=SAMPLING.to_json(), model_spec="stand-in"
    ) as catalog:
        upload(catalog, KEPT)
        write_clip(upload(catalog, LEFT, title="left"), b"other bytes")
    MediaStore(index).prepare()
    report = run(index)
    assert report.switched and [video_id for video_id, _ in report.missing] == [LEFT]
    return index


def test_files_that_any_generation_names_are_kept_until_it_is_discarded(index: Path) -> None:
    write_clip(index / "media" / f"{ORPHAN}.bin")
    assert swept(index) == [f"{LEFT}.bin", f"{KEPT}.bin"]
    discard_others(index)
    assert swept(index) == [f"{KEPT}.bin"]


def test_nothing_is_deleted_where_a_former_generation_cannot_be_read(index: Path) -> None:
    write_clip(index / "media" / f"{ORPHAN}.bin")
    for path in index.glob("catalog.sqlite3-*"):
        path.unlink()
    (index / "catalog.sqlite3").write_bytes(b"not a catalog" * 1000)
    assert len(swept(index)) == 3


def test_a_video_that_was_not_encoded_is_there_again_after_going_back(index: Path) -> None:
    with Catalog.open(index) as catalog:
        upload(catalog, "d" * 32)
    report = roll_back(index)
    assert (report.num_hidden, report.num_returned) == (1, 1)
    with Catalog.open(index) as catalog:
        assert catalog.get_video(LEFT).title == "left"
        assert set(catalog.video_ids()) == {LEFT, KEPT}
    # The file of a video that only the other generation has stays too.
    assert f"{'d' * 32}.bin" in swept(index)
    assert verify(index).is_clean
