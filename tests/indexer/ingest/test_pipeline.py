"""Videos into an index: what arrives is what the model says of the right frames, come what may."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from indexer.errors import FingerprintMismatchError, MediaError
from indexer.ingest.encoding import index_facts
from indexer.ingest.library import find_videos
from indexer.ingest.pipeline import DecodeOptions, IndexEvent, IndexingPipeline, VideoEncoder, VideoSource
from indexer.ingest.video_files import find_video_file
from indexer.media import decode_pool
from indexer.media.decode_pool import DecodePool
from indexer.media.frame_reader import VideoFile
from indexer.media.sampling import Sampling, plan_segments
from indexer.store.records import NewVideo
from indexer.store.sqlite.catalog import Catalog
from model import XClip, XClipConfig
from model.preprocessing import Resizing
from tests.support.video_files import write_coloured_video, write_numbered_video

SAMPLING = Sampling(8, max_segment_seconds=10)


@pytest.fixture(scope="module")
def model() -> XClip:
    torch.manual_seed(0)
    return XClip(XClipConfig.tiny()).eval()


@pytest.fixture
def catalog(tmp_path: Path, model: XClip) -> Iterator[Catalog]:
    with _create(tmp_path / "index", model) as catalog:
        yield catalog


def _create(directory: Path, model: XClip, sampling: Sampling = SAMPLING) -> Catalog:
    return Catalog.create(directory, index_facts(model, "tiny", sampling))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven good videos of 0.2 to 35 seconds (one to four segments)."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, seconds in enumerate((0.2, 1, 2, 3, 9.5)):
        write_coloured_video(folder / f"{number}.mp4", (40 * number, 255 - 40 * number, 90), seconds)
    write_numbered_video(folder / "5.mkv", 70, rate=2, keyframe_interval=5)
    write_numbered_video(folder / "6.webm", 30, codec="libvpx-vp9", options={"deadline": "realtime"})
    return folder


def _sources(folder: Path) -> list[VideoSource]:
    return [VideoSource(path) for path in sorted(folder.iterdir())]


def _one_by_one(model: XClip, path: Path) -> list[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Features of each segment, read and encoded alone: the reference for the batched pipeline."""
    file = VideoFile(path)
    found = []
    for segment in plan_segments(file.timeline.times, file.timeline.end_seconds, 0, SAMPLING):
        frames = list(file.frames_at(segment.times_seconds))
        pixels = torch.zeros(1, model.config.num_frames, 3, model.config.image_size, model.config.image_size)
        for position, frame in enumerate(frames):
            square = Resizing(model.config.image_size)(frame.rgb)
            pixels[0, position] = model.normalize_pixels(square)
        mask = torch.arange(model.config.num_frames)[None] < len(frames)
        features = model.encode_video(pixels, mask)
        found.append(
            (features.video[0].numpy(), features.frames[0].numpy(), [f.time_seconds for f in frames])
        )
    return found


def _stored(catalog: Catalog) -> dict[str, list[tuple[np.ndarray, np.ndarray, list[float]]]]:
    """By title: (video feature, frame features, frame times) of each segment, in their order in the video."""
    ids = np.concatenate([features.segment_ids for features in catalog.iterate_features(64)])
    features = catalog.segment_features(ids)
    infos = catalog.segment_infos(ids)
    titles = {video.id: str(video.title) for video in catalog.list_videos(1000)}
    stored: dict[str, list] = {}
    for row, segment_id in enumerate(features.segment_ids.tolist()):
        info = infos[segment_id]
        stored.setdefault(titles[info.video_id], []).append(
            (info.start_seconds, features.video[row], features.frames[row], info.frame_times.tolist())
        )
    return {title: [rest for _, *rest in sorted(rows, key=lambda r: r[0])] for title, rows in stored.items()}


