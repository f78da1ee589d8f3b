"""What reading 12 frames of a clip costs, in seconds of processor time, by our reader and by others.

    pip install --no-deps --target /tmp/decord2 decord2
    pip install --no-deps --target /tmp/torchcodec torchcodec
    python -m benchmarks.media.decoding ~/Videos --reader decord --reader decord2=/tmp/decord2 \
        --reader torchcodec=/tmp/torchcodec

Ours looks at all packets first; the others do the same when they open a file, so both are counted whole.
Each has one thread. A reader is right about a clip where every frame is the one that ours gives, up to what
two decoders and conversions differ by; ours is held to the truth by `benchmarks.media.as_shown` and
tests/indexer/media. Without a folder a few clips are drawn.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, arguments
from indexer.errors import MediaError
from indexer.ingest.library import find_videos
from indexer.media.frame_reader import VideoFile
from indexer.media.sampling import Sampling, frame_indices_at, plan_segments
from training.demo_corpus.corpus import write_corpus

NUM_ROUNDS, NUM_DRAWN = 3, 4
SAMPLING = Sampling(12, max_segment_seconds=0)
SAME_FRAME = 4.0
"""Mean difference of two pictures, of 255: two conversions to RGB differ by less, two frames of a moving
picture by more."""

HANG_SECONDS = 60.0


def by_decord(path: str, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Frames [n, H, W, 3] by decord, or by decord2, whose import is called the same."""
    import decord

    reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    frames: NDArray[np.uint8] = reader.get_batch(list(indices)).asnumpy()
    return frames


def by_torchcodec(path: str, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Frames [n, H, W, 3] by torchcodec, with its own check of all packets."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    frames: NDArray[np.uint8] = decoder.get_frames_at(list(indices)).data.numpy()
    return frames


READERS: dict[str, Callable[[str, Sequence[int]], NDArray[np.uint8]]] = {
    "decord": by_decord,
    "decord2": by_decord,
    "torchcodec": by_torchcodec,
}


def import_from(folder: str) -> None:
    """Let this process find a library in `folder` first."""
    if folder:
        sys.path.insert(0, folder)


def read_in_child(name: str, path: str, indices: Sequence[int], right: str) -> tuple[float, float] | str:
    """(least processor seconds, largest mean difference from the frames in the file `right`), or the
    error."""
    expected, seconds = np.load(right), []
    try:
        for _ in range(NUM_ROUNDS):
            started = time.process_time()
            frames = READERS[name](path, indices)
            seconds.append(time.process_time() - started)
    except Exception as error:  # Whatever an alternative raises is its result.
        return f"{type(error).__name__}"
    if frames.shape != expected.shape:
        return f"{frames.shape[2]}x{frames.shape[1]}"
    apart = max(float(np.abs(a.astype(np.int16) - b).mean()) for a, b in zip(frames, expected, strict=True))
    return min(seconds), apart


class Reader:
    """An alternative in a process of its own, with its own copy of the library where a folder is given."""

    def __init__(self, option: str) -> None:
        self.name, _, self._folder = option.partition("=")
        if self.name not in READERS:
            raise SystemExit(f"no reader {self.name}; there are {', '.join(READERS)}")
        self._process: ProcessPoolExecutor | None = None
        self.both_read = np.zeros(2)  # seconds of ours and of this one, where it is right
        self.num_wrong = 0

    def read(self, path: Path, indices: Sequence[int], right: Path) -> tuple[float, float] | str:
        """See `read_in_child`."""
        if self._process is None:
            self._process = ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), import_from, (self._folder,)
            )
        try:
            return self._process.submit(read_in_child, self.name, str(path), indices, str(right)).result(
                HANG_SECONDS
            )
        except (BrokenProcessPool, TimeoutError) as error:
            for process in self._process._processes.values():
                process.kill()
            self.close()
            return "hangs" if isinstance(error, TimeoutError) else "crashes"

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.shutdown(cancel_futures=True)
        self._process = None


def ours(path: Path) -> tuple[float, VideoFile, list[int], list[NDArray[np.uint8]]]:
    """Least processor seconds for looking at a file and reading it, the file, which frames, the frames."""
    seconds, frames = [], []
    for _ in range(NUM_ROUNDS):
        started = time.process_time()
        file = VideoFile(path)
        timeline = file.timeline
        planned = plan_segments(timeline.times, timeline.end_seconds, timeline.frame_rate, SAMPLING)
        times = planned[0].times_seconds
        frames = [frame.rgb for frame in file.frames_at(times, "pyav")]
        seconds.append(time.process_time() - started)
    return min(seconds), file, frame_indices_at(timeline.times, times).tolist(), frames


def measure_folder(folder: Path, readers: list[Reader], report: Report) -> None:
    """A row for each clip, then one for each alternative."""
    names = [reader.name for reader in readers]
    table = report.table("12 frames", {"clip": "", "codec": "", "ours, s": ".3f", **dict.fromkeys(names, "")})
    with tempfile.TemporaryDirectory() as scratch:
        right = Path(scratch) / "right.npy"
        for source in find_videos([folder]):
            try:
                seconds, file, indices, frames = ours(source.path)
            except MediaError as error:
                report.note(f"{source.path.name}: {error}")
                continue
            np.save(right, np.stack(frames))
            cells = []
            for reader in readers:
                found = reader.read(source.path, indices, right)
                is_right = not isinstance(found, str) and found[1] < SAME_FRAME
                reader.num_wrong += not is_right
                if is_right:
                    reader.both_read += seconds, found[0]
                cells.append(found if isinstance(found, str) else f"{found[0]:.3f} ({found[1]:.1f} apart)")
            info = f"{file.info.codec} {file.info.width}x{file.info.height}"
            table.add(source.path.name, info, seconds, *cells)
    if not readers:
        return
    columns = {"reader": "", "ours, s": ".3f", "its, s": ".3f", "its / ours": ".2f", "not right": ""}
    totals = report.table("All clips that both read rightly", columns)
    for reader in readers:
        mine, its = reader.both_read
        totals.add(reader.name, mine, its, its / mine if mine else None, str(reader.num_wrong))


def main() -> None:
    """Measure the given folder, or drawn videos."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="videos; drawn ones where none is given")
    parser.add_argument(
        "--reader", action="append", default=[], metavar="NAME[=FOLDER]", help=f"of {', '.join(READERS)}"
    )
    choices: Any = parser.parse_args()
    readers = [Reader(option) for option in choices.reader]
    with Report("media.decoding", choices) as report, tempfile.TemporaryDirectory() as drawn:
        if choices.folder is None:
            write_corpus(Path(drawn), NUM_DRAWN, seed=0)
        measure_folder(choices.folder or Path(drawn), readers, report)
        for reader in readers:
            reader.close()


if __name__ == "__main__":
    main()
