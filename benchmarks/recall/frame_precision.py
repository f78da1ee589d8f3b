"""What an exhaustive search loses where frame features are rounded to 8 bits, where indexes have 16.

    python -m benchmarks.recall.frame_precision --demo 500,5000 --clips FOLDER --captions JSON --model SPEC

Each frame is kept as 8-bit integers with one scale (`model.features`), as XCLIP_FEATURE_FILE=int8 does.
Recall: the share of the first 10 results by frames in float16 that are so by rounded ones. Cases are those of
`benchmarks.recall.cascade`, with its options.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.recall.cascade import NUM_FIRST, Case, add_options, all_scores, cases, order
from benchmarks.report import Report, arguments
from model.quantization import dequantized, quantized


def in_8_bits(frames: Tensor) -> Tensor:
    """Frames [..., D] as the feature file gives them back, float32."""
    return torch.from_numpy(dequantized(quantized(frames.numpy()))).float()


def measure(report: Report, case: Case) -> None:
    """Add the table of a case."""
    half = case.video.frames.half().float()
    kept = all_scores(replace(case, video=replace(case.video, frames=half)))["total"]
    rounded = all_scores(replace(case, video=replace(case.video, frames=in_8_bits(half))))["total"]
    columns = {"queries": ",", "recall@1": ".4f", "recall@10": ".4f", "largest change of a score": ".3f"}
    table = report.table(f"{case.name}; the whole score: {', '.join(case.averaged)}", columns)
    first_ten = recall(rounded, kept, NUM_FIRST)
    table.add(len(kept), recall(rounded, kept, 1), first_ten, float(np.abs(rounded - kept).max()))
    report.target(f"recall@10 of frames in 8 bits, {case.name}", first_ten, at_least=0.99)


def recall(found: NDArray[np.float32], right: NDArray[np.float32], count: int) -> float:
    """The share of the first `count` by the scores `right` [T, V] that are so by `found`."""
    pairs = zip(order(found)[:, :count], order(right)[:, :count], strict=True)
    return float(np.mean([np.isin(first, some).mean() for some, first in pairs]))


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    add_options(parser)
    choices: argparse.Namespace = parser.parse_args()
    if choices.short:
        choices.demo, choices.drawn, choices.drawn_queries = "500", 5_000, 20
    with Report("recall.frame_precision", choices) as report, tempfile.TemporaryDirectory() as temporary:
        for case in cases(choices, choices.folder or Path(temporary)):
            case.model.prepare("scores")
            measure(report, case)


if __name__ == "__main__":
    main()
