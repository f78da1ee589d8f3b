"""Whether a video is found however its file is stored: captions' ranks for clips re-encoded in odd ways.

    python -m benchmarks.media.as_shown --clips DIR --model SPEC [--made DIR] [--speed-against CHECKOUT]

DIR holds captions.json (a list of {"file", "captions"}), or lies next to it. Each clip is re-encoded in each
way, so that a player shows the same, and stands alone among the other clips as they are; its captions are
ranked by the total score. A file that is refused counts as last. `--made` keeps the files, so that another
version of the code can be measured with the same ones: copy this program into its checkout.

`--speed-against` measures decoding and resizing of the plain clips by this checkout and another, in turns,
instead.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Colorspace
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import REPOSITORY
from indexer.errors import MediaError
from indexer.ingest.pipeline import IndexingPipeline, VideoEncoder
from indexer.media.frame_reader import VideoFile
from model import VideoFeatures
from tests.support.tagged_videos import BT709, BT2020, HLG, PQ, UNTAGGED, as_hdr
from xclip_search import Index

RATE = 6
SHORT_SIDE = 288
MAX_SECONDS = 6.0
ONE = 1 << 16


@dataclass(frozen=True)
class Storage:
    """How pictures are stored. aspect: of a stored pixel. mirrored: stored so, and the container says it."""

    ending: str = "mp4"
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=lambda: {"preset": "veryfast", "crf": "18"})
    aspect: Fraction = Fraction(1)
    mirrored: bool = False
    transfer: int = UNTAGGED
    matrix: int = UNTAGGED
    num_parts: int = 1
    short_side: int = SHORT_SIDE
    woven: bool = False


_X265 = {"preset": "ultrafast", "crf": "16", "x265-params": "log-level=none:bframes=0"}
_HDR = {"codec": "libx265", "pixel_format": "yuv420p10le", "options": _X265, "matrix": BT2020}
KINDS: dict[str, Storage] = {
    "plain": Storage(),
    "HDR, PQ": Storage(transfer=PQ, **_HDR),  # type: ignore[arg-type]
    "HDR, HLG": Storage(ending="mov", transfer=HLG, **_HDR),  # type: ignore[arg-type]
    "anamorphic 64:45": Storage(aspect=Fraction(64, 45)),
    "anamorphic 1:2": Storage(ending="mkv", aspect=Fraction(1, 2)),
    "hflip": Storage(mirrored=True),
    "interlaced TS": Storage(
        ending="ts",
        woven=True,
        options={"preset": "veryfast", "crf": "18", "x264-params": "interlaced=1:tff=1"},
    ),
    "joined TS": Storage(ending="ts", num_parts=2),
    "HD, BT.709, untagged": Storage(short_side=720, matrix=BT709),
}


def pictures_of(path: Path, rate: float) -> list[NDArray[np.uint8]]:
    """What a clip shows at `rate` pictures a second, RGB; the last one repeated where there are few, since
    two recordings of interlaced pairs take four."""
    file = VideoFile(path)
    end = min(file.timeline.end_seconds, MAX_SECONDS)
    times = [number / rate for number in range(max(4, int(end * rate)))]
    return [frame.rgb for frame in file.frames_at([min(time, end) for time in times])]


def write(path: Path, pictures: Sequence[NDArray[np.uint8]], storage: Storage) -> None:
    """One file of pictures that a player shows as they are given."""
    if storage.num_parts > 1:
        content = b""
        for part in np.array_split(np.arange(len(pictures)), storage.num_parts):
            write(path, [pictures[number] for number in part], Storage(ending=storage.ending))
            content += path.read_bytes()
        path.write_bytes(content)
        return
    scale = storage.short_side / min(pictures[0].shape[:2])
    height, width = (side * scale for side in pictures[0].shape[:2])
    if storage.aspect > 1:
        width /= float(storage.aspect)
    else:
        height *= float(storage.aspect)
    width, height = round(width / 2) * 2, round(height / 4) * 4
    if storage.woven:
        pictures = [_woven(*pair, height) for pair in zip(pictures[::2], pictures[1::2], strict=False)]
    rate = RATE // 2 if storage.woven else RATE
    with av.open(str(path), "w") as container:
        stream = container.add_stream(storage.codec, rate=rate, options=dict(storage.options))
        stream.width, stream.height, stream.pix_fmt = width, height, storage.pixel_format
        context = stream.codec_context
        if storage.aspect != 1:
            context.sample_aspect_ratio = storage.aspect
        if storage.mirrored:
            stream.set_display_matrix([-ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30])
        if storage.transfer != UNTAGGED:
            context.color_primaries, context.color_trc = BT2020, storage.transfer
            context.colorspace = BT2020
        for number, rgb in enumerate(pictures):
            shown = rgb[:, ::-1] if storage.mirrored else rgb
            small = Image.fromarray(np.ascontiguousarray(shown)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            frame = _stored(av.VideoFrame.from_image(small), storage)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _stored(frame: av.VideoFrame, storage: Storage) -> av.VideoFrame:
    if storage.transfer != UNTAGGED:
        hdr = as_hdr(frame.to_ndarray(format="rgb24"), storage.transfer)
        stored = av.VideoFrame.from_ndarray(hdr, format="rgb48le").reformat(
            format=storage.pixel_format, dst_colorspace=Colorspace.BT2020
        )
        stored.color_primaries, stored.color_trc, stored.colorspace = BT2020, storage.transfer, BT2020
        return stored
    space = Colorspace.ITU709 if storage.matrix == BT709 else Colorspace.SMPTE170M
    stored = frame.reformat(format=storage.pixel_format, dst_colorspace=space)
    stored.colorspace = UNTAGGED
    return stored


def _woven(upper: NDArray[np.uint8], lower: NDArray[np.uint8], height: int) -> NDArray[np.uint8]:
    """Lines of two instants, interleaved."""
    size = (upper.shape[1] * height // upper.shape[0], height)
    woven = np.array(Image.fromarray(upper).resize(size))
    woven[1::2] = np.asarray(Image.fromarray(lower).resize(size))[1::2]
    return woven


class Features:
    """Encodes files as indexing does, with one decoding process. refused: files that were not read."""

    def __init__(self, encoder: VideoEncoder) -> None:
        self.encoder = encoder
        self.refused: list[str] = []

    def of(self, path: Path) -> VideoFeatures | None:
        """Features of the first segment, which is all of a short clip; None where it is refused."""
        try:
            record = self.encoder.encode_file(path).segments[0]
        except MediaError as error:
            self.refused.append(f"{path.name}: {error.reason}")
            return None
        frames = torch.from_numpy(record.frame_features.copy()).float()[None]
        video = torch.from_numpy(record.video_feature.copy())[None]
        return VideoFeatures(video, frames, torch.arange(frames.shape[1])[None] < record.num_frames)


def measure(clips: list[tuple[Path, list[str]]], encoder: VideoEncoder, made: Path) -> None:
    """Print a row for each kind."""
    features, model = Features(encoder), encoder.model
    originals = [features.of(path) for path, _ in clips]
    texts = [model.encode_text(captions) for _, captions in clips]

    def scores(text: Any, video: Any) -> NDArray[np.float64]:
        with torch.inference_mode():
            return model.score(text, video).total[:, 0].double().numpy()

    table = [[scores(text, video) for video in originals] for text in texts]
    print("| stored as | median rank | mean rank | R@1 % | cosine with the plain clip | refused |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind, storage in {"(the clip itself)": None, **KINDS}.items():
        ranks: list[float] = []
        cosines: list[float] = []
        features.refused.clear()
        for number, (path, captions) in enumerate(clips):
            video = originals[number] if storage is None else features.of(_made(made, kind, storage, path))
            if video is None:
                ranks += [float(len(clips))] * len(captions)
                continue
            own = scores(texts[number], video)
            others = np.stack([row for other, row in enumerate(table[number]) if other != number])
            ranks += (1 + (others > own).sum(axis=0)).tolist()
            cosines.append(float((originals[number].video * video.video).sum()))
        found = np.array(ranks)
        print(
            f"| {kind} | {np.median(found):g} | {found.mean():.2f} | {100 * (found == 1).mean():.1f}"
            f" | {np.mean(cosines):.3f} | {len(features.refused)} |",
            flush=True,
        )
        for reason in features.refused:
            print(f"  {reason}", file=sys.stderr)


def _made(folder: Path, kind: str, storage: Storage, source: Path) -> Path:
    name = "".join(letter if letter.isalnum() else "_" for letter in kind)
    path = folder / f"{source.stem}.{name}.{storage.ending}"
    if not path.exists():
        write(path, pictures_of(source, RATE), storage)
    return path


SPEED_PROGRAM = """
import sys, time
from pathlib import Path
from indexer.media.frame_reader import VideoFile
from indexer.media.sampling import Sampling, plan_segments
try:
    from model.preprocessing import Resizing
    resize = Resizing(224)