@pytest.mark.parametrize("seconds", [2, 40])
def test_a_video_of_which_not_one_frame_is_whole_does_not_go_in(
    tmp_path: Path, catalog: Catalog, model: XClip, seconds: int
) -> None:
    """Encrypted, with all that says so taken away: every picture is decoded, and none is right.

    The same bytes each time, so without the random start that the muxer would encrypt from: of 300 files with
    one, 8 held a picture that the decoder took for a whole one by chance, and went in.
    """
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "7" * 32, "encryption_kid": "a" * 32}
    path = write_numbered_video(
        tmp_path / "a.mp4",
        10 * seconds,
        10,
        options={"threads": "1"},
        container_options=options | {"fflags": "+bitexact"},
    )
    content = path.read_bytes().replace(b"encv", b"avc1")
    for name in (b"sinf", b"senc", b"saiz", b"saio"):
        content = content.replace(name, b"free")
    path.write_bytes(content)
    pipeline = IndexingPipeline(catalog, model, num_workers=1, batch_size=2)
    report = pipeline.run([VideoSource(path), VideoSource(path)])
    assert (report.num_added, report.num_failed, catalog.num_videos) == (0, 2, 0)
    assert "whole" in report.failures[0][1] or "decoded" in report.failures[0][1]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_of_any_size_give_what_one_video_at_a_time_gives(
    tmp_path: Path, model: XClip, corpus: Path, batch_size: int
) -> None:
    with _create(tmp_path / "index", model) as catalog:
        pipeline = IndexingPipeline(catalog, model, num_workers=2, batch_size=batch_size)
        report = pipeline.run(_sources(corpus))
        assert (report.num_added, report.num_failed, report.num_segments) == (7, 0, 10)
        stored = _stored(catalog)
    for path in sorted(corpus.iterdir()):
        expected = _one_by_one(model, path)
        assert len(stored[path.stem]) == len(expected), path.name
        for (video, frames, times), (own_video, own_frames, own_times) in zip(
            stored[path.stem], expected, strict=True
        ):
            np.testing.assert_allclose(video, own_video, atol=1e-5)
            np.testing.assert_allclose(frames, own_frames, atol=2e-3)  # float16
            assert times == own_times


def test_a_record_says_what_the_file_is_and_where(catalog: Catalog, model: XClip, corpus: Path) -> None:
    sources = [
        VideoSource(corpus / "5.mkv", id="five", title="Numbers", metadata={"year": 2020}),
        VideoSource(corpus / "1.mp4", uri="https://example.org/1", trusted=False),
    ]
    events: list[IndexEvent] = []
    report = IndexingPipeline(catalog, model, num_workers=1).run(sources, events.append)
    assert report.num_added == 2
    assert {(event.source.path.name, event.outcome) for event in events} == {
        ("5.mkv", "added"),
        ("1.mp4", "added"),
    }
    five = catalog.get_video("five")
    assert (five.title, five.metadata, five.codec) == ("Numbers", {"year": 2020}, "h264")
    assert (five.width, five.height, five.size_bytes) == (128, 32, (corpus / "5.mkv").stat().st_size)
    assert (five.duration_seconds, five.frame_rate) == (pytest.approx(35), pytest.approx(2))
    assert five.uri == (corpus / "5.mkv").as_uri()
    assert not five.partial
    (one,) = [video for video in catalog.list_videos() if video.id != "five"]
    assert (one.title, one.uri) == ("1", "https://example.org/1")
    assert {event.video_id for event in events} == {"five", one.id}


def test_a_video_was_recorded_when_the_manifest_the_container_or_the_file_says(
    catalog: Catalog, model: XClip, corpus: Path, tmp_path: Path
) -> None:
    def sample(name: str, number: int, file_time: float, container_time: str | None = None) -> Path:
        path = write_coloured_video(tmp_path / f"{name}.mkv", (number, 9, 9))
        if container_time is not None:
            with av.open(str(path)) as stored, av.open(str(tmp_path / f"{name}.mp4"), "w") as written:
                written.metadata["creation_time"] = container_time
                stream = written.add_stream_from_template(stored.streams.video[0])
                for packet in stored.demux(video=0):
                    if packet.dts is not None:
                        packet.stream = stream
                        written.mux(packet)
            path = tmp_path / f"{name}.mp4"
        os.utime(path, (file_time, file_time))
        return path

    container_time = datetime(2024, 5, 1, 10, tzinfo=UTC).timestamp()
    in_container = {"container_time": "2024-05-01T10:00:00Z"}
    sources = [
        VideoSource(sample("manifest", 10, 1e9, **in_container), recorded_at=-5.0),
        VideoSource(sample("container", 20, 1e9, **in_container)),
        VideoSource(sample("file", 30, 1e9)),
        VideoSource(sample("never-set", 40, 0.0)),
        VideoSource(sample("future", 50, 9e9)),
        VideoSource(sample("upload", 60, 1e9), trusted=False),
    ]
    assert IndexingPipeline(catalog, model, num_workers=1).run(sources).num_added == 6
    found = {video.title: video.recorded_at for video in catalog.list_videos()}
    assert found == {
        "manifest": -5.0, "container": container_time, "file": 1e9,
        "never-set": None, "future": None, "upload": None,
    }  # fmt: skip
    # Encoded again, a record of an earlier version gets what it lacks, and keeps what it has.
    records = {video.title: replace(video, id=f"{video.id}-2") for video in catalog.list_videos()}
    records["container"] = replace(records["container"], recorded_at=None)
    with _create(tmp_path / "second", model) as second:
        again = [replace(source, record=records[source.path.stem]) for source in sources[:2]]
        IndexingPipeline(second, model, num_workers=1).run(again)
        found = {video.title: video.recorded_at for video in second.list_videos()}
    assert found == {"manifest": -5.0, "container": container_time}


