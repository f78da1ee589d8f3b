"""From which cosine of features on two results look the same: copies of videos against different videos.

    python -m benchmarks.facts.folding [--model SPEC] [--videos DIRECTORY] [--copied 30] [--json PATH]

Without a directory, 500 drawn videos that no training has seen: half of them at random, half in groups of
five that differ in one thing (`training.demo_corpus.held_out`). Of some of them copies are made as people
make them: another quality, codec or frame rate, smaller, cropped, with a logo, brighter; and, which are no
copies, the first and the last third of each. All are read and encoded as the indexer does it. Then, for each
threshold: how many of the different videos a search that finds them all would fold into another, and how many
of the copies would not be folded into what they were made of.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.report import Report, arguments
from indexer.ingest.encoding import encode_segments
from indexer.media.decode_pool import DecodedSegment, DecodePool, DecodeRequest
from indexer.media.frame_reader import VideoFile
from indexer.media.sampling import Sampling
from indexer.search.folding import leaders_of
from indexer.search.types import FOLD_THRESHOLD
from model import XClip
from training.demo_corpus.corpus import write_corpus

THRESHOLDS: Final = (0.9, 0.93, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 0.999)
NUM_DRAWN: Final = 500
NUM_THREADS: Final = 2
MAX_SIDE: Final = 640
"""Of what is copied: more pixels than any model looks at only take time here."""

QUALITY_STEP: Final = 118
"""FF_QP2LAMBDA of FFmpeg: what its quality scale of MPEG-4 is multiplied by."""

Frames = list[NDArray[np.uint8]]


def cropped(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Less 4 % at each side."""
    rows, columns = (max(1, side // 25) for side in frame.shape[:2])
    return frame[rows:-rows, columns:-columns]


def with_logo(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A white sign with letters in a corner, half transparent: 22 % of the width."""
    height, width = frame.shape[:2]
    picture = Image.fromarray(frame)
    sign = picture.copy()
    box = (int(0.74 * width), int(0.88 * height), int(0.96 * width), int(0.96 * height))
    draw = ImageDraw.Draw(sign)
    draw.rectangle(box, fill="white")
    draw.text((box[0] + 2, box[1]), "CHANNEL 5", fill="red", font_size=max(6, int(0.06 * height)))
    return np.asarray(Image.blend(picture, sign, 0.6))


def brighter(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """By 15 %."""
    return np.minimum(frame * 1.15, 255).astype(np.uint8)


@dataclass(frozen=True)
class Copy:
    """How a copy is made of a video.

    part: which of its time, of 1. step: every so manieth frame. scale: of its sides.
    """

    suffix: str = ".mp4"
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "23", "preset": "veryfast"})
    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] = np.asarray
    scale: float = 1.0
    step: int = 1
    part: tuple[float, float] = (0.0, 1.0)

    def write(self, frames: Frames, frame_rate: float, path: Path) -> None:
        """Write the copy of a video of these frames, RGB [H, W, 3]."""
        first, end = (round(len(frames) * bound) for bound in self.part)
        rate = Fraction(frame_rate / self.step).limit_denominator(1000)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(self.codec, rate=rate, options=dict(self.options))
            for number, rgb in enumerate(frames[first : max(first + 1, end) : self.step]):
                changed = self.change(rgb)
                if number == 0:
                    height, width = (max(16, round(side * self.scale) // 2 * 2) for side in changed.shape[:2])
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                    stream.codec_context.thread_count = 1
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(changed), format="rgb24")
                frame = frame.reformat(width, height, "yuv420p")
                frame.pts, frame.time_base = number, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


COPIES: Final = {
    "H.264, CRF 23": Copy(),
    "H.264, CRF 38": Copy(options={"crf": "38", "preset": "veryfast"}),
    "WebM, VP9": Copy(
        ".webm", "libvpx-vp9", {"crf": "40", "b": "0", "deadline": "realtime", "cpu-used": "8"}
    ),
    "AVI, MPEG-4": Copy(".avi", "mpeg4", {"flags": "qscale", "global_quality": str(8 * QUALITY_STEP)}),
    "half the size": Copy(scale=0.5),
    "half the frame rate": Copy(step=2),
    "4 % cropped at each side": Copy(change=cropped),
    "a logo": Copy(change=with_logo),
    "15 % brighter": Copy(change=brighter),
}
PARTS: Final = {"first third": Copy(part=(0.0, 1 / 3)), "last third": Copy(part=(2 / 3, 1.0))}


def read_frames(path: Path) -> tuple[Frames, float]:
    """Frames as players show them, none larger than MAX_SIDE, and how many a second."""
    file = VideoFile(path)
    frames = []
    for frame in file.frames_at(file.timeline.times.tolist()):
        picture = Image.fromarray(frame.rgb)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        frames.append(np.asarray(picture))
    return frames, file.timeline.frame_rate


def write_copies(original: Path, folder: Path) -> dict[str, Path]:
    """A file for each of COPIES and PARTS."""
    frames, frame_rate = read_frames(original)
    paths = {}
    for number, (name, copy) in enumerate({**COPIES, **PARTS}.items()):
        paths[name] = folder / f"{original.stem}-{number}{copy.suffix}"
        copy.write(frames, frame_rate, paths[name])
    return paths


class Encoder:
    """Gives the features that files would be indexed with."""

    def __init__(self, model: XClip, pool: DecodePool) -> None:
        self._model = model
        self._pool = pool
        self._sampling = Sampling(num_frames=model.config.num_frames)

    def features(self, paths: list[Path]) -> NDArray[np.float32]:
        """Of each file's first segment, float32 [N, D]."""
        resizing = self._model.config.resizing
        futures = [self._pool.submit(DecodeRequest(str(path), self._sampling, resizing)) for path in paths]
        segments = [future.result().segments[0] for future in futures]
        return np.concatenate(list(self._encoded(segments)))

    def _encoded(self, segments: list[DecodedSegment]) -> Iterator[NDArray[np.float32]]:
        for first in range(0, len(segments), 32):
            records = encode_segments(self._model, segments[first : first + 32])
            yield np.stack([record.video_feature for record in records])


def add_cosines(
    report: Report, originals: NDArray[np.float32], copies: dict[str, NDArray[np.float32]]
) -> None:
    """The table of cosines. copies: of each kind float32 [N, D], of the first N originals."""
    columns = {"pair": "", "number": "d", **dict.fromkeys(("least", "1 %", "median", "99 %", "most"), ".4f")}
    table = report.table("Cosines of video features", columns)

    def add(name: str, cosines: NDArray[np.float32]) -> None:
        table.add(name, len(cosines), *np.quantile(cosines, (0, 0.01, 0.5, 0.99, 1)).tolist())

    products = originals @ originals.T
    add("two different videos", products[np.triu_indices(len(products), 1)])
    np.fill_diagonal(products, -1)
    add("a different video and the nearest other", products.max(axis=1))
    for name, features in copies.items():
        if name not in PARTS:
            add(f"a video and its copy: {name}", (features * originals[: len(features)]).sum(axis=1))
    first, last = (copies[name] for name in PARTS)
    add("the first and the last third of a video", (first * last).sum(axis=1))


def add_thresholds(
    report: Report, originals: NDArray[np.float32], copies: dict[str, NDArray[np.float32]]
) -> None:
    """The table of what each threshold folds wrongly, and does not fold."""
    kinds = [name for name in copies if name not in PARTS]
    table = report.table(
        f"Folded wrongly, of {len(originals)} different videos, and not folded, of {len(copies[kinds[0]])}"
        " copies of each kind, %",
        {"threshold": ".3f", "different videos": ".1f", "all copies": ".1f", **dict.fromkeys(kinds, ".0f")},
    )
    # An order that owes nothing to how they were drawn: siblings follow one another.
    order = np.random.default_rng(1).permutation(len(originals))
    cosines = {name: (copies[name] * originals[: len(copies[name])]).sum(axis=1) for name in kinds}
    for threshold in sorted({*THRESHOLDS, FOLD_THRESHOLD}):
        leaders, _ = leaders_of(originals[order], threshold)
        is_wrong = leaders != np.arange(len(leaders))
        missed = [100 * float((cosines[name] < threshold).mean()) for name in kinds]
        table.add(threshold, 100 * float(is_wrong.mean()), float(np.mean(missed)), *missed)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default="demo", metavar="SPEC")
    parser.add_argument("--videos", type=Path, metavar="DIRECTORY", help="different videos; by default drawn")
    parser.add_argument("--copied", type=int, default=30, help="videos of which copies are made")
    parser.add_argument("--seed", type=int, default=7)
    choices: argparse.Namespace = parser.parse_args()
    with Report("facts.folding", choices) as report, tempfile.TemporaryDirectory() as folder:
        originals = find_originals(choices, Path(folder))
        num_copied = min(len(originals), 5 if choices.short else choices.copied)
        with DecodePool(NUM_THREADS) as pool, ThreadPoolExecutor(NUM_THREADS) as threads:
            encoder = Encoder(XClip.load(choices.model, "cpu"), pool)
            chosen = np.linspace(0, len(originals) - 1, num_copied).round().astype(int).tolist()
            ordered = [originals[n] for n in chosen] + [p for n, p in enumerate(originals) if n not in chosen]
            written = list(threads.map(lambda path: write_copies(path, Path(folder)), ordered[:num_copied]))
            features = encoder.features(ordered)
            copies = {name: encoder.features([paths[name] for paths in written]) for name in written[0]}
        add_cosines(report, features, copies)
        add_thresholds(report, features, copies)


def find_originals(choices: argparse.Namespace, folder: Path) -> list[Path]:
    """The files to compare: those that were named, or drawn ones."""
    if choices.videos is not None:
        return sorted(path for path in choices.videos.iterdir() if path.is_file())
    write_corpus(folder / "drawn", 20 if choices.short else NUM_DRAWN, choices.seed, num_threads=NUM_THREADS)
    return sorted((folder / "drawn").glob("*.mp4"))


if __name__ == "__main__":
    main()
