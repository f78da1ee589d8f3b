"""Memory and time of evaluating 5,000 texts with 5,000 clips, ViT-B/32 shaped: 32 words x 12 frames x 512.

Features are drawn, so nothing is decoded or encoded. All is done in a child process, which reports after each
stage its peak resident memory so far, as the system counts it, and processor time next to the clock's.

    python -m benchmarks.training.evaluation_memory [--texts 5000] [--clips 5000]
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.report import Report, arguments

NUM_WORDS, NUM_FRAMES, DIMENSION = 32, 12, 512
MEBIBYTE = 1 << 20


def evaluate_drawn(answer: Connection, num_texts: int, num_clips: int) -> None:
    """In the child: all stages, each reported as (label, seconds, processor seconds, peak resident bytes)."""
    started, spent = time.perf_counter(), time.process_time()

    def report(label: str) -> None:
        nonlocal started, spent
        unit_bytes = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
        answer.send((label, time.perf_counter() - started, time.process_time() - spent, peak_bytes))
        started, spent = time.perf_counter(), time.process_time()

    import torch

    from model import TextFeatures, VideoFeatures, XClip, XClipConfig
    from training.datasets.split import Clip, Split
    from training.evaluation.encoding import coarse_similarity, similarity
    from training.evaluation.evaluation import dual_softmax_rows, exhaustive_rows, two_stage_rows

    torch.manual_seed(0)
    # Scoring needs no tower: small ones, with AOSM of the size of ViT-B/32's.
    towers = XClipConfig.tiny().clip
    towers = {**towers, "embed_dim": DIMENSION, "text_cfg": {**towers["text_cfg"], "vocab_size": 8}}
    config = XClipConfig(
        towers, num_words=NUM_WORDS, num_frames=NUM_FRAMES, temporal_layers=0, mask_padding=False
    )
    model = XClip(config).eval()
    split = Split(
        "drawn",
        "test",
        tuple(Clip(str(position), Path(f"{position}.mp4")) for position in range(num_clips)),
        tuple(map(str, range(num_texts))),
        tuple(sorted(position % num_clips for position in range(num_texts))),
    )
    report("libraries and model loaded")

    def unit(*shape: int) -> Any:
        drawn = torch.randn(*shape)
        return drawn.div_(drawn.norm(dim=-1, keepdim=True))

    words = torch.ones(num_texts, NUM_WORDS, dtype=torch.bool)
    frames = torch.ones(num_clips, NUM_FRAMES, dtype=torch.bool)
    text = TextFeatures(unit(num_texts, DIMENSION), unit(num_texts, NUM_WORDS, DIMENSION), words)
    video = VideoFeatures(unit(num_clips, DIMENSION), unit(num_clips, NUM_FRAMES, DIMENSION), frames)
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


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, help="how many; 5,000, or 500 with --short")
    parser.add_argument("--clips", type=int, help="how many; 5,000, or 500 with --short")
    choices = parser.parse_args()
    with Report("training.evaluation_memory", choices) as report:
        size = 500 if report.short else 5000
        num_texts, num_clips = choices.texts or size, choices.clips or size
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
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=evaluate_drawn, args=(theirs, num_texts, num_clips))
        child.start()
        theirs.close()
        while True:
            try:
                label, seconds, processor_seconds, peak_bytes = ours.recv()
            except EOFError:
                break
            table.add(label, seconds, processor_seconds, peak_bytes / MEBIBYTE)
        child.join()
        report.check("every stage ended", child.exitcode == 0, f"exit status {child.exitcode}")


if __name__ == "__main__":
    main()