def test_a_file_whose_name_is_not_utf_8_is_read_and_found_again(
    catalog: Catalog, model: XClip, corpus: Path, tmp_path: Path
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xfcro"))
    folder.mkdir()
    path = Path(shutil.copy(corpus / "0.mp4", Path(folder, os.fsdecode(b"caf\xe9.mp4"))))
    (source,) = find_videos([folder])
    assert IndexingPipeline(catalog, model, num_workers=1).run([source]).num_added == 1
    (video,) = catalog.list_videos()
    assert (video.title, video.uri) == ("caf\ufffd", f"{tmp_path.as_uri()}/b%FCro/caf%E9.mp4")
    assert find_video_file(tmp_path, video) == (path, True)


def test_what_holds_a_zero_character_fails_with_a_reason(
    catalog: Catalog, model: XClip, corpus: Path
) -> None:
    path = corpus / "0.mp4"
    sources = [
        VideoSource(Path("a\0b")),
        VideoSource(path, title="a\0b"),
        VideoSource(path, uri="\0"),
        VideoSource(path, metadata={"a": [{"\0": 1}]}),
    ]
    report = IndexingPipeline(catalog, model, num_workers=1).run(sources)
    assert [reason for _, reason in report.failures] == [
        f"its {name} holds a zero character (U+0000)" for name in ("path", "title", "uri", "metadata")
    ]


def test_what_is_in_already_is_skipped_by_content(catalog: Catalog, model: XClip, corpus: Path) -> None:
    pipeline = IndexingPipeline(catalog, model, num_workers=1)
    assert pipeline.run(_sources(corpus)).num_added == 7
    sequence = catalog.sequence
    renamed = corpus.parent / "renamed"
    shutil.copytree(corpus, renamed)
    (renamed / "0.mp4").rename(renamed / "zero.mp4")
    events: list[IndexEvent] = []
    again = pipeline.run(_sources(renamed), events.append)
    assert (again.num_added, again.num_skipped, again.encode_seconds) == (0, 7, 0)
    assert catalog.sequence == sequence
    assert all(event.video_id for event in events)


def test_bad_files_are_counted_and_reported_and_stop_nothing(
    catalog: Catalog, model: XClip, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "words.mp4").write_text("words")
    half = tmp_path / "half.mkv"
    half.write_bytes((corpus / "5.mkv").read_bytes()[:-2000])
    sources = [
        VideoSource(tmp_path / "words.mp4"),
        VideoSource(corpus / "1.mp4", id="same"),
        VideoSource(corpus / "2.mp4", id="same"),
        VideoSource(corpus / "3.mp4", id="a bad id"),
        VideoSource(tmp_path / "absent.mp4"),
        VideoSource(half),
        VideoSource(corpus / "4.mp4", metadata={"not": {"json"}}),
        VideoSource(corpus / "6.webm"),
        VideoSource(corpus / "6.webm"),
    ]
    report = IndexingPipeline(catalog, model, num_workers=2, batch_size=4).run(sources)
    assert (report.num_added, report.num_skipped, report.num_failed, report.num_partial) == (3, 1, 5, 1)
    reasons = dict(report.failures)
    assert "not a video" in reasons[str(tmp_path / "words.mp4")]
    assert "cannot be read" in reasons[str(tmp_path / "absent.mp4")]
    assert "an id has" in reasons[str(corpus / "3.mp4")]
    assert "metadata" in reasons[str(corpus / "4.mp4")]
    assert sum("'same'" in reason for reason in reasons.values()) == 1
    (partial,) = [video for video in catalog.list_videos() if video.partial]
    assert partial.title == "half"
    assert 0 < partial.fraction_read < 1
    assert report.to_dict()["failures"][0].keys() == {"path", "reason"}


SLOW_CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[2])
import indexer.media.decode_child as child
plain = child._decode
def decode(request, files):
    if request.path.endswith('slow.mp4'):
        while not os.path.exists(os.path.dirname(request.path) + '/go on'):
            time.sleep(0.01)
    return plain(request, files)
