"""The demo corpus on disk: its mp4 files show what was rendered, its manifest says what they show."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest

from training.demo_corpus.corpus import write_corpus
from training.demo_corpus.rendering import render_frame, write_video
from training.demo_corpus.scene import Actor, Event, Scene

SCENE = Scene(
    "desert", (Event(Actor("plane", "red"), "moves right"), Event(Actor("fish", "white"), "spins")), 8
)


def _decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as container:
        return [
            (float(frame.time or 0.0), frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        ]


def test_a_decoded_video_shows_the_rendered_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, SCENE, size_pixels=128)
    frames = _decoded(path)
    assert len(frames) == 96
    assert [time for time, _ in frames] == pytest.approx([index / 12 for index in range(96)], abs=1e-3)
    sampled = frames[::12]
    assert len(sampled) == 8
    for second, (time, pixels) in enumerate(sampled):
        assert time == pytest.approx(second, abs=1e-3)
        expected = render_frame(SCENE, float(second), 128)
        assert np.abs(pixels.astype(int) - expected.astype(int)).mean() < 3.0


def test_a_video_is_h264_that_browsers_play_while_it_loads(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, SCENE, size_pixels=64)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.format.name) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (64, 64, 12)
        assert container.duration == pytest.approx(8_000_000, abs=1000)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("size_pixels", [64, 96, 128])
def test_the_same_scene_gives_the_same_bytes(tmp_path: Path, size_pixels: int) -> None:
    write_video(tmp_path / "first.mp4", SCENE, size_pixels=size_pixels)
    write_video(tmp_path / "second.mp4", SCENE, size_pixels=size_pixels)
    assert (tmp_path / "first.mp4").read_bytes() == (tmp_path / "second.mp4").read_bytes()


@pytest.mark.parametrize(("size", "rate"), [(63, 12), (0, 12), (64, 0)])
def test_impossible_sizes_are_refused(tmp_path: Path, size: int, rate: int) -> None:
    with pytest.raises(ValueError):
        write_video(tmp_path / "clip.mp4", SCENE, size_pixels=size, frame_rate=rate)
    assert not list(tmp_path.iterdir())


def test_a_corpus_has_a_manifest_of_its_videos(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    manifest = write_corpus(
        tmp_path / "corpus", 4, 7, on_progress=lambda done, total: progress.append((done, total))
    )
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == 4
    for row in rows:
        assert set(row) == {"path", "id", "title", "metadata"}
        assert (manifest.parent / row["path"]).is_file()
        assert row["metadata"]["caption"]
        assert row["title"].lower() == row["metadata"]["captions"][0]
        assert 1 <= len(row["metadata"]["events"]) <= 2


def test_writing_a_corpus_again_keeps_its_files(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, 2, 1)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")}
    text = manifest.read_text(encoding="utf-8")
    assert write_corpus(tmp_path, 2, 1).read_text(encoding="utf-8") == text
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.mp4")} == before


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_corpus(tmp_path, 0, 1)
