"""export and import: the same index bit for bit, of one moment, and nothing damaged comes in."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from indexer.errors import IndexDamagedError, IndexExistsError, IndexNotFoundError
from indexer.ingest.encoding import index_fingerprint
from indexer.maintenance import exporting as export_files
from indexer.maintenance import importing
from indexer.maintenance import parquet as export_layout
from indexer.maintenance.exporting import export_index
from indexer.maintenance.importing import import_index
from indexer.maintenance.parquet import (
    ExportDamagedError,
    ExportFingerprintError,
    ExportManifest,
    ExportWithoutFramesError,
    PartFile,
    sha256_of_file,
)
from indexer.maintenance.verification import verify
from indexer.search.searcher import Searcher, SearchQuery
from indexer.search.types import SearchResult
from indexer.store.store import open_store, store_exists
from model import XClip, XClipConfig
from tests.support.catalog_builders import (
    FINGERPRINT,
    add_video,
    kept_changing,
    make_segment,
    sha256_of,
)
from xclip_search import app

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

REPOSITORY = Path(__file__).resolve().parents[3]
run = CliRunner().invoke

ODD_RECORDS = [
    {"title": None, "uri": None, "metadata": None},
    {"title": "", "uri": "file:///a b.mp4", "metadata": {"deep": [{"er": None}], "pi": 3.141592653589793}},
    {"title": 'é 😀 "\n\x00 end', "metadata": {"é": "\x00", "large": 2**70, "tiny": 5e-324}},
    {"partial": True, "fraction_read": 1 / 3, "frame_rate": 30000 / 1001, "codec": "av1"},
]


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def index(store_factory, random):
    """Ten videos of 1 to 3 segments, some deleted in between, with what is awkward to store."""
    address = store_factory.address()
    with store_factory.create(address) as catalog:
        catalog.clock = iter(np.linspace(1e9, 2e9, 1000) / 3).__next__
        for number in range(13):
            segments = [
                make_segment(
                    random, num_real_frames=1 + (number + position) % 4, start_seconds=10.0 * position
                )
                for position in range(1 + number % 3)
            ]
            add_video(catalog, number, segments, **ODD_RECORDS[number % 4])
            if number % 4 == 1:
                catalog.delete_video(f"video-{number - 1}")
        catalog.update_video("video-5", title="changed later")
    return address


@pytest.fixture
def new(store_factory):
    """Where no index is yet."""
    return store_factory.address()


@pytest.fixture
def small_parts(monkeypatch):
    """Many row groups and many files from few rows."""
    monkeypatch.setattr(export_files, "ROWS_PER_GROUP", 2)
    monkeypatch.setattr(export_files, "MAX_PART_BYTES", 700)
    monkeypatch.setattr("indexer.maintenance.importing.ROWS_PER_BATCH", 3)


def contents(index):
    """All records and features in the order of addition, without the catalog's own numbers."""
    with open_store(index) as catalog:
        videos = []
        for record in reversed(catalog.list_videos(limit=1000)):
            infos = catalog.video_segments(record.id)
            features = catalog.segment_features([info.segment_id for info in infos])
            times = [
                (info.start_seconds, info.end_seconds, info.num_frames, info.frame_times.tobytes())
                for info in infos
            ]
            stored = (features.video.tobytes(), features.frames.tobytes(), features.num_frames.tolist())
            videos.append((replace(record, sequence=0), times, stored))
        facts = catalog.fingerprint, catalog.model_spec, catalog.sampling_json
        return facts, (catalog.embedding_dim, catalog.num_frames), videos


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def read_parts(directory, kind):
    return parquet.read_table(sorted(directory.glob(f"{kind}-*.parquet")))


def write_again(directory, name, table):
    """Replace a file of an export and correct what export.json says of it."""
    parquet.write_table(table, directory / name)
    manifest = ExportManifest.read(directory)
    part = PartFile(table.num_rows, (directory / name).stat().st_size, sha256_of_file(directory / name))
    replace(manifest, files={**manifest.files, name: part}).write(directory)


