"""When a video was recorded, as its container says; what cannot be is no answer."""

from __future__ import annotations

import struct
import time
from datetime import UTC, datetime
from pathlib import Path

import av
import numpy as np
import pytest

from indexer.media.frame_reader import probe

TEN = "2024-05-01T10:00:00+00:00"


def write(path: Path, metadata: dict[str, str], codec: str = "mpeg4", **options: str) -> Path:
    with av.open(str(path), "w", container_options=options) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(stream.encode())
    return path


def with_digitization_time(path: Path, text: bytes) -> Path:
    """An AVI with a chunk `IDIT` in its header, as cameras write it."""
    data = path.read_bytes()
    begin = data.index(b"hdrl")
    (size,) = struct.unpack("<I", data[begin - 4 : begin])
    chunk = b"IDIT" + struct.pack("<I", len(text)) + text
    head, rest = data[begin : begin + size], data[begin + size :]
    data = data[: begin - 4] + struct.pack("<I", size + len(chunk)) + head + chunk + rest
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    return path


def recorded(path: Path) -> str | None:
    seconds = probe(path).recorded_at
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("ending", "metadata", "codec", "expected"),
    [
        ("mp4", {"creation_time": "2024-05-01T10:00:00Z"}, "mpeg4", TEN),
        ("mkv", {"creation_time": "2024-05-01T10:00:00Z"}, "mpeg4", TEN),
        ("webm", {"creation_time": "2024-05-01T10:00:00Z"}, "libvpx", TEN),
        ("wmv", {"creation_time": "2024-05-01T10:00:00Z"}, "wmv2", TEN),
        ("mkv", {"DATE_RECORDED": "2024-05-01 10:00:00", "creation_time": "2025-01-01"}, "mpeg4", TEN),
        ("avi", {"date": "2024-05-01"}, "mpeg4", "2024-05-01T00:00:00+00:00"),
        ("avi", {"date": "2024"}, "mpeg4", None),
        ("mp4", {"date": "2024-05-01T12:00:00+0200"}, "mpeg4", TEN),
        ("mp4", {"date": "2024-05-01"}, "mpeg4", None),
        ("mp4", {}, "mpeg4", None),
        ("wmv", {}, "wmv2", None),
        ("mkv", {"creation_time": "1904-01-01T00:00:00Z"}, "mpeg4", None),
        ("mkv", {"creation_time": "1970-01-01T00:00:00Z"}, "mpeg4", None),
        ("mkv", {"DATE_RECORDED": "1970-01-01", "creation_time": "2024-05-01T10:00:00Z"}, "mpeg4", TEN),
        ("mkv", {"DATE_RECORDED": "2999-01-01"}, "mpeg4", None),
        ("mkv", {"DATE_RECORDED": "2024-13-01"}, "mpeg4", None),
        ("mkv", {"DATE_RECORDED": "a spring day"}, "mpeg4", None),
        ("mkv", {"DATE_RECORDED": "20240501"}, "mpeg4", None),
    ],
)
def test_a_container_says_when_it_was_recorded(
    tmp_path: Path, ending: str, metadata: dict[str, str], codec: str, expected: str | None
) -> None:
    assert recorded(write(tmp_path / f"a.{ending}", metadata, codec)) == expected


def test_quicktime_says_it_with_the_zone_of_the_place(tmp_path: Path) -> None:
    metadata = {
        "com.apple.quicktime.creationdate": "2024-05-01T12:00:00+0200",
        "creation_time": "2024-05-02T00:00:00Z",
    }
    assert recorded(write(tmp_path / "a.mov", metadata, movflags="use_metadata_tags")) == TEN


@pytest.mark.parametrize("text", [b"Wed May 01 10:00:00 2024\n\0", b"2024/05/01 10:00:00\0"])
def test_an_avi_of_a_camera_says_it_in_its_header(tmp_path: Path, text: bytes) -> None:
    assert recorded(with_digitization_time(write(tmp_path / "a.avi", {}), text)) == TEN


def test_a_time_within_the_zones_of_the_earth_is_not_the_future(tmp_path: Path) -> None:
    soon = datetime.fromtimestamp(int(time.time()) + 12 * 3600, UTC).isoformat()
    assert recorded(write(tmp_path / "a.mkv", {"DATE_RECORDED": soon})) == soon
