"""Everything that `xclip-search evaluate` says of one model on one split."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from model import TextFeatures, VideoFeatures, XClip
from training.datasets.split import Split
from training.evaluation.bank import QueryBank
from training.evaluation.encoding import OnProgress, encode_split, encode_texts
from training.evaluation.normalization import BankStatistics, bank_statistics
from training.evaluation.rows import (
    Row,
    bank_rows,
    dual_softmax_rows,
    exhaustive_rows,
    tie_warnings,
    two_stage_rows,
)
from training.evaluation.similarity import (
    SCORES,
    TEXTS_AT_ONCE,
    coarse_similarity,
    score_matrices,
    similarity,
)

if TYPE_CHECKING:
    from training.frames import FrameReader

DEFAULT_CANDIDATES = (50, 100, 200, 500)
BANK_EXTRAS = ("query-bank", "nearest-neighbour")
EXTRAS = ("dual-softmax", *BANK_EXTRAS)


@dataclass(frozen=True)
class Evaluation:
    """The rows, what must be known of them, and how long each stage took (in seconds)."""

    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]


def evaluate_fully(
    model: XClip,
    split: Split,
    reader: FrameReader,
    *,
    candidates: Sequence[int] = DEFAULT_CANDIDATES,
    extras: Sequence[str] = (),
    bank: QueryBank | None = None,
    single_scores: bool = False,
    batch_size: int = 32,
    num_workers: int = 0,
    dtype: torch.dtype = torch.float32,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """All rows of one model on one split: exhaustive, two-stage, and the corrections asked for.

    candidates: shortlist sizes; those of V or more are left out. extras: of EXTRAS; those of BANK_EXTRAS need
    a bank. single_scores: rows for each of the four scores too. Other arguments as in `encode_split`.
    Memory: features, one float32 [T, V] for each matrix used at a time, and blocks.
    Raises EvaluationError where a score is not finite.
    """
    if unknown := set(extras) - set(EXTRAS):
        raise ValueError(f"no such extra row: {', '.join(sorted(unknown))}")
    if bank is None and set(extras) & set(BANK_EXTRAS):
        raise ValueError("normalisation by a bank needs a bank")
    seconds: dict[str, float] = {}
    with _timed(seconds, "encode"):
        encoded = encode_split(
            model,
            split,
            reader,
            batch_size=batch_size,
            num_workers=num_workers,
            dtype=dtype,
            on_progress=on_progress,
        )
    names = SCORES if single_scores else ("total",)
    with _timed(seconds, "score"):
        matrices = score_matrices(model, encoded.text, encoded.video, names, on_progress=on_progress)
    total = matrices.pop("total")
    with _timed(seconds, "judge"):
        rows = exhaustive_rows(total, split)
        for name, scores in matrices.items():
            rows += exhaustive_rows(scores, split, f"{name.replace('_', '-')} alone", "single-score")
        del matrices
        if any(count < len(split.clips) for count in candidates):
            coarse = coarse_similarity(model, encoded.text, encoded.video)
            rows += two_stage_rows(coarse, total, split, candidates)
            del coarse
        if "dual-softmax" in extras:
            rows += dual_softmax_rows(total, split)
    if bank is not None and set(extras) & set(BANK_EXTRAS):
        with _timed(seconds, "bank"):
            text = encode_texts(model, bank.texts, dtype=dtype)
            statistics = score_bank(model, text, encoded.video, on_progress)
            total /= model.logit_scale_exp
            rows += bank_rows(total, split, statistics, bank, extras)
    # Directions together, in the order in which the rows were made.
    rows.sort(key=lambda row: row.direction)
    return Evaluation(tuple(rows), tuple(tie_warnings(rows)), seconds)


def score_bank(
    model: XClip, text: TextFeatures, video: VideoFeatures, on_progress: OnProgress | None = None
) -> BankStatistics:
    """What a bank's B texts say of V clips, in blocks of texts. Similarities without exp(logit_scale)."""

    def blocks() -> Iterator[NDArray[np.floating]]:
        for first in range(0, len(text), TEXTS_AT_ONCE):
            some = text[first : first + TEXTS_AT_ONCE]
            yield similarity(model, some, video) / model.logit_scale_exp
            if on_progress is not None:
                on_progress("bank queries", first + len(some), len(text))

    return bank_statistics(blocks())


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