def test_what_was_exported_and_imported_is_the_same_bit_for_bit(index, tmp_path, new):
    report = export_index(index, tmp_path / "export")
    assert (report.num_videos, report.num_files, report.with_frames) == (10, 2, True)
    imported = import_index(tmp_path / "export", new)
    assert (imported.num_added, imported.num_segments) == (10, report.num_segments)
    assert (imported.num_skipped, imported.failures) == (0, [])
    assert contents(new) == contents(index)
    checked = verify(new)
    assert checked.is_clean and checked.num_segments == report.num_segments


def test_an_index_moves_to_a_store_of_the_other_kind_and_back_bit_for_bit(
    index, tmp_path, postgres, store_kind
):
    stores = {"sqlite": tmp_path / "elsewhere", "postgres": postgres.address(folder=tmp_path)}
    (other,) = (address for kind, address in stores.items() if kind != store_kind)
    export_index(index, tmp_path / "there")
    assert import_index(tmp_path / "there", other).num_added == 10
    assert contents(other) == contents(index)
    export_index(other, tmp_path / "back")
    again = postgres.address(folder=tmp_path) if store_kind == "postgres" else tmp_path / "again"
    assert import_index(tmp_path / "back", again).num_added == 10
    assert contents(again) == contents(index) and verify(again).is_clean


def test_an_export_of_the_first_format_is_imported(index, tmp_path, new):
    export_index(index, tmp_path / "export")
    name = "videos-00000.parquet"
    table = parquet.read_table(tmp_path / "export" / name)
    manifest = replace(ExportManifest.read(tmp_path / "export"), format=1)
    manifest.write(tmp_path / "export")
    write_again(tmp_path / "export", name, table.drop_columns(list(export_layout.NEW_VIDEO_COLUMNS)))
    assert import_index(tmp_path / "export", new).num_added == 10
    assert contents(new) == contents(index)


def test_the_columns_that_came_later_are_carried(tmp_path, random, new, store_factory):
    index = store_factory.address()
    with store_factory.create(index) as catalog:
        add_video(
            catalog, 1, [make_segment(random)], media_start_seconds=1.5, recorded_at=-1.0, missing_since=2.0
        )
    export_index(index, tmp_path / "export")
    import_index(tmp_path / "export", new)
    with open_store(new) as catalog:
        (video,) = catalog.list_videos()
    assert (video.media_start_seconds, video.recorded_at, video.missing_since) == (1.5, -1.0, 2.0)


def test_content_that_is_kept_out_stays_out_of_the_imported_index(index, tmp_path, new):
    with open_store(index) as catalog:
        catalog.delete_video("video-3", keep_out=True)
        catalog.delete_video("video-5", keep_out=True)
        kept_out = catalog.kept_out.list_all()
    export_index(index, tmp_path / "export")
    import_index(tmp_path / "export", new)
    with open_store(new) as catalog:
        assert catalog.kept_out.list_all() == kept_out
        assert len(kept_out) == 2


def test_an_import_neither_brings_in_what_is_kept_out_nor_keeps_out_what_is_in(
    index, tmp_path, random, new, store_factory
):
    with store_factory.create(new) as catalog:
        for number in (3, 5):
            add_video(catalog, number, [make_segment(random)])
        catalog.delete_video("video-5", keep_out=True)
    with open_store(index) as catalog:
        catalog.delete_video("video-3", keep_out=True)
    export_index(index, tmp_path / "export")
    imported = import_index(tmp_path / "export", new)
    assert (imported.num_added, [video_id for video_id, _ in imported.failures]) == (8, ["video-5"])
    with open_store(new) as catalog:
        assert catalog.get_video("video-3").id == "video-3"
        assert [content.video_id for content in catalog.kept_out.list_all()] == ["video-5"]


