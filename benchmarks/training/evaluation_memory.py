"""Time and memory of evaluating 5,000 texts with 5,000 clips, beside the official routine for fewer.

ViT-B/32 shaped: 32 words x 12 frames x 512. Features are drawn, so nothing is decoded or encoded. All is done
in child processes, which report after each stage their peak resident memory so far, as the system counts it,
and processor time next to the clock's.

    python -m benchmarks.training.evaluation_memory [--texts 5000] [--clips 5000] [--beside 1000] [--block 32]

The official repository scores a block of texts with a block of clips, all four scores as plain operations,
and joins the blocks on the processor. That arithmetic is `ScoreHead.unblocked`, which tests/model
holds; the loop is written again here. It takes too long for 5,000 x 5,000: `--beside` says how many texts and
clips are scored by both, which take turns after each block of texts, each in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.report import Report, arguments

NUM_WORDS, NUM_FRAMES, DIMENSION = 32, 12, 512
MEBIBYTE = 1 << 20

TOLERANCE = 1e-3
"""Of scores up to 100, float32."""


def peak_bytes() -> int:
    """Of this process, resident."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def make_model() -> Any:
    """Scoring needs no tower: small ones, with AOSM of the size of ViT-B/32's."""
    import torch

    from model import XClip, XClipConfig

    torch.manual_seed(0)
    towers = XClipConfig.tiny().clip
    towers = {**towers, "embed_dim": DIMENSION, "text_cfg": {**towers["text_cfg"], "vocab_size": 8}}
    config = XClipConfig(
        towers, num_words=NUM_WORDS, num_frames=NUM_FRAMES, temporal_layers=0, mask_padding=False
    )
    return XClip(config).eval()


def draw_features(num_texts: int, num_clips: int) -> tuple[Any, Any]:
    """Features of so many texts and clips; the same each time."""
    import torch

    from model import TextFeatures, VideoFeatures

    generator = torch.Generator().manual_seed(1)

    def unit(*shape: int) -> Any:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.div_(drawn.norm(dim=-1, keepdim=True))

    words = torch.ones(num_texts, NUM_WORDS, dtype=torch.bool)
    frames = torch.ones(num_clips, NUM_FRAMES, dtype=torch.bool)
    text = TextFeatures(unit(num_texts, DIMENSION), unit(num_texts, NUM_WORDS, DIMENSION), words)
    return text, VideoFeatures(unit(num_clips, DIMENSION), unit(num_clips, NUM_FRAMES, DIMENSION), frames)


# The whole evaluation


def evaluate_drawn(answer: Connection, num_texts: int, num_clips: int) -> None:
    """In the child: all stages, each reported as (label, seconds, processor seconds, peak resident bytes)."""
    started, spent = time.perf_counter(), time.process_time()

    def report(label: str) -> None:
        nonlocal started, spent
        answer.send((label, time.perf_counter() - started, time.process_time() - spent, peak_bytes()))
        started, spent = time.perf_counter(), time.process_time()

    from training.datasets.split import Clip, Split
    from training.evaluation.encoding import coarse_similarity, similarity
    from training.evaluation.evaluation import dual_softmax_rows, exhaustive_rows, two_stage_rows

    model = make_model()
    # As `score_matrices` does for many pairs; the first time on a machine it is compiled.
    model.prepare("scores")
    split = Split(
        "drawn",
        "test",
        tuple(Clip(str(position), Path(f"{position}.mp4")) for position in range(num_clips)),
        tuple(map(str, range(num_texts))),
        tuple(sorted(position % num_clips for position in range(num_texts))),
    )
    report("libraries, model and kernel loaded")
    text, video = draw_features(num_texts, num_clips)
    report("features drawn")
    total = similarity(model, text, video)
    report("every pair scored")
    exhaustive_rows(total, split)
    report("metrics, both directions")
    coarse = coarse_similarity(model, text, video)
    two_stage_rows(coarse, total, split, (50, 100, 200, 500))
    del coarse
    report("two-stage rows, four shortlists")
    dual_softmax_rows(total, split)
    report("dual softmax, both directions")


def stages(report: Report, num_texts: int, num_clips: int) -> None:
    """Print what a whole evaluation takes."""
    pair_bytes = num_texts * num_clips * 4
    text_bytes = num_texts * (1 + NUM_WORDS) * DIMENSION * 4
    clip_bytes = num_clips * (1 + NUM_FRAMES) * DIMENSION * 4
    report.note(
        f"features of texts {text_bytes / MEBIBYTE:.0f} MiB, of clips {clip_bytes / MEBIBYTE:.0f} MiB, "
        f"a float32 matrix of all pairs {pair_bytes / MEBIBYTE:.0f} MiB"
    )
    table = report.table(
        f"{num_texts} texts x {num_clips} clips, {NUM_WORDS} words x {NUM_FRAMES} frames x {DIMENSION}",
        {"stage": "", "seconds": ".1f", "processor seconds": ".1f", "peak resident MiB so far": ".0f"},
    )
    with in_child(evaluate_drawn, num_texts, num_clips) as (child, connection):
        while True:
            try:
                label, seconds, processor_seconds, peak = connection.recv()
            except EOFError:
                break
            table.add(label, seconds, processor_seconds, peak / MEBIBYTE)
    report.check("every stage ended", child.exitcode == 0, f"exit status {child.exitcode}")


