"""`Index` joins store, pipeline and searcher: it does what they do, and what it leaves opens again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import (
    FingerprintMismatchError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidQueryError,
    MediaError,
    VideoNotFoundError,
)
from indexer.index import Index, absolute_spec
from indexer.ingest.encoding import index_facts
from indexer.ingest.pipeline import IndexingPipeline
from indexer.maintenance.reindexing import reindex
from indexer.media.sampling import Sampling
from indexer.search.searcher import Searcher
from indexer.search.types import SearchQuery
from model import XClip, XClipConfig
from tests.support.timed_videos import write_timed_video
from tests.support.video_files import write_coloured_video


@pytest.fixture(scope="module")
def model(model_directory: Path) -> XClip:
    return XClip.load(str(model_directory), "cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        write_coloured_video(folder / f"{number}.mp4", (80 * number, 20, 200), 2 + number)
    (folder / "words.mp4").write_text("words")
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, clips: Path, model_directory: Path) -> Path:
    """An index of the clips, closed."""
    directory = tmp_path_factory.mktemp("made") / "index"
    with Index.create(directory, str(model_directory), device="cpu") as index:
        report = index.add_folder(clips)
        assert (report.num_added, report.num_failed, len(index)) == (3, 1, 3)
    return directory


def test_a_search_is_that_of_a_searcher(directory: Path, model: XClip) -> None:
    with Index.open(directory) as index, Searcher(directory, model) as searcher:
        found = index.search("a blue square", limit=2, mode="exhaustive").results
        plain = searcher.search(SearchQuery("a blue square", limit=2, mode="exhaustive")).results
        assert found == plain and len(found) == 2
        with pytest.raises(InvalidQueryError, match="limit"):
            index.search("a blue square", limit=0)


def test_a_file_is_encoded_to_what_is_stored_of_it(directory: Path, clips: Path) -> None:
    with Index.open(directory) as index:
        ids = {video.title: video.id for video in index.catalog.list_videos(10)}
        stored = index.catalog.segment_features(
            [segment.segment_id for segment in index.catalog.video_segments(ids["1"])]
        )
        encoded = index.encode(clips / "1.mp4")
        # Other batches sum in another order; frame features are rounded to float16, of numbers below 1.
        np.testing.assert_allclose(encoded.video.cpu().numpy(), stored.video, atol=1e-5)
        np.testing.assert_allclose(encoded.frames.cpu().numpy(), stored.frames, atol=2**-11)
        np.testing.assert_array_equal(encoded.frame_mask.cpu().numpy(), stored.frame_mask)
        assert index.model.score(index.model.encode_text(["blue"]), encoded).total.shape == (1, 1)
        with pytest.raises(MediaError):
            index.encode(clips / "words.mp4")


def test_a_file_is_added_with_what_is_said_of_it_and_the_same_bytes_once(
    tmp_path: Path, clips: Path, model: XClip
) -> None:
    with Index.create(tmp_path / "index", model) as index:
        assert index.add(clips / "0.mp4", id="mine", title="A title", metadata={"camera": "north"}) == "mine"
        assert index.add(clips / "0.mp4", id="other") == "mine"
        video = index.catalog.get_video("mine")
        assert (video.title, video.metadata, video.uri) == (
            "A title",
            {"camera": "north"},
            (clips / "0.mp4").as_uri(),
        )
        assert [one.id for one in index.search("x", filter={"metadata.camera": "north"}).results] == ["mine"]
        with pytest.raises(MediaError, match="not a video"):
            index.add(clips / "words.mp4")
        index.delete("mine")
        assert index.search("x").results == [] and len(index) == 0
        with pytest.raises(VideoNotFoundError):
            index.delete("mine")


def test_an_index_is_made_once_and_opened_with_the_model_that_made_it(
    directory: Path, model: XClip, model_directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(IndexExistsError):
        Index.create(directory, model)
    with pytest.raises(IndexNotFoundError):
        Index.open(tmp_path / "none", model)
    with pytest.raises(IndexNotFoundError):
        Index.open_or_create(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(FingerprintMismatchError):
        Index.open(directory, XClip(XClipConfig.tiny()).eval())
    with pytest.raises(FingerprintMismatchError):
        Index.open_or_create(directory, max_segment_seconds=7)
    with Index.open_or_create(tmp_path / "index", model, max_segment_seconds=7) as index:
        assert index.sampling.max_segment_seconds == 7
    with Index.open(tmp_path / "index", str(model_directory)) as index:
        assert index.sampling.max_segment_seconds == 7


def test_an_index_of_frames_in_bfloat16_is_opened_with_that_runtime_alone(
    model_directory: Path, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("model.runtimes.openvino")
    if not openvino.has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")
    Index.create(tmp_path / "index", str(model_directory), device="cpu", runtime="openvino-bf16").close()
    for other in ("torch", "openvino"):
        with pytest.raises(FingerprintMismatchError, match="the runtime, where that was openvino-bf16"):
            Index.open(tmp_path / "index", device="cpu", runtime=other)
    Index.open(tmp_path / "index", device="cpu", runtime="openvino-bf16").close()


def test_what_was_added_is_saved_so_that_the_next_start_is_quick(directory: Path) -> None:
    assert list(directory.glob("coarse*"))


def test_a_spec_that_is_a_path_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert absolute_spec("model") == str(tmp_path / "model")
    for named in ("demo", "openclip:ViT-B-32/openai", "hf-hub:me/films", "no such file", ""):
        assert absolute_spec(named) == named


def test_an_index_that_is_not_searched_loads_no_faiss(directory: Path) -> None:
    """A worker opens an index, checks its model and encodes, all without FAISS."""
    code = (
        "import sys\nfrom model.quick_start import shorten_import\nshorten_import()\n"
        "from indexer.index import Index\n"
        f"with Index.open({str(directory)!r}, device='cpu') as index:\n    index.pipeline()\n"
        "assert 'faiss' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_a_file_begins_on_the_clock_of_a_player_is_stored_and_found(
    tmp_path: Path, model: XClip, model_directory: Path
) -> None:
    late = write_timed_video(tmp_path / "late.mp4", range(3000, 5000, 200), sound_seconds=(0, 5))
    with Index.create(tmp_path / "index", str(model_directory), device="cpu") as index:
        index.add(late)
        assert [result.media_start_seconds for result in index.search("a square").results] == [3]
        (record,) = index.catalog.list_videos(2)
        assert record.media_start_seconds == 3
    sampling = Sampling(model.config.num_frames, max_segment_seconds=1)
    report = reindex(
        tmp_path / "index",
        index_facts(model, str(model_directory), sampling),
        lambda catalog: IndexingPipeline(catalog, model, num_workers=1),
    )
    assert report.switched and report.num_encoded == 1
    with Index.open(tmp_path / "index") as index:
        assert [result.media_start_seconds for result in index.search("a square").results] == [3]
