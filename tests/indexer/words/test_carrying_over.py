"""Transcripts and words go wherever the videos go: backups, exports, other generations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.ingest.pipeline import IndexEvent
from indexer.maintenance.backup import backup, restore
from indexer.maintenance.exporting import export_index
from indexer.maintenance.importing import import_index
from indexer.maintenance.reindexing import Progress, reindex
from indexer.maintenance.verification import verify
from indexer.store.sqlite.catalog import Catalog
from indexer.store.transcripts import Line, Transcript, TranscriptFile
from tests.support.catalog_builders import add_video, create_catalog, make_segment
from tests.support.reindex_stand_in import (
    OTHER_SAMPLING,
    SAMPLING,
    StandIn,
    facts_of,
    fingerprint_of,
    write_clip,
)

ENGLISH = Transcript("en", tuple(Line(float(n), n + 0.5, f"line {n}") for n in range(3_000)))
GERMAN = Transcript("de", (Line(1.0, 2.0, "Kamel"),), TranscriptFile("file:///a/b.de.srt", 5, 7))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    with create_catalog(tmp_path / "index") as catalog:
        for number, transcripts in enumerate(([], [ENGLISH, GERMAN], [], [GERMAN], []), start=1):
            add_video(
                catalog, number, [make_segment(random)], title=f"clip {number}", transcripts=transcripts
            )
    return tmp_path / "index"


def contents(directory: Path) -> dict[str, Any]:
    assert verify(directory).is_clean
    with Catalog.open(directory) as catalog:
        return {
            "transcripts": catalog.transcripts.of_videos(catalog.video_ids()),
            "found": [sorted(catalog.find_words(text).video_keys.tolist()) for text in ("kamel", "clip")],
        }


def test_a_backup_has_them(index, tmp_path):
    backup(index, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(index)


@pytest.mark.parametrize("with_frames", [True, False])
def test_an_export_has_them(index, tmp_path, with_frames):
    pytest.importorskip("pyarrow")
    export_index(index, tmp_path / "export", with_frames=with_frames)
    assert list((tmp_path / "export").glob("transcripts-*.parquet"))
    if with_frames:
        import_index(tmp_path / "export", tmp_path / "imported")
        assert contents(tmp_path / "imported") == contents(index)
        assert contents(index)["found"] == [[2, 4], [1, 2, 3, 4, 5]]


def test_an_export_from_before_there_were_transcripts_is_imported(index, tmp_path):
    pytest.importorskip("pyarrow")
    from indexer.atomic_files import sha256_of_json

    export_index(index, tmp_path / "export")
    path = tmp_path / "export" / "export.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["format"] = 2
    content["files"] = {name: part for name, part in content["files"].items() if "transcripts" not in name}
    path.write_text(json.dumps({**content, "sha256": sha256_of_json(content)}))
    for part in (tmp_path / "export").glob("transcripts-*"):
        part.unlink()
    import_index(tmp_path / "export", tmp_path / "imported")
    assert contents(tmp_path / "imported") == {"transcripts": {}, "found": [[], [1, 2, 3, 4, 5]]}


def test_a_new_generation_has_them_also_those_that_change_meanwhile(tmp_path):
    path = tmp_path / "index"
    facts: dict[str, Any] = {"fingerprint": fingerprint_of(SAMPLING), "sampling_json": SAMPLING.to_json()}
    with create_catalog(path, model_spec="stand-in", **facts) as catalog:
        for name in ("a", "b", "c"):
            write_clip(tmp_path / "files" / name)
            StandIn(catalog).add(
                tmp_path / "files" / name, id=name, uri=(tmp_path / "files" / name).as_uri(), title="clip"
            )
        catalog.transcripts.put("a", ENGLISH)
        catalog.transcripts.put("b", GERMAN)

        def change(event: IndexEvent) -> None:
            if event.video_id == "c":
                catalog.transcripts.put("a", GERMAN)
                catalog.transcripts.delete("b", "de")

        make_pipeline: Any = StandIn
        reindex(path, facts_of(OTHER_SAMPLING), make_pipeline, progress=Progress(on_event=change))
    found = contents(path)
    assert found["transcripts"] == {"a": [GERMAN, ENGLISH]}
    assert [len(numbers) for numbers in found["found"]] == [1, 3]
