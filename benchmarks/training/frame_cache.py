"""What a clip's frames cost: decoded, decoded and kept, read from the frame cache; then batches by workers.

    python -m benchmarks.training.frame_cache [FOLDER OF VIDEOS]

By default a few drawn for the occasion. Reading is in processor time, batches by the clock: they need a quiet
machine. The cache is in memory, as that of a corpus that fits there is from the second epoch on.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from indexer.ingest.library import find_videos
from model.preprocessing import Resizing
from training.data.batches import BatchPlan, TrainingBatches
from training.data.frames import FrameReader, FrameRecipe
from training.datasets.split import Clip, Split
from training.demo_corpus.corpus import write_corpus

NUM_ROUNDS, NUM_DRAWN, IMAGE_SIZE = 5, 8, 224
BATCH_SIZE, NUM_BATCHES, NUM_EPOCHS = 16, 4, 3


def mean_seconds(reader: FrameReader, clips: list[Clip]) -> float:
    """Processor seconds per clip, the median of several rounds over all of them."""
    rounds = []
    for _ in range(NUM_ROUNDS):
        started = time.process_time()
        for clip in clips:
            reader.read(clip)
        rounds.append(time.process_time() - started)
    return statistics.median(rounds) / len(clips)


def measure_reading(clips: list[Clip], folder: Path) -> None:
    """Print seconds and bytes per clip, for 12 and for 64 frames."""
    print(
        "| frames kept | frames there | decode | decode and write | cached | times faster | bytes on disk |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for num_frames in (12, 64):
        recipe = FrameRecipe(num_frames, Resizing(IMAGE_SIZE), frames_per_second=1 if num_frames == 12 else 8)
        cached = FrameReader(recipe, folder / str(num_frames))
        plain = FrameReader(recipe)
        started = time.process_time()
        there = [len(cached.read(clip)) for clip in clips]
        written = (time.process_time() - started) / len(clips)
        decode, read = mean_seconds(plain, clips), mean_seconds(cached, clips)
        sizes = [entry.stat().st_size for entry in (folder / str(num_frames)).rglob("*.safetensors")]
        times = [f"{seconds * 1000:.1f} ms" for seconds in (decode, written, read)]
        parts = [num_frames, f"{statistics.mean(there):.1f}", *times, f"{decode / read:.0f}"]
        print("|", " | ".join(map(str, [*parts, f"{statistics.mean(sizes):,.0f}"])), "|")


def measure_batches(clips: list[Clip], folder: Path) -> None:
    """Print clips a second of whole epochs, after the first, which starts the workers."""
    num_clips = BATCH_SIZE * NUM_BATCHES
    many = tuple(Clip(str(number), clips[number % len(clips)].path) for number in range(num_clips))
    split = Split("captions", "train", many, tuple("a" * num_clips), tuple(range(num_clips)))
    recipe = FrameRecipe(12, Resizing(IMAGE_SIZE))
    print()
    print("| workers | frames | clips a second |")
    print("| ---: | --- | ---: |")
    for num_workers in (0, 1, 2):
        for name, cache in (("decoded", None), ("cached", folder / "12")):
            with TrainingBatches(
                split,
                lambda texts: torch.zeros(len(texts), 4, dtype=torch.int64),
                FrameReader(recipe, cache),
                BatchPlan(BATCH_SIZE, seed=0),
                num_workers,
            ) as batches:
                list(batches.epoch(0))
                seconds = []
                for epoch in range(1, NUM_EPOCHS + 1):
                    started = time.perf_counter()
                    for _ in batches.epoch(epoch):
                        pass
                    seconds.append(time.perf_counter() - started)
            print(f"| {num_workers} | {name} | {num_clips / statistics.median(seconds):.0f} |")


def main() -> None:
    """Measure the given folder, or drawn videos."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary, "videos")
        if len(sys.argv) == 1:
            write_corpus(source, NUM_DRAWN, seed=0)
        paths = [found.path for found in find_videos([source])]
        clips = [Clip(f"{number} {path.stem}", path) for number, path in enumerate(paths)]
        print(f"{len(clips)} clips, {IMAGE_SIZE} x {IMAGE_SIZE} pixels\n")
        measure_reading(clips, Path(temporary, "cache"))
        measure_batches(clips, Path(temporary, "cache"))


if __name__ == "__main__":
    main()
