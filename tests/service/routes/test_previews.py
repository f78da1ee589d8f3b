"""Previews: clips out of real files by a child of the server, over HTTP; and which files need one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from indexer.errors import DecodeTimeoutError
from indexer.media.preview import (
    CLIP_FRAME_RATE,
    CLIP_SECONDS,
    MAX_CLIP_SIDE,
    MIN_CLIP_SIDE,
    clip_size,
    clip_times,
)
from service.app import create_app
from service.errors import RangeNotSatisfiableError
from service.http.files import wanted_bytes
from service.settings import Settings
from tests.support.servers.service_fakes import FakeSearcher, Service, add_video, make_catalog, running
from tests.support.video_files import shown_number, write_numbered_video

MP4 = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8
CLIP = b"a clip of a.mkv"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "index") as service:
        path = tmp_path / "a.mkv"
        path.write_bytes(MP4)
        add_video(service.catalog, "a", MP4, uri=str(path))
        yield service


def frames_of(clip: bytes) -> tuple[list[int], list[float]]:
    """Numbers shown and times of a clip's frames."""
    with av.open(io.BytesIO(clip)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        context = container.streams.video[0].codec_context
        assert (context.codec.canonical_name, context.pix_fmt) == ("h264", "yuv420p")
        frames = list(container.decode(video=0))
    return [shown_number(np.asarray(frame.to_ndarray(format="rgb24"))) for frame in frames], [
        frame.time or 0.0 for frame in frames
    ]


@pytest.mark.parametrize(("ending", "codec"), [("avi", "mpeg4"), ("mkv", "libx264")])
def test_a_preview_shows_the_frames_of_its_seconds(tmp_path: Path, ending: str, codec: str) -> None:
    path = write_numbered_video(tmp_path / f"a.{ending}", 120, rate=10, codec=codec)
    with make_catalog(tmp_path / "index") as catalog:
        add_video(catalog, "a", path.read_bytes(), uri=str(path))
        add_video(catalog, "text", b"#EXTM3U\n/etc/passwd\n", uri=str(tmp_path / "text.mp4"))
        (tmp_path / "text.mp4").write_bytes(b"#EXTM3U\n/etc/passwd\n")
        app = create_app(Settings(index=tmp_path / "index"), searcher=FakeSearcher(catalog))  # type: ignore[arg-type]
        with TestClient(app) as client:
            numbers, times = frames_of(client.get("/videos/a/preview?time_seconds=2.5").content)
            assert len(numbers) == round(CLIP_SECONDS * CLIP_FRAME_RATE)
            expected = [int((2.5 + number / CLIP_FRAME_RATE) * 10 + 1e-6) for number in range(len(numbers))]
            assert numbers == expected
            assert np.allclose(np.diff(times), 1 / CLIP_FRAME_RATE, atol=1e-3)
            at_the_end, _ = frames_of(client.get("/videos/a/preview?time_seconds=1000").content)
            assert at_the_end[0] == 100 and at_the_end[-1] == 119  # The last two of twelve seconds.
            refused = client.get("/videos/text/preview")
            assert refused.status_code == 404 and refused.json()["type"].endswith("media-not-found")


@given(end_seconds=st.floats(0.001, 1e5), time_seconds=st.floats(0, 1e6))
def test_the_frames_of_a_clip_lie_in_the_video_and_are_evenly_apart(
    end_seconds: float, time_seconds: float
) -> None:
    times = clip_times(end_seconds, time_seconds)
    assert 1 <= len(times) <= CLIP_SECONDS * CLIP_FRAME_RATE
    assert times[0] >= 0 and times[-1] < end_seconds and times[0] <= time_seconds
    assert np.allclose(np.diff(times), 1 / CLIP_FRAME_RATE)


@given(width=st.integers(1, 8000), height=st.integers(1, 8000))
def test_the_sides_of_a_clip_are_even_and_bounded(width: int, height: int) -> None:
    sides = clip_size(width, height)
    for side, original in zip(sides, (width, height), strict=True):
        assert side % 2 == 0 and MIN_CLIP_SIDE <= side <= max(MIN_CLIP_SIDE, min(original, MAX_CLIP_SIDE))


def test_a_preview_is_made_once_and_forgotten_with_its_video(service: Service) -> None:
    for _ in range(3):
        response = service.client.get("/videos/a/preview?time_seconds=1.5")
        assert (response.content, response.headers["content-type"]) == (CLIP, "video/mp4")
    assert [time for _, time in service.clips] == [1.5]
    service.client.delete("/videos/a")
    assert service.client.get("/videos/a/preview").status_code == 404


def test_a_player_gets_parts_of_a_preview_and_need_not_load_it_again(service: Service) -> None:
    whole = service.client.get("/videos/a/preview")
    etag = whole.headers["etag"]
    part = service.client.get("/videos/a/preview", headers={"Range": "bytes=2-5"})
    assert (part.status_code, part.content) == (206, CLIP[2:6])
    assert part.headers["content-range"] == f"bytes 2-5/{len(CLIP)}"
    same = service.client.get("/videos/a/preview", headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    other = service.client.get("/videos/a/preview", headers={"Range": "bytes=2-5", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, CLIP)
    outside = service.client.get("/videos/a/preview", headers={"Range": "bytes=99-"})
    assert outside.status_code == 416 and outside.headers["content-range"] == f"bytes */{len(CLIP)}"
    assert service.client.head("/videos/a/preview").headers["content-length"] == str(len(CLIP))


def test_a_preview_that_cannot_be_made_is_a_404(service: Service) -> None:
    service.picture_error = DecodeTimeoutError("decoding took longer than 10 seconds")
    response = service.client.get("/videos/a/preview")
    assert response.status_code == 404 and response.json()["type"].endswith("media-not-found")
    assert service.client.get("/videos/unknown/preview").json()["type"].endswith("video-not-found")
    assert service.client.get("/videos/a/preview?time_seconds=-1").status_code == 422


@pytest.mark.parametrize(
    ("content", "codec", "playable"),
    [
        (MP4, "h264", True),
        (MP4, "av1", True),
        (MP4, "hevc", False),
        (MP4, "mpeg4", False),
        (b"\x00\x00\x00\x14ftypqt  " + bytes(500), "h264", False),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + bytes(500), "vp9", True),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x88matroska" + bytes(500), "h264", False),
        (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(500), "h264", False),
    ],
)
def test_playable_follows_from_container_and_codec(
    service: Service, content: bytes, codec: str, playable: bool
) -> None:
    content += b"of its own"  # The same bytes would be the same video.
    path = service.directory.parent / "b"
    path.write_bytes(content)
    add_video(service.catalog, "b", content, uri=str(path), codec=codec)
    assert service.client.get("/videos/b").json()["playable"] is playable
    (listed, _) = service.client.get("/videos").json()["videos"]
    assert listed["playable"] is playable and listed["preview_url"] == "/videos/b/preview?time_seconds=0.000"
    results = service.client.post("/search", json={"query": "x"}).json()["results"]
    assert results[0]["playable"] is playable
    assert results[0]["preview_url"] == "/videos/b/preview?time_seconds=5.000"


def test_a_new_video_of_the_same_id_is_checked_for_playability_again(service: Service) -> None:
    assert service.client.get("/videos").json()["videos"][0]["playable"] is True
    service.catalog.delete_video("a")
    other = b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(500)
    (service.directory.parent / "a.mkv").write_bytes(other)
    add_video(service.catalog, "a", other, uri=str(service.directory.parent / "a.mkv"))
    assert service.client.get("/videos").json()["videos"][0]["playable"] is False


@pytest.mark.parametrize("header", ["bytes=5-", "bytes=5-7", "bytes=-4", "bytes = 0-0", "bytes=3-999"])
def test_a_range_is_what_slicing_gives(header: str) -> None:
    content = bytes(range(20))
    first, last = header.replace(" ", "").removeprefix("bytes=").split("-")
    sliced = content[int(first) : int(last) + 1 if last else None] if first else content[-int(last) :]
    wanted = wanted_bytes(header, len(content))
    assert wanted is not None and content[wanted.start : wanted.stop] == sliced


@pytest.mark.parametrize(
    "header", [None, "", "bytes=", "bytes=1-2,4-5", "bytes=7-3", "lines=1-2", "bytes=a-b"]
)
def test_a_range_that_is_not_understood_is_ignored(header: str | None) -> None:
    assert wanted_bytes(header, 20) is None


@pytest.mark.parametrize("header", ["bytes=20-", "bytes=20-30", "bytes=-0"])
def test_a_range_outside_of_the_file_is_refused(header: str) -> None:
    with pytest.raises(RangeNotSatisfiableError):
        wanted_bytes(header, 20)