child._decode = decode
child.serve(int(sys.argv[1]))
"""


def test_a_slow_file_delays_no_other(
    catalog: Catalog, model: XClip, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pool, "_CHILD_PROGRAM", SLOW_CHILD)
    shutil.copy(corpus / "0.mp4", tmp_path / "slow.mp4")
    others = _sources(corpus)[1:]
    order: list[str] = []

    def on_event(event: IndexEvent) -> None:
        order.append(event.source.path.name)
        if len(order) == len(others):
            assert catalog.num_videos == len(others), "those before it are committed already"
            (tmp_path / "go on").touch()

    pipeline = IndexingPipeline(catalog, model, num_workers=2, batch_size=32)
    report = pipeline.run([VideoSource(tmp_path / "slow.mp4"), *others], on_event)
    assert report.num_added == 7
    assert order[-1] == "slow.mp4"


def test_sources_are_read_no_further_than_needed(catalog: Catalog, model: XClip, corpus: Path) -> None:
    pipeline = IndexingPipeline(catalog, model, num_workers=1, batch_size=2)
    num_read, num_done, ahead = 0, 0, []

    def sources() -> Iterator[VideoSource]:
        nonlocal num_read
        for _ in range(10):
            for source in _sources(corpus)[:5]:
                num_read += 1
                ahead.append(num_read - num_done)
                yield source

    def on_event(event: IndexEvent) -> None:
        nonlocal num_done
        num_done += 1

    report = pipeline.run(sources(), on_event)
    assert (report.num_added, report.num_skipped) == (5, 45)
    assert max(ahead) <= 20


def test_nothing_to_do_decodes_nothing(catalog: Catalog, model: XClip) -> None:
    report = IndexingPipeline(catalog, model, num_workers=1).run([])
    assert (report.num_added, report.num_skipped, report.num_failed) == (0, 0, 0)


def test_another_model_or_sampling_is_refused(catalog: Catalog, model: XClip, tmp_path: Path) -> None:
    torch.manual_seed(1)
    with pytest.raises(FingerprintMismatchError):
        IndexingPipeline(catalog, XClip(XClipConfig.tiny()).eval())
    with (
        _create(tmp_path / "twelve", model, Sampling(12)) as of_twelve_frames,
        pytest.raises(ValueError, match="takes 8 frames"),
    ):
        IndexingPipeline(of_twelve_frames, model)


def _encoder(model: XClip) -> VideoEncoder:
    return VideoEncoder(
        model, Sampling(8, max_segment_seconds=4), num_workers=1, batch_size=4, decoding=DecodeOptions(60)
    )


def _requests(monkeypatch: pytest.MonkeyPatch, after: Callable[[Future[Any]], None]) -> list[str]:
    """What is asked of decoding children from now on, by name of the method; `after` sees each answer."""
    asked = []

    def record(name: str) -> None:
        really = getattr(DecodePool, name)

        def submit(*arguments: Any) -> Future[Any]:
            asked.append(name)
            future: Future[Any] = really(*arguments)
            after(future)
            return future

        monkeypatch.setattr(DecodePool, name, submit)

    record("submit")
    record("submit_hash")
    return asked


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 seconds: 8 segments of at most 4."""
    return write_numbered_video(tmp_path_factory.mktemp("film") / "long.mp4", 150, 5)


