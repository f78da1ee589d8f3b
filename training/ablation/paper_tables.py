"""The paper's own figures that the ablations are compared with: all on MSR-VTT, R@k in percent.

Every figure was read from the LaTeX source of arXiv:2207.07285 (`sample-base.tex`, tables
`tab:mstvtt_performance`, `tab:module`, `tab:attention`, `tab:tau` and `tab:temporal`), in the copy that
github.com/hiennguyen9874/llm-wiki keeps at `raw/2207.07285_X-CLIP/`, commit
c59c2e533f4f63eb178e8beab66cb1f7be7604dd. Numbers of tables are their positions in that source. What the paper
does not print is None here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "LaTeX source of arXiv:2207.07285, `sample-base.tex`"


@dataclass(frozen=True)
class PaperFigures:
    """One direction of one row of the paper: R@1, R@5 and R@10 in percent, mean rank from 1."""

    recall_at_1: float
    recall_at_5: float
    recall_at_10: float | None
    mean_rank: float | None


@dataclass(frozen=True)
class PaperRow:
    """A row as the paper names it."""

    label: str
    text_to_video: PaperFigures
    video_to_text: PaperFigures


@dataclass(frozen=True)
class PaperTable:
    """One of the paper's tables, or the rows of it that concern us.

    Attributes:
        rows: Keyed by the name of our variant that the row answers to.
        note: What a reader must know of it.
    """

    title: str
    label: str
    rows: Mapping[str, PaperRow]
    note: str = ""

    @property
    def source(self) -> str:
        """Where the figures were read."""
        return f"{SOURCE}, `{self.label}`"


def _row(label: str, *figures: float | None) -> PaperRow:
    """Eight figures: R@1, R@5, R@10, mean rank, of text to video and then of video to text."""
    return PaperRow(label, _figures(*figures[:4]), _figures(*figures[4:]))


def _figures(
    recall_at_1: float | None, recall_at_5: float | None, recall_at_10: float | None, mean_rank: float | None
) -> PaperFigures:
    assert recall_at_1 is not None and recall_at_5 is not None
    return PaperFigures(recall_at_1, recall_at_5, recall_at_10, mean_rank)


SCORERS = PaperTable(
    "Table 1, comparison on MSR-VTT (the rows whose method is trained here too), ViT-B/32",
    "tab:mstvtt_performance",
    {
        "clip": _row("CLIP-straight", 31.2, 53.7, 64.2, None, 27.2, 51.7, 62.6, None),
        "clip4clip-meanP": _row("CLIP4Clip-MeanP", 43.1, 70.4, 80.8, 16.2, 43.1, 70.5, 81.2, 12.4),
        "clip4clip-seqTransf": _row("CLIP4Clip-seqTransf", 44.5, 71.4, 81.6, 15.3, 42.7, 70.9, 80.6, 11.6),
        "xclip": _row("X-CLIP", 46.1, 73.0, 83.1, 13.2, 46.8, 73.3, 84.0, 9.1),
    },
    "CLIP-straight is CLIP without training on the videos, frames averaged; the paper does not name its"
    " backbone. The paper's tables have no row for FILIP or TACo.",
)

GRANULARITIES = PaperTable(
    "Table 6, different contrastive granularity, MSR-VTT, ViT-B/32",
    "tab:module",
    {
        "vs": _row("Exp1 (VS)", 43.0, 70.7, 81.6, 16.3, 43.0, 70.2, 81.2, 11.5),
        "sf": _row("Exp2 (SF)", 42.7, 69.6, 81.3, 13.9, 43.1, 70.7, 82.1, 9.9),
        "vw": _row("Exp3 (VW)", 42.8, 69.9, 80.1, 17.0, 43.2, 70.1, 80.5, 13.8),
        "fw": _row("Exp4 (FW)", 42.7, 69.5, 81.3, 14.4, 42.8, 70.8, 81.7, 10.6),
        "vw+sf": _row("Exp5 (VW + SF)", 44.6, 72.8, 82.4, 13.9, 45.7, 73.2, 82.3, 9.1),
        "vw+fw": _row("Exp6 (VW + FW)", 45.6, 72.0, 82.0, 13.6, 44.8, 72.5, 81.7, 9.6),
        "sf+fw": _row("Exp7 (SF + FW)", 44.1, 70.2, 81.3, 14.3, 44.4, 71.6, 82.8, 9.7),
        "vs+sf": _row("Exp8 (VS + SF)", 45.4, 72.2, 81.6, 13.4, 45.4, 72.8, 82.7, 9.2),
        "vs+vw": _row("Exp9 (VS + VW)", 44.0, 70.3, 82.5, 13.9, 43.6, 70.9, 81.8, 11.3),
        "vs+fw": _row("Exp10 (VS + FW)", 44.8, 72.6, 83.0, 13.6, 45.3, 73.0, 83.8, 9.5),
        "vw+sf+fw": _row("Exp11 (VW + SF + FW)", 45.7, 72.7, 82.5, 13.2, 45.6, 72.8, 82.9, 9.2),
        "vs+vw+sf": _row("Exp12 (VS + VW + SF)", 45.7, 72.7, 82.5, 13.2, 45.6, 72.8, 82.9, 9.2),
        "vs+sf+fw": _row("Exp13 (VS + SF + FW)", 45.8, 73.2, 82.7, 13.2, 46.5, 72.6, 83.8, 9.7),
        "vs+vw+fw": _row("Exp14 (VS + VW + FW)", 45.5, 72.8, 82.9, 13.5, 46.4, 72.5, 83.7, 9.6),
        "xclip": _row("Exp15 (VS + VW + SF + FW)", 46.1, 73.0, 83.1, 13.2, 46.8, 73.3, 84.0, 9.1),
    },
    "The paper prints the same figures for Exp11 and Exp12; they stand here as printed.",
)

AGGREGATIONS = PaperTable(
    "Table 7, different fusion methods for similarity matrices, MSR-VTT, ViT-B/32",
    "tab:attention",
    {
        "max-max": _row("Max-Max", 44.0, 72.6, None, 13.5, 44.4, 72.5, None, 9.2),
        "mean-mean": _row("Mean-Mean", 43.2, 71.2, None, 14.8, 42.5, 70.2, None, 11.4),
        "mean-max": _row("Mean-Max", 44.4, 71.1, None, 14.9, 44.2, 71.7, None, 10.2),
        "max-mean": _row("Max-Mean", 44.9, 71.3, None, 13.5, 43.8, 71.8, None, 9.4),
        "xclip": _row("Attention", 46.1, 73.0, None, 13.2, 46.8, 73.3, None, 9.1),
    },
)

TEMPORAL_ENCODER = PaperTable(
    "Table 8, temporal encoder, MSR-VTT, ViT-B/32",
    "tab:temporal",
    {
        "no-temporal-encoder": _row("without", 45.2, 72.9, None, 13.8, 45.6, 73.9, None, 9.2),
        "xclip": _row("with", 46.1, 73.0, None, 13.2, 46.8, 73.3, None, 9.1),
    },
    "The paper has the same for ViT-B/16: R@1 48.3 without and 49.3 with, text to video; 47.6 and 48.9, video"
    " to text.",
)

TEMPERATURES = PaperTable(
    "Table 9, different temperature in the softmax of AOSM, MSR-VTT, ViT-B/32",
    "tab:tau",
    {
        "temperature-1": _row("1", 43.9, 71.6, None, 14.5, 43.5, 71.3, None, 11.3),
        "temperature-0.1": _row("0.1", 45.2, 72.2, None, 14.0, 45.3, 73.1, None, 9.3),
        "xclip": _row("0.01", 46.1, 73.0, None, 13.2, 46.8, 73.3, None, 9.1),
        "temperature-0.001": _row("0.001", 45.6, 72.2, None, 13.7, 43.6, 72.5, None, 9.4),
    },
)
