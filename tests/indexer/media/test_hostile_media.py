"""A hostile file, or a decoder compromised by one, exceeds no limit and opens no file or connection."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from indexer.errors import (
    DecoderDiedError,
    MediaLimitError,
    NotAVideoError,
    TruncatedMediaError,
    UnsupportedMediaError,
)
from indexer.media import decode_pool
from indexer.media.decode_pool import DecodePool, DecodeRequest
from indexer.media.frame_reader import VideoFile, probe
from indexer.media.probing import MediaLimits
from indexer.media.sampling import Sampling
from model.preprocessing import Resizing
from tests.faults.hostile_files import write_hostile_files
from tests.faults.mutated_clips import decode_mutations, load_clips
from tests.support.video_files import write_numbered_video, write_pictures, write_sound

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to these limits")


def _request(path: Path, **options: Any) -> DecodeRequest:
    return DecodeRequest(str(path), Sampling(2), Resizing(32), **options)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, 60) as pool:
        yield pool


# Limits on what a file may be


def _film_with_sounds(path: Path, num_sounds: int) -> Path:
    film_path = write_numbered_video(path.with_name("film.mp4"), 10)
    sound_path = write_sound(path.with_name("sound.wav"), 1)
    with (
        av.open(str(film_path)) as film,
        av.open(str(sound_path)) as sound,
        av.open(str(path), "w") as container,
    ):
        copies: list[Any] = [container.add_stream_from_template(film.streams.video[0])]
        copies += [container.add_stream_from_template(sound.streams.audio[0]) for _ in range(num_sounds)]
        for source, targets in ((film, copies[:1]), (sound, copies[1:])):
            for packet in source.demux():
                for target in targets if packet.size else ():
                    packet.stream = target
                    container.mux(packet)
    return path


def test_more_streams_than_allowed_are_refused(tmp_path: Path) -> None:
    path = _film_with_sounds(tmp_path / "a.mkv", 9)
    assert probe(path, MediaLimits(max_streams=10)).num_frames == 10
    with pytest.raises(MediaLimitError, match="more than 9 streams"):
        probe(path, MediaLimits(max_streams=9))
    with pytest.raises(MediaLimitError, match="streams"):  # FFmpeg stops by itself
        probe(path, MediaLimits(max_streams=3))


def test_more_packets_than_allowed_are_refused_whatever_they_hold(tmp_path: Path) -> None:
    film = write_numbered_video(tmp_path / "a.mp4", 40)
    assert probe(film, MediaLimits(max_packets=45)).num_frames == 40
    with pytest.raises(MediaLimitError, match="more than 39 packets"):
        probe(film, MediaLimits(max_packets=39))


def test_limits_hold_in_the_pool_with_their_reasons(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 60)
    for limits, reason in (
        (MediaLimits(max_frames=59), "more than 59 frames"),
        (MediaLimits(max_duration_seconds=1), "2 seconds long; at most 1"),
    ):
        with DecodePool(1, 60, limits=limits) as pool, pytest.raises(MediaLimitError, match=reason):
            pool.submit(_request(path)).result()


@linux_only
def test_a_picture_beyond_the_memory_limit_is_refused_and_not_taken_for_damage(tmp_path: Path) -> None:
    black = np.zeros((3000, 4000, 3), np.uint8)
    path = write_pictures(tmp_path / "a.mp4", [black] * 2, codec="mpeg4")
    small = DecodePool(1, 60, memory_limit_bytes=48 << 20)
    with small as pool, pytest.raises(MediaLimitError, match="memory"):
        pool.submit(_request(path)).result()
    with DecodePool(1, 60, memory_limit_bytes=1 << 30) as pool:
        assert pool.submit(_request(path)).result().fraction_read == 1


def test_only_pictures_of_allowed_codecs_are_decoded_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unusual = write_pictures(tmp_path / "a.mkv", [np.zeros((64, 64, 3), np.uint8)] * 3, codec="snow")
    with pytest.raises(UnsupportedMediaError, match="video codec snow is not supported"):
        probe(unusual)
    decoded: set[str] = set()
    from indexer.media import frame_reader, pyav_reader

    talking = _film_with_sounds(tmp_path / "b.mkv", 2)
    plain = pyav_reader._decode
    monkeypatch.setattr(
        pyav_reader, "_decode", lambda packet: decoded.add(packet.stream.type) or plain(packet)
    )
    look = frame_reader._FirstFrame.look
    monkeypatch.setattr(
        frame_reader._FirstFrame,
        "look",
        lambda self, packet: decoded.add(packet.stream.type) or look(self, packet),
    )
    file = VideoFile(talking)
    assert file.info.has_audio
    assert len(list(file.frames_at([0, 0.1]))) == 2
    assert decoded == {"video"}


# Files that name another file: here a named pipe, so that a process that opens it waits and is seen


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary.ts"
    os.mkfifo(path)
    return path


def _is_open_for_reading(pipe: Path) -> bool:
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        assert error.errno == errno.ENXIO
        return False
    return True


@pytest.mark.parametrize("kind", ["playlist", "concat", "alias"])
def test_a_naive_decoder_follows_these_files(tmp_path: Path, canary: Path, kind: str) -> None:
    path = write_hostile_files(tmp_path, canary.name, 9)[kind]
    options = {"enable_drefs": "1"} if kind == "alias" else {}
    naive = subprocess.Popen(
        [sys.executable, "-c", f"import av; av.open({str(path)!r}, options={options!r})"]
    )
    try:
        deadline = time.monotonic() + 60
        while not _is_open_for_reading(canary):
            assert naive.poll() is None and time.monotonic() < deadline, f"{kind} is no danger"
            time.sleep(0.01)
    finally:
        naive.kill()
        naive.wait()


def test_no_file_makes_the_pool_open_another_or_an_address(
    pool: DecodePool, tmp_path: Path, canary: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        files = write_hostile_files(tmp_path, canary.name, server.getsockname()[1])
        for kind, path in files.items():
            future = pool.submit(_request(path))
            if kind == "attachment":
                assert future.result(60).num_segments == 1
            else:
                with pytest.raises(TruncatedMediaError if kind == "alias" else NotAVideoError):
                    future.result(60)
            assert not _is_open_for_reading(canary), kind
        with pytest.raises(TimeoutError):
            server.accept()


STRACE = shutil.which("strace")


def _may_trace() -> bool:
    if STRACE is None:
        return False
    return subprocess.run([STRACE, "-o", os.devnull, "true"], capture_output=True).returncode == 0


@linux_only
def test_every_path_that_a_child_opens_is_the_file_or_the_runtime(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _may_trace():
        pytest.skip("strace is absent or may not trace")
    log, python = tmp_path / "log", sys.executable
    files = list(write_hostile_files(tmp_path, canary.name, 9).values())
    files.append(write_numbered_video(tmp_path / "plain.mp4", 30))
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {STRACE} -f -qq -o {log} -e trace=%file,%network -- {python} "$@"\n')
    wrapper.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    with DecodePool(1, 100) as pool:
        for path in files:
            try:
                pool.submit(_request(path)).result()
            except (NotAVideoError, TruncatedMediaError):
                continue
    calls = log.read_text(errors="replace").splitlines()
    assert not [call for call in calls if canary.name in call]
    assert not [call for call in calls if "AF_INET" in call]
    start = next(number for number, call in enumerate(calls) if str(files[0]) in call)
    calls = calls[start:]  # From the first of the files on; what came before is Python's start.
    assert not [call for call in calls if re.search(r"\b(socket|connect|bind|execve)\(", call)]
    opened = {match[1] for call in calls if (match := re.search(r'\bopen(?:at)?2?\([^"]*"([^"]*)"', call))}
    assert {str(path) for path in files} <= opened, "the trace saw the child at work"
    runtime = [
        sys.prefix,
        sys.base_prefix,
        decode_pool._PACKAGES,
        "/lib",
        "/usr",
        "/etc/ld.so",
        "/etc/localtime",
    ]
    runtime += ["/proc", "/sys", "/dev", "/opt"]
    foreign = opened - {str(path) for path in files}
    assert [path for path in foreign if not path.startswith(tuple(runtime))] == []
    assert [path for path in foreign if Path(path).is_relative_to(tmp_path)] == []


def test_a_child_that_cannot_be_started_is_an_error_of_that_video_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 5)
    with DecodePool(1, 60) as pool:
        assert pool.submit(_request(path)).result().num_segments == 1
        with monkeypatch.context() as full:
            full.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
            pool._children[0].forget()
            with pytest.raises(DecoderDiedError, match="could not be started"):
                pool.submit(_request(path)).result()
        assert pool.submit(_request(path)).result().num_segments == 1


def test_damaged_clips_kill_no_decoder(tmp_path: Path) -> None:
    clips = load_clips(None, tmp_path)
    tally = decode_mutations(clips, range(45), seed=7, scratch=tmp_path)
    assert tally.bad == []
    assert len(tally.outcomes) == 9
    seen = sum(tally.outcomes.values(), Counter())
    assert seen.total() == 45
    assert {"whole", "partial", "NotAVideoError"} <= set(seen), "some are still good, some a little, some not"


@pytest.mark.slow
def test_many_damaged_real_clips_kill_no_decoder(clips_directory: Path, tmp_path: Path) -> None:
    clips = load_clips(clips_directory, tmp_path)
    assert decode_mutations(clips, range(180), seed=8, scratch=tmp_path).bad == []


def test_a_relative_path_means_the_callers_folder(
    pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_numbered_video(tmp_path / "a.mp4", 5)
    monkeypatch.chdir(tmp_path)
    assert pool.submit(_request(Path("a.mp4"))).result().num_segments == 1
    assert pool.submit_picture("a.mp4", 0, 64).result().startswith(b"\xff\xd8\xff")
