"""The decode pool: what children answer, and that hung, crashed and greedy ones affect no other request."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from indexer.errors import (
    DecoderDiedError,
    DecodeTimeoutError,
    MediaError,
    MediaLimitError,
    NotAVideoError,
    UnsupportedMediaError,
)
from indexer.media import decode_child, decode_pool
from indexer.media.decode_messages import MAX_SEGMENTS_PER_ANSWER, decoded_from_message, decoded_to_message
from indexer.media.decode_pool import DecodePool, DecodeRequest, HashedFile
from indexer.media.frame_reader import VideoFile
from indexer.media.probing import MediaLimits
from indexer.media.sampling import Sampling
from model.preprocessing import Resizing
from tests.support.video_files import shown_number, write_numbered_video, write_pictures

SIZE = 32


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(2, 30) as pool:
        yield pool


def _request(path: Path, num_frames: int = 4, **options: object) -> DecodeRequest:
    sampling = options.pop("sampling", None) or Sampling(num_frames)
    return DecodeRequest(str(path), sampling, Resizing(SIZE), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("trusted", [True, False])
def test_an_answer_holds_the_sampled_frames(pool: DecodePool, tmp_path: Path, trusted: bool) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 150)
    video = pool.submit(_request(path, trusted=trusted)).result()
    assert video.info == VideoFile(path).info
    assert (video.num_segments, video.partial, video.fraction_read) == (1, False, 1.0)
    (segment,) = video.segments
    assert (segment.start_seconds, segment.end_seconds) == (0, pytest.approx(5))
    assert segment.frame_times.tolist() == [0, 1, 2, 4]
    expected = [Resizing(SIZE)(frame.rgb) for frame in VideoFile(path).frames_at([0, 1, 2, 4])]
    np.testing.assert_array_equal(segment.frames, np.stack(expected))


def test_a_long_video_comes_in_several_answers(pool: DecodePool, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 200, rate=1, keyframe_interval=10)
    sampling = Sampling(3, max_segment_seconds=10)
    first = pool.submit(_request(path, sampling=sampling)).result()
    second = pool.submit(_request(path, sampling=sampling, first_segment=16)).result()
    assert first.num_segments == second.num_segments == 20
    assert (len(first.segments), len(second.segments)) == (MAX_SEGMENTS_PER_ANSWER, 4)
    starts = [segment.start_seconds for segment in first.segments + second.segments]
    assert starts == pytest.approx([10.0 * number for number in range(20)])
    times = np.concatenate([segment.frame_times for segment in first.segments + second.segments])
    assert times.tolist() == [10 * segment + offset for segment in range(20) for offset in (0, 4, 9)]
    with pytest.raises(MediaError, match="changed"):
        pool.submit(_request(path, sampling=sampling, first_segment=20)).result()


def test_a_file_is_hashed_and_then_decoded_as_it_was_hashed(pool: DecodePool, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 10)
    status = path.stat()
    hashed = pool.submit_hash(path).result()
    assert hashed == HashedFile(
        hashlib.sha256(path.read_bytes()).hexdigest(),
        (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns),
    )
    assert pool.submit(_request(path, stamp=hashed.stamp)).result().num_segments == 1
    same = path.read_bytes()
    path.unlink()
    path.write_bytes(same)
    with pytest.raises(MediaError, match="changed while it was read"):
        pool.submit(_request(path, stamp=hashed.stamp)).result()


def test_a_file_that_is_no_video_is_not_hashed(pool: DecodePool, tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("words")
    with pytest.raises(NotAVideoError, match="not a video"):
        pool.submit_hash(tmp_path / "words.mp4").result()
    with pytest.raises(MediaError, match="cannot be read"):
        pool.submit_hash(tmp_path / "absent.mp4").result()


def test_the_official_rule_works_through_the_pool(pool: DecodePool, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 100, rate=25)
    sampling = Sampling(3, max_segment_seconds=0, rule="official")
    video = pool.submit(_request(path, sampling=sampling)).result()
    assert video.segments[0].frame_times.tolist() == [0, 1, 3]
    slow = write_numbered_video(tmp_path / "b.mp4", 10, rate=2)
    too_many = Sampling(3, frames_per_second=5, max_segment_seconds=0, rule="official")
    with pytest.raises(UnsupportedMediaError, match="official rule"):
        pool.submit(_request(slow, sampling=too_many)).result()


def test_a_refusal_keeps_its_kind_and_reason(pool: DecodePool, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("words")
    with pytest.raises(NotAVideoError, match="not a video"):
        pool.submit(_request(tmp_path / "a.mp4")).result()
    with pytest.raises(MediaError, match="cannot be read"):
        pool.submit(_request(tmp_path / "absent.mp4")).result()


def test_a_picture_of_a_moment_is_a_jpeg_of_the_right_frame(pool: DecodePool, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 90)
    whole = Image.open(BytesIO(pool.submit_picture(path, 1.5, 500).result()))
    assert (whole.format, whole.size) == ("JPEG", (128, 32))
    assert shown_number(np.asarray(whole)) == 45
    assert Image.open(BytesIO(pool.submit_picture(path, 99, 64).result())).size == (64, 16)


def test_a_damaged_file_is_partial(pool: DecodePool, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mkv", 300)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = pool.submit(_request(path)).result()
    assert video.partial
    assert 0.2 < video.fraction_read < 0.8


def test_a_video_of_which_a_wanted_frame_is_damaged_is_partial(pool: DecodePool, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 120, keyframe_interval=30)
    with av.open(str(path)) as container:
        key = [packet for packet in container.demux(video=0) if packet.is_keyframe][2]
        start, size = key.pos, key.size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    for trusted in (True, False):
        video = pool.submit(_request(path, trusted=trusted)).result()
        assert (video.partial, video.fraction_read) == (True, 0.75)


def test_limits_hold_in_children(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 30)
    with DecodePool(1, 30, limits=MediaLimits(max_pixels=100)) as pool, pytest.raises(MediaLimitError):
        pool.submit(_request(path)).result()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the memory limit")
def test_a_file_that_needs_too_much_memory_is_refused(tmp_path: Path) -> None:
    large = write_pictures(tmp_path / "a.mp4", [np.zeros((4000, 4000, 3), np.uint8)] * 2, codec="mpeg4")
    small = write_numbered_video(tmp_path / "b.mp4", 10)
    with DecodePool(1, 60, memory_limit_bytes=64 << 20) as pool:
        with pytest.raises(MediaError, match=r"memory|crashed|decoded|damaged"):
            pool.submit(_request(large)).result()
        assert pool.submit(_request(small)).result().num_segments == 1


# Children that misbehave: a stand-in for the program they run

HANGS = """
import signal, sys, os
sys.path.insert(0, sys.argv[2])
import indexer.media.decode_child as child
plain = child._decode
def decode(request, files):
    name = os.path.basename(request.path)
    if 'hang' in name:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        __import__('ctypes').PyDLL(None).sleep(1000)  # with the interpreter lock held
    if 'crash' in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if 'decord' in name and request.trusted and request.backend != 'pyav':
        os.kill(os.getpid(), signal.SIGSEGV)
    if 'nonsense' in name:
        os.write(int(sys.argv[1]), b'\\xff' * 100)
        import time; time.sleep(1000)
    return plain(request, files)
