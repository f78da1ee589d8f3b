"""Encrypted files are refused as protected, whatever the scheme, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.errors import UnsupportedMediaError
from indexer.media.frame_reader import VideoFile
from tests.support.video_files import write_numbered_video

_KEYS = {
    "encryption_scheme": "cenc-aes-ctr",
    "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
    "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
}


def _assert_protected(path: Path) -> None:
    with pytest.raises(UnsupportedMediaError, match="protected"):
        VideoFile(path)


@pytest.mark.parametrize("options", [{}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("scheme", [b"cenc", b"cbcs", b"itun"])
def test_an_encrypted_mp4_is_refused_as_protected(
    tmp_path: Path, scheme: bytes, options: dict[str, str]
) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 10, container_options={**_KEYS, **options})
    content = path.read_bytes()
    at = content.index(b"schm") + 8
    assert content[at : at + 4] == b"cenc"
    path.write_bytes(content[:at] + scheme + content[at + 4 :])
    _assert_protected(path)


def test_samples_that_say_they_are_encrypted_are_enough(tmp_path: Path) -> None:
    """Where the sample entry was renamed and the rest left as it was."""
    path = write_numbered_video(tmp_path / "a.mp4", 10, container_options=_KEYS)
    path.write_bytes(path.read_bytes().replace(b"encv", b"avc1"))
    _assert_protected(path)


@pytest.mark.parametrize("entry", [b"drmi", b"encv"])
def test_the_sample_entry_says_it_without_anything_else(tmp_path: Path, entry: bytes) -> None:
    path = write_numbered_video(tmp_path / "a.mov", 10)
    content = path.read_bytes()
    VideoFile(path)
    at = content.index(b"avc1", content.index(b"stsd"))
    path.write_bytes(content[:at] + entry + content[at + 4 :])
    _assert_protected(path)


def _element(identity: str, content: bytes) -> bytes:
    return (
        bytes.fromhex(identity)
        + bytes([0x10 | len(content) >> 24])
        + len(content).to_bytes(4, "big")[1:]
        + content
    )


@pytest.mark.parametrize("inner", ["503381" + "01", "5035" + "80"])
@pytest.mark.parametrize("size_is_known", [True, False])
def test_an_encrypted_matroska_track_is_refused_as_protected(
    tmp_path: Path, inner: str, size_is_known: bool
) -> None:
    encodings = _element("6d80", _element("6240", bytes.fromhex(inner)))
    track = _element("ae", bytes.fromhex("d78101" + "838101") + encodings)
    tracks = _element("1654ae6b", track)
    segment = _element("18538067", tracks)
    if not size_is_known:
        segment = bytes.fromhex("18538067" + "01" + "ff" * 7) + tracks
    path = tmp_path / "a.webm"
    path.write_bytes(_element("1a45dfa3", bytes.fromhex("42828477656270")) + segment)
    _assert_protected(path)
    compressed = path.read_bytes().replace(bytes.fromhex("503381" + "01"), bytes.fromhex("503381" + "00"))
    if compressed != path.read_bytes():
        path.write_bytes(compressed)
        with pytest.raises(Exception, match=r"^(?!.*protected)"):  # Compressed tracks are no secret.
            VideoFile(path)


def test_an_asf_file_with_windows_media_drm_is_refused_as_protected(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.wmv", 10, codec="wmv2")
    content = path.read_bytes()
    VideoFile(path)
    size = int.from_bytes(content[16:24], "little")
    for guid in ("fbb3112223bdd211b4b700a0c955fc6e", "14e68a292226174cb935dae07ee9289c"):
        added = bytes.fromhex(guid) + (24).to_bytes(8, "little")
        header = content[:16] + (size + 24).to_bytes(8, "little") + content[24:size] + added
        path.write_bytes(header + content[size:])
        _assert_protected(path)


def test_a_scrambled_transport_stream_is_refused_as_protected(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.ts", 100)
    content = bytearray(path.read_bytes())
    VideoFile(path)
    for start in range(0, len(content), 188):
        if (content[start + 1] & 31) << 8 | content[start + 2] == 256:
            content[start + 3] |= 0x80
    path.write_bytes(content)
    _assert_protected(path)


def test_a_scrambled_dvd_is_refused_as_protected(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.vob", 200, codec="mpeg2video", options={"qscale": "2"})
    content = bytearray(path.read_bytes())
    VideoFile(path)
    at, is_odd = content.find(b"\x00\x00\x01\xe0"), False
    while at >= 0:
        if is_odd:  # CSS leaves every other sector or so.
            content[at + 6] |= 0x10
        at, is_odd = content.find(b"\x00\x00\x01\xe0", at + 9), not is_odd
    path.write_bytes(content)
    _assert_protected(path)
