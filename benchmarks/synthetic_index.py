"""Indexes of any size without a single video: features drawn like real ones, written as real ones are.

    python -m benchmarks.synthetic_index --num-videos 100000 --index /tmp/synthetic

Features of real videos lie near a space of few dimensions, in clusters, around a common mean, and the frames
of one video resemble each other; texts point away from videos by a common offset (the modality gap, Liang et
al. 2022, arXiv:2203.02053). White noise has none of this and is a far harder case for approximate indexes.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.index import Index
from indexer.store.records import NewVideo, SegmentRecord

NUM_CLUSTERS = 5_000
BLOCK = 1_024
"""Videos drawn together."""

DECAY = 0.75
"""Standard deviations along the axes fall as rank^-DECAY: about 50 axes hold half of the variance of 512."""


@dataclass(frozen=True)
class World:
    """What features are drawn from.

    centres: float32 [C, D], of clusters. spectrum: float32 [D], standard deviations along the axes. mean,
    gap: float32 [D], common to all videos and to all texts.
    """

    centres: NDArray[np.float32]
    spectrum: NDArray[np.float32]
    mean: NDArray[np.float32]
    gap: NDArray[np.float32]

    @classmethod
    def of(cls, dimension: int, seed: int) -> World:
        """The same world for every number of videos."""
        random = np.random.default_rng(seed)
        spectrum = unit((1 + np.arange(dimension, dtype=np.float32)) ** -DECAY)
        centres = normal(random, NUM_CLUSTERS, dimension) * spectrum
        mean, gap = normal(random, 2, dimension) * np.float32(0.8 / np.sqrt(dimension))
        return cls(centres, spectrum, mean, gap)

    def videos(self, random: np.random.Generator, count: int) -> NDArray[np.float32]:
        """float32 [count, D], not of unit length."""
        noise = normal(random, count, len(self.spectrum)) * self.spectrum
        return self.centres[random.integers(len(self.centres), size=count)] + 0.7 * noise

    def texts(self, random: np.random.Generator, videos: NDArray[np.float32]) -> NDArray[np.float32]:
        """One text for each of these videos, float32 [T, D], unit length."""
        noise = normal(random, *videos.shape) * self.spectrum
        return unit(0.6 * videos + 0.5 * noise + self.gap)

    def frames(
        self, random: np.random.Generator, videos: NDArray[np.float32], num_frames: int
    ) -> NDArray[np.float32]:
        """float32 [count, F, D], unit length: each frame strays a little from the one before."""
        steps = normal(random, len(videos), num_frames, len(self.spectrum)) * self.spectrum
        drift = 0.25 * np.cumsum(steps, axis=1)
        return unit(videos[:, None] + drift - drift.mean(axis=1, keepdims=True) + self.mean)


def normal(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Independent numbers of mean 0 and standard deviation 1, float32 of this shape."""
    return random.standard_normal(shape, dtype=np.float32)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same with rows of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def draw_segments(
    num_videos: int, num_frames: int, dimension: int, seed: int = 0, *, first: int = 0
) -> Iterator[tuple[NDArray[np.float32], list[SegmentRecord]]]:
    """Blocks of (videos as the world knows them, a segment for each), from the video `first` on.

    The n-th video is the same one whatever the other arguments: a larger index begins as a smaller one.
    """
    world = World.of(dimension, seed)
    times = np.arange(num_frames, dtype=np.float64)
    for start in range(first - first % BLOCK, num_videos, BLOCK):
        random = np.random.default_rng((seed, start))
        videos = world.videos(random, BLOCK)
        frames = world.frames(random, videos, num_frames)
        pooled = unit(frames.mean(axis=1))
        segments = [
            SegmentRecord(0.0, float(num_frames), feature, some.astype(np.float16), num_frames, times)
            for feature, some in zip(pooled, frames, strict=True)
        ]
        wanted = slice(max(first - start, 0), num_videos - start)
        yield videos[wanted], segments[wanted]


def make_index(
    directory: str | Path, model_spec: str, num_videos: int, seed: int = 0, *, durable: bool = False
) -> float:
    """An index of videos of one segment each, added as the catalog adds them. Returns seconds.

    Goes on with what is there of one: after an interruption, or to make a smaller one larger.
    Every video has metadata to filter by: `shelf` 0 to 99, `even` true or false. durable: wait for the disk
    after each video, as indexing does, or after each block.
    """
    with Index.open_or_create(directory, model_spec, device="cpu") as index:
        started = time.perf_counter()
        catalog, config = index.catalog, index.model.config
        number = catalog.num_videos
        for _, segments in draw_segments(
            num_videos, config.num_frames, config.embedding_dim, seed, first=number
        ):
            # One wait for the disk a block, or one a video.
            together = 1 if durable else len(segments)
            videos = [_video(number + position, segment) for position, segment in enumerate(segments)]
            for position in range(0, len(videos), together):
                catalog.add_videos(videos[position : position + together])
            number += len(videos)
        return time.perf_counter() - started


def drawn_video(number: int, segment: SegmentRecord) -> NewVideo:
    """A video of one drawn segment."""
    return NewVideo(
        content_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        segments=[segment],
        duration_seconds=segment.end_seconds,
        width=640,
        height=360,
        frame_rate=25.0,
        codec="h264",
        size_bytes=1_000_000,
        title=f"Video {number}",
    )


def _video(number: int, segment: SegmentRecord) -> NewVideo:
    facts = {"shelf": number % 100, "even": number % 2 == 0}
    return replace(drawn_video(number, segment), id=f"video-{number}", metadata=facts)


def main() -> None:
    """Make an index."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-videos", type=int, default=1000)
    parser.add_argument("--index", type=Path, help="Where; by default in a folder that is removed again.")
    parser.add_argument("--model", default="openclip:ViT-B-32-quickgelu/random?seed=0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--durable", action="store_true", help="Wait for the disk after each video.")
    choices = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        index = choices.index or Path(temporary) / "index"
        seconds = make_index(index, choices.model, choices.num_videos, choices.seed, durable=choices.durable)
    print(f"{choices.num_videos} videos in {seconds:.1f} s, {1e3 * seconds / choices.num_videos:.2f} ms each")


if __name__ == "__main__":
    main()