child._decode = decode
child.serve(int(sys.argv[1]))
"""


@pytest.fixture
def bad_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "_CHILD_PROGRAM", HANGS)


@pytest.mark.usefixtures("bad_children")
def test_a_hung_decoder_is_killed_and_the_others_go_on(tmp_path: Path) -> None:
    good = write_numbered_video(tmp_path / "good.mp4", 10)
    with DecodePool(2, 1000) as pool:
        pool.submit(_request(good)).result()
        pool.timeout_seconds = 2.0
        hung = pool.submit(_request(tmp_path / "hang.mp4"))
        time.sleep(0.2)
        pool.timeout_seconds = 1000
        with pytest.raises(DecodeTimeoutError, match="longer than 2 seconds"):
            hung.result()
        hung_again = pool.submit(_request(tmp_path / "hang.mp4"))
        others = [pool.submit(_request(good)) for _ in range(4)]
        assert [other.result().num_segments for other in others] == [1] * 4
        assert not hung_again.done()


@pytest.mark.usefixtures("bad_children")
def test_a_crashed_decoder_is_reported_and_replaced(tmp_path: Path) -> None:
    good = write_numbered_video(tmp_path / "good.mp4", 10)
    with DecodePool(1, 30) as pool:
        with pytest.raises(DecoderDiedError, match="signal 11"):
            pool.submit(_request(tmp_path / "crash.mp4")).result()
        with pytest.raises(DecoderDiedError, match="invalid answer"):
            pool.submit(_request(tmp_path / "nonsense.mp4")).result()
        assert pool.submit(_request(good)).result().num_segments == 1


@pytest.mark.usefixtures("bad_children")
def test_what_decord_crashes_on_is_read_by_pyav(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "decord.mp4", 10)
    with DecodePool(1, 30) as pool:
        request = replace(_request(path, trusted=True), backend="decord")
        assert pool.submit(request).result().num_segments == 1


def test_children_stand_back_for_processors_as_far_as_they_are_told() -> None:
    with DecodePool(1, 30, niceness=5) as nice, DecodePool(1, 30) as plain:
        path = Path(__file__)  # not a video, but the answer shows that the child is ready
        for pool, niceness in ((nice, 5), (plain, 0)):
            with pytest.raises(MediaError):
                pool.submit_hash(path).result()
            process = pool._children[0]._process
            assert process is not None
            assert (
                os.getpriority(os.PRIO_PROCESS, process.pid) == os.getpriority(os.PRIO_PROCESS, 0) + niceness
            )


@pytest.mark.usefixtures("bad_children")
def test_closing_ends_children_immediately(tmp_path: Path) -> None:
    pool = DecodePool(1, 1000)
    running = pool.submit(_request(tmp_path / "hang.mp4"))
    waiting = pool.submit(_request(tmp_path / "hang.mp4"))
    while not running.running():
        time.sleep(0.01)
    pool.close()
    with pytest.raises(DecoderDiedError, match="stopped"):
        running.result()
    assert waiting.cancelled()


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from indexer.media.decode_pool import DecodePool\n"
        "pool = DecodePool(2, 30)\n"
        "print(*[child._process.pid for child in pool._children], flush=True)\n"
        "time.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 90
    while any(_is_running(pid) for pid in children):
        assert time.monotonic() < deadline, "a child outlived its parent"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that its new parent has not reaped yet is not running.
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_a_child_imports_neither_torch_nor_the_network() -> None:
    program = (
        "import sys, json, indexer.media.decode_child, indexer.media.decord_reader, decord;"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"av", "numpy", "PIL"} <= loaded
    assert not loaded & {"torch", "open_clip", "faiss", "sqlite3", "fastapi", "httpx", "ssl"}


def test_an_answer_that_does_not_fit_the_question_is_refused(tmp_path: Path, pool: DecodePool) -> None:
    request = _request(write_numbered_video(tmp_path / "a.mp4", 90))
    video = pool.submit(request).result()
    header, parts = decoded_to_message(video)
    payload = bytearray(b"".join(parts))
    header = json.loads(json.dumps(header))
    again = decoded_from_message(header, payload, request)
    np.testing.assert_array_equal(again.segments[0].frames, video.segments[0].frames)
    for bad_header, bad_payload in (
        ({}, payload),
        ({**header, "segments": []}, payload),
        ({**header, "segments": header["segments"] * 2}, payload),
        ({**header, "info": {"codec": "x"}}, payload),
        (header, payload[:-1]),
        (header, payload + bytes(SIZE * SIZE * 3)),
    ):
        with pytest.raises(DecoderDiedError, match="invalid answer"):
            decoded_from_message(bad_header, bad_payload, request)


def test_a_child_killed_from_outside_is_replaced(pool: DecodePool, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 10)
    for child in pool._children:
        assert child._process is not None
        os.kill(child._process.pid, signal.SIGKILL)
    outcomes = []
    for _ in range(4):
        try:
            outcomes.append(pool.submit(_request(path)).result().num_segments)
        except DecoderDiedError:
            outcomes.append(0)
    assert outcomes[-1] == 1
    assert outcomes.count(0) <= 2


def test_real_clips_and_broken_ones_pass_through_the_pool(pool: DecodePool, clips_directory: Path) -> None:
    from tests.indexer.media.test_probing import ACCEPTED

    broken = sorted((clips_directory / "broken").glob("*.*"))
    futures = {
        path.name: [pool.submit(_request(path, trusted=trusted)) for trusted in (True, False)]
        for path in broken
        if path.suffix != ".json"
    }
    for name, (trusted, untrusted) in futures.items():
        if name not in ACCEPTED:
            for future in (trusted, untrusted):
                with pytest.raises(MediaError):
                    future.result()
            continue
        first, second = trusted.result(), untrusted.result()
        assert first.partial == second.partial
        for ours, theirs in zip(first.segments, second.segments, strict=True):
            assert np.abs(ours.frames.astype(int) - theirs.frames).mean() < 1, name


def test_a_film_that_is_asked_for_in_parts_is_hashed_once_and_again_where_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looked = write_numbered_video(tmp_path / "a.mp4", 240, rate=2), []

    def look(*arguments: Any) -> VideoFile:
        looked.append(arguments)
        return VideoFile(*arguments)

    def stamp() -> tuple[int, ...]:
        return decode_child._stamp(path.stat())

    def numbers(files: decode_child._Files, first_segment: int) -> list[int]:
        request = _request(path, first_segment=first_segment, max_segments=1, stamp=stamp())
        (segment,) = decode_child._decode(request, files).segments
        return [round(time) for time in segment.frame_times]

    monkeypatch.setattr(decode_child, "VideoFile", look)
    files = decode_child._Files(MediaLimits())
    parts = [numbers(files, number) for number in (0, 1, 0)]
    assert parts[0] == parts[2] == [0, 19, 39, 59] and parts[1] == [60, 79, 99, 119]
    assert len(looked) == 1
    files.open(path, stamp(), goes_on=False)
    assert len(looked) == 2, "a new request looks for itself"
    write_numbered_video(path, 40, rate=2)
    assert numbers(files, 0) == [0, 6, 12, 19] and len(looked) == 3
