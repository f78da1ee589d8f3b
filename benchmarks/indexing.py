"""What indexing costs by model, and how close it comes to what decoding and encoding allow.

    python -m benchmarks.indexing ~/Videos --models openclip:ViT-B-32-quickgelu/openai,demo
    python -m benchmarks.indexing --against ../other-checkout

The first table is of `xclip-search index` as a user would run it, a process for each model; memory is the
peak of the largest process, the one that encodes. The second takes stages in turns: decoding alone with a
child for each processor, encoding alone, and indexing. Two bounds:

- stated: the slower of decoding and encoding. Reachable where they use different hardware, or where one of
  them leaves processors idle.
- work-conserving: all processor seconds of both, shared out evenly, but never less than the slower of them.
  Where both need the same processors, nothing can be faster, for the work adds up. It supposes a quiet
  machine; where other programs take part of the processors, read the last ratio: what decoding everything
  and then encoding everything takes, with all processors each, over what indexing takes.

Without a folder clips of 720p and 1080p are drawn. By default the models have the true shapes and drawn
weights, which cost the same as trained ones. `--against` runs the indexing of another checkout in the same
turns.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import REPOSITORY, num_cores
from benchmarks.report import Report, arguments
from indexer.ingest.library import find_videos
from indexer.store.store import open_store

MODELS = (
    "openclip:ViT-B-32-quickgelu/random?seed=0",
    "openclip:ViT-B-16-quickgelu/random?seed=0",
    "openclip:ViT-L-14-quickgelu/random?seed=0",
    "demo",
)
NUM_DRAWN, NUM_DRAWN_SHORT = 24, 6
FRAME_RATE = 30


def draw_clips(folder: Path, num_clips: int) -> None:
    """H.264 clips of 10 to 30 seconds, every other one 1080p, as a phone or a camera on a car would take
    them: a camera that moves over a still, noisy scene, with something that moves in it.

    Args:
        folder: where they go.
        num_clips: the same ones each time.
    """
    for number in range(num_clips):
        width, height = ((1280, 720), (1920, 1080))[number % 2]
        random = np.random.default_rng(number)
        scene = _scene(random, width + 512, height + 512)
        with av.open(str(folder / f"{number:02}-{height}p.mp4"), "w") as container:
            stream: Any = container.add_stream(
                "libx264", FRAME_RATE, options={"preset": "veryfast", "crf": "18"}
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for index in range(FRAME_RATE * (10 + 7 * number % 21)):
                picture = _picture(scene, index / FRAME_RATE, width, height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())


def _scene(random: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """uint8 [height, width, 3] with detail of all sizes, as photographs have it."""
    scene = np.zeros((height, width, 3))
    for scale in (4, 16, 64, 256):
        coarse = random.random((height // scale + 1, width // scale + 1, 3))
        scene += coarse.repeat(scale, 0).repeat(scale, 1)[:height, :width] * scale**0.5
    scene = scene / scene.max() * 235 + random.normal(0, 3, scene.shape)
    return np.asarray(scene.clip(0, 255).astype(np.uint8))


def _picture(scene: NDArray[np.uint8], seconds: float, width: int, height: int) -> NDArray[np.uint8]:
    left, top = (round(255 + 250 * math.sin(seconds * speed)) for speed in (0.4, 0.27))
    picture = np.ascontiguousarray(scene[top : top + height, left : left + width])
    side, at = height // 4, round((width - height // 4) * (0.5 + 0.5 * math.sin(seconds)))
    picture[side : 2 * side, at : at + side] = 255 - picture[side : 2 * side, at : at + side]
    return picture


class Checkout:
    """The stages of one checkout, in a process that keeps the model. See `benchmarks/indexing_stages.py`."""

    def __init__(self, directory: Path, folder: Path, model: str) -> None:
        program = REPOSITORY / "benchmarks" / "indexing_stages.py"
        as_command = {"OMP_WAIT_POLICY": "PASSIVE"} if directory == REPOSITORY else {}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(program), str(folder), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**as_command, **os.environ, "PYTHONPATH": str(directory.absolute())},
        )
        self.num_segments = self._answer()["num_segments"]

    def run(self, stage: str) -> tuple[float, float]:
        """(seconds, processor seconds) of `decode`, `encode` or `whole`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{stage}\n")
        self._process.stdin.flush()
        figures = self._answer()
        return figures["seconds"], figures["processor_seconds"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("indexing failed, see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def measure_stages(folder: Path, choices: argparse.Namespace, report: Report) -> None:
    """A row for each model."""
    columns = {
        "model": "", "segments": ",", "decode, s": ".2f", "encode, s": ".2f", "whole, s": ".2f",
        "processor s: decode": ".1f", "encode": ".1f", "whole": ".1f",
        "share of stated": ".2f", "share of work-conserving": ".2f", "(decode + encode) / whole": ".2f",
    }  # fmt: skip
    if choices.against is not None:
        columns |= {"before: whole, s": ".2f", "before / now": ".2f"}
    table = report.table("Indexing beside its parts, in turns", columns)
    for model in choices.models.split(","):
        rounds: list[dict[str, tuple[float, float]]] = []
        with Checkout(REPOSITORY, folder, model) as ours:
            before = None if choices.against is None else Checkout(choices.against, folder, model)
            for _ in range(choices.rounds):
                figures = {stage: ours.run(stage) for stage in ("decode", "whole", "encode")}
                if before is not None:
                    figures["before"] = before.run("whole")
                rounds.append(figures)
            if before is not None:
                before.__exit__(None, None, None)
        _add_row(table, report, model, ours.num_segments, rounds)


def _add_row(
    table: Any, report: Report, model: str, num_segments: int, rounds: list[dict[str, tuple[float, float]]]
) -> None:
    stated, conserving, in_turn = [], [], []
    for figures in rounds:
        (decode, decode_used), (encode, encode_used) = figures["decode"], figures["encode"]
        slower, whole = max(decode, encode), figures["whole"][0]
        stated.append(slower / whole)
        in_turn.append((decode + encode) / whole)
        conserving.append(max(slower, (decode_used + encode_used) / num_cores()) / whole)
    medians = [
        statistics.median(figures[stage][part] for figures in rounds)
        for part in (0, 1)
        for stage in ("decode", "encode", "whole")
    ]
    shares = [statistics.median(values) for values in (stated, conserving, in_turn)]
    row = [model, num_segments, *medians, *shares]
    if "before" in rounds[0]:
        ratios = [figures["before"][0] / figures["whole"][0] for figures in rounds]
        befores = [figures["before"][0] for figures in rounds]
        row += [statistics.median(befores), statistics.median(ratios)]
    table.add(*row)
    report.target(f"{model}: share of the work-conserving bound", shares[1], at_least=0.9)


def measure_command(folder: Path, model: str) -> dict[str, Any]:
    """Index `folder` in a process of its own; the report with wall seconds, memory and disk."""
    with tempfile.TemporaryDirectory() as directory:
        index, report = Path(directory) / "index", Path(directory) / "report.json"
        options = ["--index", str(index), "--model", model, "--report", str(report)]
        command = [sys.executable, "-m", "xclip_search", "index", str(folder), *options]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - started
        if not report.exists():
            raise SystemExit(f"indexing with {model} failed: {' '.join(command)}")
        with open_store(index) as catalog:
            size_bytes = catalog.size_bytes
        return {
            **json.loads(report.read_text(encoding="utf-8")),
            "wall_seconds": wall_seconds,
            "memory_mib": usage.ru_maxrss / 1024,
            "index_bytes": size_bytes,
        }


def measure_commands(folder: Path, models: list[str], report: Report) -> None:
    """A row for each model."""
    columns = {
        "model": "", "whole command, s": ".1f", "videos/s": ".2f", "encoding, s a segment": ".3f",
        "decoding, s a segment": ".3f", "memory, MiB": ",.0f", "index, KB a segment": ".1f",
    }  # fmt: skip
    table = report.table(f"xclip-search index, {len(find_videos([folder]))} videos", columns)
    for model in models:
        figures = measure_command(folder, model)
        segments = max(1, figures["num_segments"])
        table.add(
            model,
            figures["wall_seconds"],
            figures["num_added"] / figures["seconds"],
            figures["encode_seconds"] / segments,
            figures["decode_seconds"] / segments,
            figures["memory_mib"],
            figures["index_bytes"] / segments / 1e3,
        )


def main() -> None:
    """Measure the given folder, or drawn videos."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="videos; drawn ones where none is given")
    parser.add_argument("--models", help="model specs, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="turns of the stages")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="another checkout, in the same turns"
    )
    parser.add_argument("--stages-only", action="store_true", help="without the table of whole commands")
    choices = parser.parse_args()
    choices.models = choices.models or ",".join(MODELS[:1] if choices.short else MODELS)
    with Report("indexing", choices) as report, tempfile.TemporaryDirectory() as drawn:
        folder = choices.folder or Path(drawn)
        if choices.folder is None:
            draw_clips(folder, NUM_DRAWN_SHORT if choices.short else NUM_DRAWN)
        if not choices.stages_only:
            measure_commands(folder, choices.models.split(","), report)
        measure_stages(folder, choices, report)


if __name__ == "__main__":
    main()