def test_many_small_files_hold_the_same_as_one_large_one(index, tmp_path, small_parts, new):
    report = export_index(index, tmp_path / "export")
    assert report.num_files > 6
    assert all(part.num_rows for part in ExportManifest.read(tmp_path / "export").files.values())
    import_index(tmp_path / "export", new)
    assert contents(new) == contents(index)


def test_an_empty_index_can_be_exported_and_imported(tmp_path, new, store_factory):
    index = store_factory.address()
    store_factory.create(index).close()
    assert export_index(index, tmp_path / "export").num_videos == 0
    assert read_parts(tmp_path / "export", "segments").num_rows == 0
    assert import_index(tmp_path / "export", new).num_added == 0
    assert contents(new) == contents(index)


def test_a_search_in_the_imported_index_gives_the_same_answers(tmp_path, random, new, store_factory):
    index = store_factory.address()
    torch.manual_seed(0)
    model = XClip(XClipConfig.tiny()).eval()
    fingerprint = index_fingerprint(model, "{}")
    sizes = {"embedding_dim": 32, "num_frames": 8}
    with store_factory.create(index, fingerprint=fingerprint, **sizes) as catalog:
        for number in range(30):
            segments = [
                make_segment(random, 32, 8, num_real_frames=1 + number % 8, start_seconds=10.0 * position)
                for position in range(2)
            ]
            add_video(catalog, number, segments, title=f"title {number}", metadata={"number": number})
            if number % 5 == 4:
                catalog.delete_video(f"video-{number - 2}")
    export_index(index, tmp_path / "export")
    import_index(tmp_path / "export", new)
    answers = []
    for directory in (index, new):
        with Searcher(directory, model) as searcher:
            for mode in ("rerank", "coarse", "exhaustive"):
                for query in ("a dog runs", "two people"):
                    answer = searcher.search(SearchQuery(query, limit=12, mode=mode))
                    answers.append([_comparable(result) for result in answer.results])
    assert len(answers[0]) == 12
    for first, second in zip(answers[:6], answers[6:], strict=True):
        assert [facts for facts, _ in first] == [facts for facts, _ in second]
        for (_, scores), (_, others) in zip(first, second, strict=True):
            assert scores == pytest.approx(others, abs=1e-4)


def _comparable(result: SearchResult) -> tuple[dict[str, Any], dict[str, float | None]]:
    """What a result says, and its scores, whose last bits depend on what is scored together.

    Percentiles and matches come when the baseline scores are ready, at their own time.
    """
    facts = asdict(
        replace(result, segment_id=0, percentile=None, match=None, score=0.0, scores={}, moments=())
    )
    return facts, {**result.scores, "total": result.score}


def test_any_parquet_reader_finds_in_the_files_what_the_catalog_holds(index, tmp_path):
    export_index(index, tmp_path / "export")
    videos = read_parts(tmp_path / "export", "videos").to_pylist()
    segments = read_parts(tmp_path / "export", "segments")
    frames = segments["frame_features"].combine_chunks().flatten().to_numpy().reshape(-1, 4, 8)
    features = segments["video_feature"].combine_chunks().flatten().to_numpy().reshape(-1, 8)
    rows = segments.drop_columns(["frame_features", "video_feature"]).to_pylist()
    row = 0
    with open_store(index) as catalog:
        for video, record in zip(videos, reversed(catalog.list_videos()), strict=True):
            # What this operator trusts, the operator of another index need not.
            own = ("sequence", "trusted")
            expected = {name: value for name, value in vars(record).items() if name not in own}
            assert {**video, "metadata": json.loads(video["metadata"])} == expected
            for position, info in enumerate(catalog.video_segments(record.id)):
                stored = catalog.segment_features([info.segment_id])
                assert frames.dtype == np.float16 and np.array_equal(frames[row], stored.frames[0])
                assert features.dtype == np.float32 and np.array_equal(features[row], stored.video[0])
                assert rows[row] == {
                    "video_id": record.id,
                    "position": position,
                    "start_seconds": info.start_seconds,
                    "end_seconds": info.end_seconds,
                    "num_frames": info.num_frames,
                    "frame_times": info.frame_times.tolist(),
                }
                row += 1
    assert row == segments.num_rows


