"""What reading 12 frames of a clip costs, by decord and by PyAV, in seconds of processor time, and how the
pixels differ.

python -m benchmarks.media.decoding [FOLDER OF VIDEOS], by default a few drawn for the occasion.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from indexer.ingest.library import find_videos
from indexer.media.frame_reader import VideoFile
from indexer.media.pyav_reader import DecodedFrame
from indexer.media.sampling import Sampling, plan_segments
from training.demo_corpus.corpus import write_corpus

NUM_ROUNDS, NUM_DRAWN = 5, 4
SAMPLING = Sampling(12, max_segment_seconds=0)


def measure(file: VideoFile, times: tuple[float, ...], backend: str) -> tuple[float, list[DecodedFrame]]:
    """Least processor seconds of several rounds, and the frames."""
    best, frames = float("inf"), []
    for _ in range(NUM_ROUNDS):
        started = time.process_time()
        frames = list(file.frames_at(times, backend))  # type: ignore[arg-type]
        best = min(best, time.process_time() - started)
    return best, frames


def main() -> None:
    """Measure the given folder, or drawn videos."""
    with tempfile.TemporaryDirectory() as drawn:
        if len(sys.argv) > 1:
            measure_folder(Path(sys.argv[1]))
        else:
            write_corpus(Path(drawn), NUM_DRAWN, seed=0)
            measure_folder(Path(drawn))


def measure_folder(folder: Path) -> None:
    """Print the table."""
    print("| clip | codec | looking at it | PyAV | decord | mean pixel difference |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    totals = np.zeros(2)
    for source in find_videos([folder]):
        started = time.process_time()
        file = VideoFile(source.path)
        opened = time.process_time() - started
        end, timeline = file.timeline.end_seconds, file.timeline
        times = plan_segments(timeline.times, end, timeline.frame_rate, SAMPLING)[0].times_seconds
        pyav, ours = measure(file, times, "pyav")
        name, info = source.path.name, f"{file.info.codec} {file.info.width}x{file.info.height}"
        if file.open_decord() is None:
            print(f"| {name} | {info} | {opened:.3f} | {pyav:.3f} | - | - |")
            continue
        decord, theirs = measure(file, times, "decord")
        totals += pyav, decord
        difference = max(
            float(np.abs(one.rgb.astype(np.int16) - other.rgb).mean())
            for one, other in zip(ours, theirs, strict=True)
        )
        print(f"| {name} | {info} | {opened:.3f} | {pyav:.3f} | {decord:.3f} | {difference:.2f} |")
    print(f"| all that both read | | | {totals[0]:.3f} | {totals[1]:.3f} | |")


if __name__ == "__main__":
    main()