# Beside the official routine


def score_officially(model: Any, text: Any, video: Any, block: int) -> Any:
    """float32 [T, V]: a block of texts with a block of clips after the other, each taken to the processor."""
    import numpy as np
    import torch

    rows = []
    with torch.no_grad():
        for first_text in range(0, len(text), block):
            parts = []
            for first_clip in range(0, len(video), block):
                scores = model.matrices.unblocked(
                    text[first_text : first_text + block],
                    video[first_clip : first_clip + block],
                    model.clip.logit_scale.exp(),
                )
                parts.append(scores.total.cpu().numpy())
            rows.append(np.concatenate(parts, axis=-1))
    return np.concatenate(rows, axis=0)


def score_in_turns(connection: Connection, size: int, block: int, *, officially: bool) -> None:
    """In a child: scores the texts from `first` on, a block of them, whenever it gets a `first`; answers with
    the scores, the seconds and the peak resident bytes so far."""
    from training.evaluation.encoding import similarity

    model = make_model()
    if not officially:
        model.prepare("scores")  # As an evaluation does that has many pairs; blocks here have few.
    text, video = draw_features(size, size)
    connection.send(peak_bytes())
    while (first := connection.recv()) is not None:
        some = text[first : first + block]
        started = time.perf_counter()
        scores = score_officially(model, some, video, block) if officially else similarity(model, some, video)
        connection.send((scores, time.perf_counter() - started, peak_bytes()))


def beside_the_official(report: Report, size: int, block: int) -> None:
    """Print time and memory of scoring `size` texts with as many clips, by both."""
    with (
        in_child(score_in_turns, size, block, officially=False) as (_, ours),
        in_child(score_in_turns, size, block, officially=True) as (_, theirs),
    ):
        routines = {"ours": ours, "official": theirs}
        peaks = {name: [connection.recv()] for name, connection in routines.items()}
        seconds: dict[str, list[float]] = {name: [] for name in routines}
        farthest = 0.0
        for first in range(0, size, block):
            found = []
            for name, connection in routines.items():
                connection.send(first)
                scores, taken, peak = connection.recv()
                found.append(scores)
                seconds[name].append(taken)
                peaks[name].append(peak)
            farthest = max(farthest, float(abs(found[0] - found[1]).max()))
        for connection in routines.values():
            connection.send(None)
    table = report.table(
        f"All scores of {size} texts with {size} clips",
        {"routine": "", "seconds": ".1f", "us a pair": ".2f", "peak resident MiB": ".0f", "more": ".0f"},
    )
    for name in routines:
        total = sum(seconds[name])
        before, after = peaks[name][0], peaks[name][-1]
        table.add(name, total, 1e6 * total / size**2, after / MEBIBYTE, (after - before) / MEBIBYTE)
    report.note("more: of the peak, than with libraries, model and features alone")
    report.check("the same scores", farthest <= TOLERANCE, f"at most {farthest:.1e} apart")
    pairs = zip(seconds["official"], seconds["ours"], strict=True)
    ratio = statistics.median(official / of_ours for official, of_ours in pairs)
    report.note(f"official / ours, median of blocks of {block} texts: {ratio:.1f}")


@contextmanager
def in_child(
    function: Callable[..., None], *values: Any, **options: Any
) -> Iterator[tuple[multiprocessing.process.BaseProcess, Connection]]:
    """A child process that runs `function` with its end of a pipe, and our end; it has ended afterwards."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=function, args=(theirs, *values), kwargs=options)
    child.start()
    theirs.close()
    try:
        yield child, ours
    finally:
        ours.close()
        child.join()


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, help="how many; 5,000, or 500 with --short")
    parser.add_argument("--clips", type=int, help="how many; 5,000, or 500 with --short")
    parser.add_argument(
        "--beside", type=int, help="texts and clips scored by both; 1,000, or 128 with --short"
    )
    parser.add_argument("--block", type=int, default=32, help="texts and clips in an official block")
    choices = parser.parse_args()
    with Report("training.evaluation_memory", choices) as report:
        beside_the_official(report, choices.beside or (128 if report.short else 1000), choices.block)
        size = 500 if report.short else 5000
        stages(report, choices.texts or size, choices.clips or size)


if __name__ == "__main__":
    main()