def test_an_upload_is_hashed_once_and_encoded_as_an_indexed_file_is(
    model: XClip, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _requests(monkeypatch, lambda future: None)
    with _encoder(model) as encoder:
        upload = encoder.encode_file(film)
    assert asked == ["submit_hash", "submit", "submit"] and len(upload.segments) == 8
    assert (upload.id, upload.uri, upload.title, upload.metadata, upload.trusted) == (*[None] * 4, False)
    added: list[NewVideo] = []
    with _create(tmp_path / "index", model, Sampling(8, max_segment_seconds=4)) as catalog:
        add_video = catalog.add_video
        monkeypatch.setattr(catalog, "add_video", lambda video: (added.append(video), add_video(video))[1])
        assert IndexingPipeline(catalog, model).run([VideoSource(film)]).num_added == 1
    (indexed,) = added
    of_source = {"id", "uri", "title", "metadata", "trusted", "added_at", "recorded_at"}
    for name in {field.name for field in fields(upload)} - {"segments", *of_source}:
        assert getattr(upload, name) == getattr(indexed, name), name
    for ours, theirs in zip(upload.segments, indexed.segments, strict=True):
        assert (ours.start_seconds, ours.end_seconds) == (theirs.start_seconds, theirs.end_seconds)
        np.testing.assert_array_equal(ours.frame_times, theirs.frame_times)
        np.testing.assert_allclose(ours.video_feature, theirs.video_feature, atol=1e-5)


@pytest.mark.parametrize("num_answers", [1, 2])
def test_a_file_replaced_between_two_answers_is_refused(
    model: XClip, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_answers: int
) -> None:
    path = Path(shutil.copy(film, tmp_path))

    def replace_file(future: Future[Any]) -> None:
        future.result()
        if len(asked) == num_answers:
            path.unlink()
            shutil.copy(film, path)

    asked = _requests(monkeypatch, replace_file)
    with _encoder(model) as encoder, pytest.raises(MediaError, match="changed while it was read"):
        encoder.encode_file(path)


def test_a_cancelled_film_is_not_read_to_its_end(
    model: XClip, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()
    asked = _requests(monkeypatch, lambda future: cancelled.set() if len(asked) == 2 else None)
    with _encoder(model) as encoder, pytest.raises(CancelledError):
        encoder.encode_file(film, cancelled)
    assert asked == ["submit_hash", "submit"]


def test_an_error_of_the_index_itself_ends_the_run_and_its_children(
    catalog: Catalog, model: XClip, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(video: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(catalog, "add_video", fail)
    with pytest.raises(OSError, match="the disk is full"):
        IndexingPipeline(catalog, model, num_workers=2).run(_sources(corpus))


def test_no_broken_file_stops_the_pipeline(catalog: Catalog, model: XClip, clips_directory: Path) -> None:
    from tests.indexer.media.test_probing import ACCEPTED

    paths = [path for path in sorted((clips_directory / "broken").iterdir()) if path.suffix != ".json"]
    pipeline = IndexingPipeline(catalog, model, num_workers=2, decoding=DecodeOptions(100))
    outcomes = {}
    report = pipeline.run(
        [VideoSource(path, trusted=number % 2 == 0) for number, path in enumerate(paths)],
        lambda event: outcomes.update({event.source.path.name: event.outcome}),
    )
    assert {name for name, outcome in outcomes.items() if outcome != "failed"} == set(ACCEPTED)
    assert report.num_added + report.num_skipped == len(ACCEPTED)
    assert all(reason and "/" not in reason for _, reason in report.failures)


@pytest.mark.gpu
def test_a_gpu_stores_the_features_of_the_cpu(tmp_path: Path, model: XClip, corpus: Path) -> None:
    stored = {}
    for device in ("cpu", "cuda"):
        with _create(tmp_path / device, model) as catalog:
            # Batches of three: on a GPU one is begun before the one before it is finished.
            pipeline = IndexingPipeline(catalog, model.to(device), num_workers=2, batch_size=3)
            assert pipeline.run(_sources(corpus)).num_added == 7
            stored[device] = _stored(catalog)
    model.to("cpu")
    for title, segments in stored["cpu"].items():
        for (video, frames, _), (gpu_video, gpu_frames, _) in zip(
            segments, stored["cuda"][title], strict=True
        ):
            np.testing.assert_allclose(video, gpu_video, atol=1e-3)
            np.testing.assert_allclose(frames, gpu_frames, atol=4e-3)