def test_an_export_is_of_one_moment_whatever_is_written_meanwhile(index, tmp_path, random, small_parts, new):
    before = contents(index)
    changed = set()

    def change(stage, done, total):
        if stage in changed:
            return
        changed.add(stage)
        with open_store(index) as catalog:
            add_video(catalog, 100 + len(changed), [make_segment(random)])
            catalog.delete_video(f"video-{9 + len(changed)}")
            catalog.update_video("video-5", title=stage)

    report = export_index(index, tmp_path / "export", on_progress=change)
    assert changed == {"videos", "segments"}
    with open_store(index) as catalog:
        assert catalog.sequence == report.sequence + 6
    import_index(tmp_path / "export", new)
    assert contents(new) == before


def test_exports_made_under_a_writer_hold_whole_videos(index, tmp_path, random, store_factory):
    with kept_changing(index, random):
        reports = [export_index(index, tmp_path / f"export-{number}") for number in range(4)]
    assert reports[-1].sequence > reports[0].sequence
    for number, report in enumerate(reports):
        new = store_factory.address()
        imported = import_index(tmp_path / f"export-{number}", new)
        assert (imported.num_added, imported.num_segments) == (report.num_videos, report.num_segments)
        with open_store(new) as catalog:
            added = [v.id for v in catalog.list_videos(limit=10_000) if int(v.id.split("-")[1]) >= 100]
            assert all(len(catalog.video_segments(video_id)) == 3 for video_id in added)


