"""An upload is read as the indexer reads a file: same fields, same features."""

from __future__ import annotations

import threading
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from indexer.errors import MediaError, SearchCancelledError
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import IndexingPipeline
from indexer.media.decode_pool import DecodePool
from indexer.media.sampling import Sampling
from indexer.search.cancellation import cancellable
from model import XClip, XClipConfig
from service.ingest.video_reading import SEGMENTS_AT_ONCE, VideoReader
from tests.support.video_files import write_numbered_video

NUM_SECONDS = 30
SAMPLING = Sampling(8, max_segment_seconds=4.0)


@pytest.fixture(scope="module")
def network() -> XClip:
    torch.manual_seed(0)
    return XClip(XClipConfig.tiny()).eval()


class RecordedCatalog:
    """Stands for a catalog: keeps what it is told to add."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint, self.added = fingerprint, None

    def find_by_sha256(self, content_sha256):
        return None

    def add_video(self, video):
        from indexer.store.records import AddOutcome

        self.added = video
        return AddOutcome("a", created=True)


def test_a_long_upload_is_hashed_once_and_read_as_the_pipeline_reads_it(network, tmp_path, monkeypatch):
    from indexer.ingest.encoding import index_fingerprint

    path = write_numbered_video(tmp_path / "long.mp4", NUM_SECONDS * 5, 5)
    requests = []
    submit = DecodePool.submit
    monkeypatch.setattr(
        DecodePool, "submit", lambda pool, request: (requests.append(request), submit(pool, request))[1]
    )
    with VideoReader(network, SAMPLING.to_json(), 60.0) as reader:
        video = reader.read(path)
    assert len(video.segments) == 8 > SEGMENTS_AT_ONCE
    assert [request.content_sha256 for request in requests] == [None, video.content_sha256]

    catalog = RecordedCatalog(index_fingerprint(network, SAMPLING))
    report = IndexingPipeline(catalog, network, SAMPLING).run([VideoSource(Path(path))])
    assert report.num_added == 1
    expected = catalog.added
    of_source = {"id", "uri", "title", "metadata", "trusted", "added_at"}
    for name in {field.name for field in fields(video)} - {"segments", *of_source}:
        assert getattr(video, name) == getattr(expected, name), name
    for ours, theirs in zip(video.segments, expected.segments, strict=True):
        assert (ours.start_seconds, ours.end_seconds) == (theirs.start_seconds, theirs.end_seconds)
        np.testing.assert_array_equal(ours.frame_times, theirs.frame_times)
        np.testing.assert_allclose(ours.video_feature, theirs.video_feature, atol=1e-5)


def test_a_file_replaced_between_two_answers_is_refused(network, tmp_path, monkeypatch):
    path = write_numbered_video(tmp_path / "long.mp4", NUM_SECONDS * 5, 5)
    same = path.read_bytes()
    submit = DecodePool.submit

    def replace_after(pool, request):
        future = submit(pool, request)
        future.result()
        path.unlink()
        path.write_bytes(same)
        return future

    monkeypatch.setattr(DecodePool, "submit", replace_after)
    with VideoReader(network, SAMPLING.to_json(), 60.0) as reader, pytest.raises(MediaError, match="changed"):
        reader.read(path)


def test_a_film_that_nobody_waits_for_any_more_is_not_read_to_its_end(network, tmp_path, monkeypatch):
    path = write_numbered_video(tmp_path / "long.mp4", NUM_SECONDS * 5, 5)
    cancelled, requests = threading.Event(), []
    submit = DecodePool.submit

    def submit_and_go_away(pool, request):
        requests.append(request)
        cancelled.set()
        return submit(pool, request)

    monkeypatch.setattr(DecodePool, "submit", submit_and_go_away)
    with (
        VideoReader(network, SAMPLING.to_json(), 60.0) as reader,
        cancellable(cancelled),
        pytest.raises(SearchCancelledError),
    ):
        reader.read(path)
    assert len(requests) == 1