except ImportError:  # version 0.2.0
    from model.preprocessing import resize_and_crop
    resize = lambda rgb: resize_and_crop(rgb, 224)
started = time.process_time()
for name in sys.argv[1:]:
    file = VideoFile(Path(name))
    line = file.timeline
    for segment in plan_segments(line.times, line.end_seconds, line.frame_rate, Sampling(12)):
        for frame in file.frames_at(list(segment.times_seconds), "auto"):
            resize(frame.rgb)
print(time.process_time() - started)
"""


def compare_speed(paths: list[Path], other: Path, num_rounds: int) -> None:
    """Print the processor seconds of reading all of these files, ours and another checkout's, in turns."""
    ours = REPOSITORY
    seconds: dict[Path, list[float]] = {ours: [], other: []}
    run: Callable[[Path], float] = lambda checkout: float(  # noqa: E731
        subprocess.run(
            [sys.executable, "-c", SPEED_PROGRAM, *map(str, paths)],
            env={**os.environ, "PYTHONPATH": str(checkout)},
            cwd=checkout,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    for number in range(num_rounds):
        # The second finds warm caches: the order alternates between rounds.
        for checkout in (ours, other) if number % 2 else (other, ours):
            seconds[checkout].append(run(checkout))
    ratios = np.array(seconds[ours]) / np.array(seconds[other])
    medians = [float(np.median(seconds[checkout])) for checkout in (ours, other)]
    print(f"{len(paths)} files: ours {medians[0]:.3f} s, theirs {medians[1]:.3f} s")
    print(
        f"ratio: median {np.median(ratios):.3f}, of the least {min(seconds[ours]) / min(seconds[other]):.3f}"
    )


def main() -> None:
    """Measure ranks or speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clips", type=Path, required=True, help="A folder with captions.json in or above it."
    )
    parser.add_argument("--model", help="A model spec.")
    parser.add_argument("--made", type=Path, help="Where re-encoded files are kept, and taken from.")
    parser.add_argument("--speed-against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=9)
    choices = parser.parse_args()
    captions = choices.clips / "captions.json"
    if not captions.is_file():
        captions = choices.clips.parent / "captions.json"
    entries = json.loads(captions.read_text(encoding="utf-8"))
    clips = [(captions.parent / entry["file"], list(entry["captions"])) for entry in entries]
    if choices.speed_against is not None:
        compare_speed([path for path, _ in clips], choices.speed_against.resolve(), choices.rounds)
        return
    if choices.model is None:
        parser.error("--model names the model that ranks")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        made = choices.made or Path(directory)
        made.mkdir(parents=True, exist_ok=True)
        with (
            Index.create(Path(directory) / "index", choices.model, device="cpu") as index,
            IndexingPipeline(index.catalog, index.model, num_workers=1).encoder() as encoder,
        ):
            measure(clips, encoder, made)
    print(f"\n{len(clips)} clips, {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