def test_an_export_never_overwrites_anything(index, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("precious")
    with pytest.raises(IndexExistsError):
        export_index(index, tmp_path / "mine")
    if isinstance(index, Path):
        with pytest.raises(IndexExistsError):
            export_index(index, index / "export")
    with pytest.raises(IndexNotFoundError):
        export_index(tmp_path / "mine", tmp_path / "export")
    (tmp_path / "empty").mkdir()
    export_index(index, tmp_path / "empty")
    assert (tmp_path / "mine" / "precious").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine", "stores"]


@pytest.mark.parametrize(
    ("in_sqlite", "in_postgres"),
    [
        (
            "UPDATE segments SET video_feature = zeroblob(32) WHERE id = 7",
            "UPDATE features SET bytes = set_byte(bytes, 55, get_byte(bytes, 55) # 1) WHERE segment_id = 7",
        ),
        (
            "UPDATE segment_frames SET frame_features = zeroblob(64) WHERE segment_id = 7",
            "UPDATE features SET bytes = substr(bytes, 1, 84) || decode(repeat('00', 64), 'hex')"
            " WHERE segment_id = 7",
        ),
        (
            "DELETE FROM segment_frames WHERE segment_id = 7",
            "UPDATE features SET bytes = substr(bytes, 1, 84) WHERE segment_id = 7",
        ),
        (
            "PRAGMA foreign_keys = OFF; DELETE FROM videos WHERE number = 7",
            "SET session_replication_role = replica; DELETE FROM videos WHERE number = 7",
        ),
        ("UPDATE segments SET end_seconds = end_seconds + 1 WHERE id = 7",) * 2,
        ("UPDATE videos SET title = 'another' WHERE number = 7",) * 2,
        ("UPDATE videos SET id = 'another' WHERE number = 7",) * 2,
    ],
)
def test_a_damaged_index_is_not_exported(index, tmp_path, in_sqlite, in_postgres):
    if isinstance(index, Path):
        with contextlib.closing(sqlite3.connect(index / "catalog.sqlite3")) as connection:
            connection.executescript(in_sqlite)
    else:
        with open_store(index) as catalog, catalog.connections.reading() as connection:
            connection.execute(in_postgres)
    with pytest.raises(IndexDamagedError):
        export_index(index, tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["stores"]


def test_what_is_in_already_is_skipped_and_an_id_taken_by_other_content_is_reported(
    index, tmp_path, random, new, store_factory
):
    export_index(index, tmp_path / "export")
    with store_factory.create(new) as catalog:
        add_video(catalog, 3, [make_segment(random)], id="mine", title="mine")  # The content of video-3.
        add_video(catalog, 999, [make_segment(random)], id="video-5", title="mine")
    imported = import_index(tmp_path / "export", new)
    assert (imported.num_added, imported.num_skipped, imported.num_failed) == (8, 1, 1)
    assert imported.failures == [("video-5", "the id 'video-5' is taken by another video")]
    with open_store(new) as catalog:
        assert catalog.num_videos == 10
        assert {catalog.get_video("mine").title, catalog.get_video("video-5").title} == {"mine"}
    result = run(app, ["import", str(tmp_path / "export"), "--index", str(new)])
    assert result.exit_code == 3
    assert "0 added (0 segments), 9 already indexed, 1 failed" in result.stdout
    assert "failed: video-5: the id" in result.stderr


def test_an_import_that_was_interrupted_goes_on(index, tmp_path, monkeypatch, new):
    export_index(index, tmp_path / "export")
    with open_store(index) as catalog:
        store_class = type(catalog)
    original, added = store_class.add_videos, []

    def add_some(catalog, videos):
        if len(added) == 4:
            raise KeyboardInterrupt
        added.extend(videos)
        return original(catalog, videos)

    command = ["import", str(tmp_path / "export"), "--index", str(new)]
    with monkeypatch.context() as patch:
        patch.setattr(store_class, "add_videos", add_some)
        patch.setattr(importing, "SEGMENTS_PER_TRANSACTION", 1)
        result = run(app, command)
    assert result.exit_code == 130 and "the same command resumes" in result.stderr
    assert verify(new).num_videos == 4
    result = run(app, command)
    assert result.exit_code == 0 and "6 added" in result.stdout and "4 already indexed" in result.stdout
    assert contents(new) == contents(index)


def test_an_index_of_another_fingerprint_is_refused_with_both_named(index, tmp_path, random, store_factory):
    other = store_factory.address()
    export_index(index, tmp_path / "export")
    with store_factory.create(other, fingerprint="e" * 64) as catalog:
        add_video(catalog, 1, [make_segment(random)])
    before = contents(other)
    with pytest.raises(ExportFingerprintError) as caught:
        import_index(tmp_path / "export", other)
    assert (caught.value.expected, caught.value.found) == (FINGERPRINT, "e" * 64)
    result = run(app, ["import", str(tmp_path / "export"), "--index", str(other)])
    assert result.exit_code == 2 and FINGERPRINT in result.stderr and "e" * 64 in result.stderr
    assert contents(other) == before


def test_without_frames_there_is_everything_else_and_no_way_back(index, tmp_path, new):
    export_index(index, tmp_path / "export")
    export_index(index, tmp_path / "small", with_frames=False)
    whole = read_parts(tmp_path / "export", "segments")
    assert read_parts(tmp_path / "small", "segments").equals(whole.drop_columns(["frame_features"]))
    assert read_parts(tmp_path / "small", "videos").equals(read_parts(tmp_path / "export", "videos"))
    with pytest.raises(ExportWithoutFramesError):
        import_index(tmp_path / "small", new)
    result = run(app, ["import", str(tmp_path / "small"), "--index", str(new)])
    assert result.exit_code == 2 and "without frame features" in result.stderr
    assert not store_exists(new)


def test_no_flipped_bit_and_no_cut_gets_in(index, tmp_path, random, new):
    export = tmp_path / "export"
    export_index(index, export)
    for name, whole in files_of(export).items():
        positions = range(len(whole)) if name == "export.json" else random.integers(0, len(whole), 40)
        for position in positions:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << random.integers(8)
            (export / name).write_bytes(damaged)
            try:
                manifest = ExportManifest.read(export)
                export_layout.check_files(export, manifest, lambda *progress: None)
            except ExportDamagedError:
                continue
            pytest.fail(f"bit flipped at byte {position} of {name}, and it was not noticed")
        for size in (0, 1, len(whole) // 2, len(whole) - 2):
            (export / name).write_bytes(whole[:size])
            with pytest.raises(ExportDamagedError):
                import_index(export, new)
        (export / name).unlink()
        with pytest.raises((ExportDamagedError, IndexNotFoundError)):
            import_index(export, new)
        (export / name).write_bytes(whole)
    assert not store_exists(new)
    assert import_index(export, new).num_added == 10


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("videos", lambda t: t.drop_columns(["codec"]), "codec is missing"),
        ("videos", lambda t: t.append_column("more", pa.nulls(t.num_rows)), "more"),
        ("segments", lambda t: t.drop_columns(["frame_features"]), "frame_features is missing"),
        (
            "segments",
            lambda t: t.set_column(1, "position", t["position"].cast(pa.int32())),
            "position is int32, not int64",
        ),
    ],
)
def test_other_columns_are_refused_before_anything_is_changed(index, tmp_path, name, change, words, new):
    export_index(index, tmp_path / "export")
    write_again(tmp_path / "export", f"{name}-00000.parquet", change(read_parts(tmp_path / "export", name)))
    with pytest.raises(ExportDamagedError, match=words):
        import_index(tmp_path / "export", new)
    assert not store_exists(new)


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3, *range(18, 3, -1)], [*range(18, -1, -1)], [1, 0, *range(2, 19)]]
)
def test_segments_in_another_order_are_never_given_to_another_video(index, tmp_path, order, new):
    export_index(index, tmp_path / "export")
    segments = read_parts(tmp_path / "export", "segments")
    assert segments.num_rows == len(order)
    write_again(tmp_path / "export", "segments-00000.parquet", segments.take(order).cast(segments.schema))
    with pytest.raises(ExportDamagedError, match="not where they should be"):
        import_index(tmp_path / "export", new)
    assert not store_exists(new)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: {},
        lambda content: [],
        lambda content: {**content, "num_videos": 11},
        lambda content: {**content, "files": {}},
        lambda content: {**content, "files": {**content["files"], "../x": {}}},
    ],
)
def test_an_export_json_that_is_not_ours_is_refused(index, tmp_path, change, new):
    export_index(index, tmp_path / "export")
    path = tmp_path / "export" / "export.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ExportDamagedError):
        import_index(tmp_path / "export", new)


