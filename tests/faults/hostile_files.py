"""Files that name other files or addresses, as an attacker would upload them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import av

from tests.support.video_files import write_numbered_video

_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"dinf")
"""Boxes of QuickTime that hold boxes, down to the one that says where the pictures are."""


def write_hostile_files(folder: Path, target: str, port: int) -> dict[str, Path]:
    """One of each kind, by what it is; each leads a naive decoder to `target`, in `folder`, or to `port`."""
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"
    beyond = playlist.replace(target, f"http://127.0.0.1:{port}/{target}")
    texts = {
        "playlist": ("m3u8", playlist),
        "playlist named .mp4": ("mp4", playlist),
        "playlist of an address": ("m3u8", beyond),
        "playlist with a full path": ("m3u8", playlist.replace(target, str(folder / target))),
        "concat": ("mp4", f"ffconcat version 1.0\nfile {target}\n"),
        "session description": (
            "mp4",
            f"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
            f"m=video {port} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n",
        ),
        "drawing": (
            "mp4",
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
            f'<image xlink:href="{target}" width="9" height="9"/></svg>',
        ),
        "manifest with an entity": (
            "mp4",
            f'<?xml version="1.0"?><!DOCTYPE MPD [<!ENTITY x SYSTEM "{target}">]><MPD>&x;<BaseURL>{target}'
            "</BaseURL></MPD>",
        ),
    }
    files = {}
    for number, (kind, (ending, text)) in enumerate(texts.items()):
        files[kind] = folder / f"text{number}.{ending}"
        files[kind].write_text(text)
        # The same behind first bytes that promise a video.
        for start, name in ((b"\x1a\x45\xdf\xa3", "matroska"), (b"\x00\x00\x00\x08free", "mp4")):
            disguised = folder / f"text{number}-{name}.{ending}"
            disguised.write_bytes(start + text.encode())
            files[f"{kind} behind first bytes of {name}"] = disguised
    files["alias"] = write_alias(folder / "alias.mov", target)
    files["attachment"] = write_attachment(folder / "attachment.mkv", target)
    return files


def write_alias(path: Path, target: str) -> Path:
    """A QuickTime film whose pictures are in another file of its folder, says its data reference."""
    write_numbered_video(path, 5)
    path.write_bytes(_with_alias(path.read_bytes(), target))
    return path


def write_attachment(path: Path, target: str) -> Path:
    """A Matroska film with a playlist attached, as subtitles have their fonts."""
    film_path = write_numbered_video(path.with_suffix(".mp4"), 30)
    playlist = f"#EXTM3U\n#EXTINF:2,\n{target}\n".encode()
    with av.open(str(film_path)) as film, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(film.streams.video[0])
        container.add_attachment("list.m3u8", "application/vnd.apple.mpegurl", playlist)
        for packet in film.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    return path


def boxes_of(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content without its header) of each box of an MP4 or QuickTime file, outermost only."""
    position = 0
    while position + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        yield kind, content[position + 8 : position + size]
        position += size


def _with_alias(content: bytes, target: str) -> bytes:
    parts = []
    for kind, inside in boxes_of(content):
        if kind in _FOLDERS:
            inside = _with_alias(inside, target)
        elif kind == b"dref":
            inside = struct.pack(">II", 0, 1) + _alias(target)
        parts.append(struct.pack(">I4s", 8 + len(inside), kind) + inside)
    return b"".join(parts)


def _alias(target: str) -> bytes:
    """A data reference of type `alis`, as FFmpeg's mov.c (mov_read_dref) takes it apart."""
    name = f":{target}".encode()
    name += bytes(len(name) % 2)
    record = bytes(10 + 1 + 27 + 12 + 1 + 63 + 16)  # volume and file name: none
    record += struct.pack(">HH", 1, 1) + bytes(16)  # levels up from here, and down to the other
    record += struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)  # 2: the whole path
    return struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