@pytest.mark.parametrize("name", ["../videos-00000.parquet", "/videos-00000.parquet", "videos-0.parquet"])
def test_files_outside_of_the_export_are_never_named(index, tmp_path, name):
    export_index(index, tmp_path / "export")
    manifest = ExportManifest.read(tmp_path / "export")
    replace(manifest, files={**manifest.files, name: PartFile(0, 0, "")}).write(tmp_path / "export")
    with pytest.raises(ExportDamagedError):
        ExportManifest.read(tmp_path / "export")


LIMITED = """
import resource, sys
from typer.testing import CliRunner
import pyarrow.parquet
from xclip_search import app
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
result = CliRunner().invoke(app, sys.argv[2:])
sys.stderr.write(result.stderr)
sys.exit(result.exit_code if result.exception is None or isinstance(result.exception, SystemExit) else 99)
"""


def run_with_small_files(limit_bytes, *arguments):
    """The command where no file can grow beyond a limit: each write site fails as on a full disk."""
    command = [sys.executable, "-W", "error", "-c", LIMITED, str(limit_bytes), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)


@pytest.mark.store("sqlite")
def test_a_full_disk_leaves_no_half_export_and_an_import_that_goes_on(tmp_path, random, new, store_factory):
    index = store_factory.address()
    with store_factory.create(index, embedding_dim=32) as catalog:
        for number in range(300):
            add_video(catalog, number, [make_segment(random, 32)], title="t" * 500)
    result = run_with_small_files(60_000, "export", "--index", index, tmp_path / "export")
    assert result.returncode == 2, result.stderr
    assert "nothing was exported" in result.stderr and len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["stores"]
    export_index(index, tmp_path / "export")
    result = run_with_small_files(800_000, "import", tmp_path / "export", "--index", new)
    assert result.returncode == 2, result.stderr
    assert "the same command resumes" in result.stderr and len(result.stderr.splitlines()) == 1
    checked = verify(new)
    assert checked.is_clean and 0 < checked.num_videos < 300
    imported = import_index(tmp_path / "export", new)
    assert imported.num_skipped == checked.num_videos
    assert contents(new) == contents(index)


def test_a_failing_write_in_the_middle_leaves_nothing(index, tmp_path, monkeypatch):
    def fail(path):
        if path.name.startswith("segments"):
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export_files, "fsync_file", fail)
    result = run(app, ["export", "--index", str(index), str(tmp_path / "export")])
    assert result.exit_code == 2
    assert "No space left on device; nothing was exported" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["stores"]


def test_without_pyarrow_one_line_names_the_extra(index, tmp_path, monkeypatch, new):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    commands = (
        ["export", "--index", str(index), str(tmp_path / "export")],
        ["import", str(tmp_path / "export"), "--index", str(new)],
    )
    for command in commands:
        result = run(app, command)
        assert result.exit_code == 2
        assert (
            "`make install` brings it, or pip install pyarrow" in result.stderr
            and len(result.stderr.splitlines()) == 1
        )
    assert [path.name for path in tmp_path.iterdir()] == ["stores"]


def test_the_commands_say_what_they_did_and_end_as_promised(index, tmp_path, new):
    export, address = str(tmp_path / "export"), str(new)
    result = run(app, ["export", "--index", str(index), export, "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["num_videos"] == 10
    result = run(app, ["export", "--index", str(index), export])
    assert result.exit_code == 2 and "not empty" in result.stderr
    result = run(app, ["export", "--index", str(index), str(tmp_path / "small"), "--without-frames"])
    assert result.exit_code == 0 and "10 videos" in result.stdout and "not imported" in result.stderr
    result = run(app, ["import", export, "--index", address])
    assert result.exit_code == 0 and "10 added" in result.stdout
    with open_store(new) as catalog:
        assert list(catalog.directory.glob("coarse-*.faiss"))
    result = run(app, ["import", export, "--index", address, "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["num_skipped"] == 10
    assert run(app, ["import", str(index), "--index", address]).exit_code == 2
    segments = Path(export) / "segments-00000.parquet"
    segments.write_bytes(segments.read_bytes()[:-1])
    result = run(app, ["import", export, "--index", address])
    assert result.exit_code == 1 and "segments-00000.parquet" in result.stderr


def test_the_documented_examples_run_and_every_column_is_documented(index, tmp_path, monkeypatch, capsys):
    export_index(index, tmp_path / "my-export")
    monkeypatch.chdir(tmp_path)
    text = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {}
    for example in examples:
        exec(compile(example, "docs/export.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(examples) == 2 and len(printed) == 6
    with open_store(index) as catalog:
        first = catalog.list_videos()[-1]
        stored = catalog.segment_features([catalog.video_segments(first.id)[0].segment_id])
    assert printed[3].startswith(f"{first.id} ")  # Nothing is more like a segment than itself.
    assert np.array_equal(names["real_frames"], stored.frames[0, : stored.num_frames[0]])
    columns = [*export_layout.video_schema().names, *export_layout.segment_schema(8, 4, True).names]
    assert all(f"`{name}`" in text for name in columns)


def test_a_time_of_addition_from_elsewhere_is_kept(tmp_path, random, store_factory):
    index = store_factory.address()
    with store_factory.create(index) as catalog:
        catalog.clock = lambda: 5.0
        add_video(catalog, 1, [make_segment(random)], added_at=1.25)
        add_video(catalog, 2, [make_segment(random)])
        found = catalog.find_by_sha256(sha256_of(1))
        assert found is not None and found.added_at == 1.25
        assert catalog.get_video("video-2").added_at == 5.0
