"""Evaluation of one model on one split: metrics, and the rows of the table of `xclip-search evaluate`.

From one matrix of scores to the metrics of both directions (`compute_metrics`), through shortlists as in a
search (`two_stage_metrics`), to all rows (`evaluate_fully`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model import TextFeatures, VideoFeatures, XClip
from training.data.frames import FrameReader
from training.datasets.split import Split
from training.errors import EvaluationError
from training.evaluation import BANK_EXTRAS, DEFAULT_CANDIDATES, EXTRAS
from training.evaluation.encoding import (
    BLOCK_SHAPE,
    DEFAULT_ENCODING,
    SCORES,
    EncodingOptions,
    OnProgress,
    coarse_similarity,
    encode_split,
    encode_texts,
    score_matrices,
    similarity,
)
from training.evaluation.hubness import (
    DUAL_SOFTMAX_TEMPERATURE,
    NEAREST_NEIGHBOUR_ALPHA,
    QUERY_BANK_BETA,
    QUERY_BANK_K,
    BankStatistics,
    QueryBank,
    bank_statistics,
    dual_softmax,
    log_sum_exp_of_columns,
    nearest_neighbour_normalization,
    query_bank_normalization,
)
from training.evaluation.metrics import (
    RankCounts,
    Rescore,
    RetrievalMetrics,
    multi_caption_metrics,
    multi_caption_statistics,
    require_finite,
    require_one_clip_a_text,
    retrieval_metrics,
    row_blocks,
    square_statistics,
    video_to_text_similarity,
)
from training.evaluation.paper_results import Direction


@dataclass(frozen=True)
class RetrievalResult:
    """Both directions of one split. Video to text counts clips as queries, text to video texts."""

    text_to_video: RetrievalMetrics
    video_to_text: RetrievalMetrics
    num_texts: int
    num_clips: int


def compute_metrics(total: NDArray[np.floating], split: Split) -> RetrievalResult:
    """The official metrics of scores of all T texts (rows) with all V clips (columns), both directions.

    One text a clip: plain metrics of the square matrix and its transpose. Several: each text is a query of
    its own, and a clip's best caption stands for the clip (`training.evaluation.metrics`).

    Raises:
        EvaluationError: A score is not finite; the message names text and clip.
    """
    if total.shape != (len(split.texts), len(split.clips)):
        raise EvaluationError(
            f"scores {list(total.shape)} for {len(split.texts)} texts and {len(split.clips)} clips"
        )
    require_finite(total, split.texts, [clip.id for clip in split.clips])
    several = split.has_several_texts_per_clip
    by_video = video_to_text_similarity(total, split.clip_of_text) if several else total.T
    return RetrievalResult(
        _text_to_video(total, split), retrieval_metrics(by_video), len(split.texts), len(split.clips)
    )


def _text_to_video(
    scores: NDArray[np.floating], split: Split, rescore: Rescore | None = None
) -> RetrievalMetrics:
    if split.has_several_texts_per_clip:
        return multi_caption_metrics(scores, split.clip_of_text, rescore)
    return retrieval_metrics(scores, rescore)


def evaluate_split(
    model: XClip,
    split: Split,
    reader: FrameReader,
    options: EncodingOptions = DEFAULT_ENCODING,
    on_progress: OnProgress | None = None,
) -> RetrievalResult:
    """The metrics of a model on a split. The model keeps its mode and its gradients."""
    encoded = encode_split(model, split, reader, options, on_progress)
    return compute_metrics(similarity(model, encoded.text, encoded.video, on_progress=on_progress), split)


@dataclass(frozen=True)
class TwoStageResult:
    """Text to video through `num_candidates` candidates a text.

    Attributes:
        candidate_recall: Percent of texts whose own clip is among their candidates; no reranking can find
            more.
    """

    num_candidates: int
    candidate_recall: float
    metrics: RetrievalMetrics


def two_stage_metrics(
    coarse: NDArray[np.floating],
    total: NDArray[np.floating],
    clip_of_text: Sequence[int],
    num_candidates: int,
) -> TwoStageResult:
    """Metrics of the ranking with a text's candidates first, by total, and then all others, by coarse.

    A text whose clip is no candidate has the clip's coarse rank, which is beyond K. Where the K-th coarse
    score is tied, earlier columns are taken. Ties in the final ranking count as in the exhaustive protocol.

    Args:
        coarse, total: float [T, V], finite.
        num_candidates: K >= 1; with K >= V this is the exhaustive ranking.
    """
    require_one_clip_a_text(total, clip_of_text)
    if coarse.shape != total.shape:
        raise EvaluationError(f"coarse scores {coarse.shape} for totals {total.shape}")
    if num_candidates < 1:
        raise EvaluationError(f"a shortlist needs at least one candidate, not {num_candidates}")
    if not np.isfinite(coarse).all() or not np.isfinite(total).all():
        raise EvaluationError("a score is not a finite number")
    own = np.asarray(clip_of_text)
    num_texts, num_clips = total.shape
    counts = np.empty((3, num_texts), np.int64)
    found = np.empty(num_texts, bool)
    columns = np.arange(num_clips)
    for first, rows in row_blocks(total):
        block = slice(first, first + len(rows))
        own_columns = own[block, None]
        candidate = choose_candidates(coarse[block], num_candidates)
        found[block] = np.take_along_axis(candidate, own_columns, axis=1)[:, 0]
        # A text's own clip competes with the clips of its own stage only: with the other candidates, by
        # the total, where it is one; else with those behind them, by the coarse score.
        same_stage = candidate == found[block, None]
        scores = np.where(found[block, None], rows, coarse[block])
        own_scores = np.take_along_axis(scores, own_columns, axis=1)
        equal = (scores == own_scores) & same_stage
        before = np.where(found[block], 0, min(num_candidates, num_clips))
        counts[0, block] = ((scores > own_scores) & same_stage).sum(axis=1) + before
        counts[1, block] = equal.sum(axis=1)
        counts[2, block] = (equal & (columns < own_columns)).sum(axis=1)
    ranks = RankCounts(counts[0], counts[1], counts[2], num_clips)
    one_text_a_clip = num_texts == num_clips and bool((own == columns).all())
    metrics = square_statistics(ranks) if one_text_a_clip else multi_caption_statistics(ranks)
    return TwoStageResult(num_candidates, float(found.sum()) * 100 / num_texts, metrics)


def choose_candidates(coarse: NDArray[np.floating], num_candidates: int) -> NDArray[np.bool_]:
    """bool [rows, V]: the `num_candidates` highest of each row; of equal ones the earlier columns."""
    num_clips = coarse.shape[1]
    if num_candidates >= num_clips:
        return np.ones(coarse.shape, bool)
    position = num_clips - num_candidates
    threshold = np.partition(coarse, position, axis=1)[:, position, None]
    above, tied = coarse > threshold, coarse == threshold
    num_left = num_candidates - above.sum(axis=1, keepdims=True)
    chosen: NDArray[np.bool_] = above | (tied & (tied.cumsum(axis=1) <= num_left))
    return chosen


Extra = Literal["dual-softmax", "query-bank", "nearest-neighbour"]
Kind = Literal["exhaustive", "single-score", "two-stage", Extra]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        servable: Whether a search could rank so, knowing one query and the indexed clips alone.
        parameters: What makes the row, as JSON values.
        note: A few words for the reader.
    """

    label: str
    kind: Kind
    direction: Direction
    metrics: RetrievalMetrics
    servable: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def exhaustive_rows(
    scores: NDArray[np.floating], split: Split, label: str = "every pair scored", kind: Kind = "exhaustive"
) -> list[Row]:
    """Both directions of the official protocol.

    Args:
        scores: float [T, V].
    """
    result = compute_metrics(scores, split)
    several = split.has_several_texts_per_clip and kind == "exhaustive"
    note = "a clip's best caption stands for it" if several else ""
    return [
        Row(label, kind, "text to video", result.text_to_video),
        Row(label, kind, "video to text", result.video_to_text, note=note),
    ]


def two_stage_rows(
    coarse: NDArray[np.floating], total: NDArray[np.floating], split: Split, candidates: Sequence[int]
) -> list[Row]:
    """Text to video through shortlists of several sizes; those that hold every clip are left out.

    The other direction is not searched in two stages: an index holds clips.

    Args:
        coarse, total: float [T, V].
    """
    rows = []
    for count in sorted(set(candidates)):
        if count >= len(split.clips):
            continue
        result = two_stage_metrics(coarse, total, split.clip_of_text, count)
        rows.append(
            Row(
                f"two stages, {count} candidate{'s' if count > 1 else ''}",
                "two-stage",
                "text to video",
                result.metrics,
                parameters={"num_candidates": count, "candidate_recall": result.candidate_recall},
            )
        )
    return rows


def dual_softmax_rows(total: NDArray[np.floating], split: Split) -> list[Row]:
    """Both directions; of several captions a clip's best one is chosen before the correction."""
    to_text = video_to_text_similarity(total, split.clip_of_text)

    def corrected(scores: NDArray[np.floating]) -> Rescore:
        log_sums = log_sum_exp_of_columns(scores)
        return lambda rows: dual_softmax(rows, log_sums)

    metrics: dict[Direction, RetrievalMetrics] = {
        "text to video": _text_to_video(total, split, corrected(total)),
        "video to text": retrieval_metrics(to_text, corrected(to_text)),
    }
    return [
        Row(
            "dual softmax",
            "dual-softmax",
            direction,
            one,
            servable=False,
            parameters={"temperature": DUAL_SOFTMAX_TEMPERATURE},
            note="transductive, needs all test queries together",
        )
        for direction, one in metrics.items()
    ]


def bank_rows(
    similarity: NDArray[np.floating],
    split: Split,
    statistics: BankStatistics,
    bank: QueryBank,
    extras: Sequence[str],
) -> list[Row]:
    """Text to video, corrected by a bank of texts (the other direction would need a bank of clips).

    Args:
        similarity: float [T, V], without exp(logit_scale), as the bank's.
    """
    source = {
        "bank_source": bank.source,
        "bank_size": len(bank.texts),
        "bank_available": bank.num_available,
        "bank_left_out": bank.num_left_out,
        "bank_holds_test_queries": bank.holds_test_queries,
    }
    corrections: dict[Extra, tuple[Rescore, dict[str, Any]]] = {
        "query-bank": (
            lambda rows: query_bank_normalization(rows, statistics),
            {"beta": QUERY_BANK_BETA, "k": QUERY_BANK_K},
        ),
        "nearest-neighbour": (
            lambda rows: nearest_neighbour_normalization(rows, statistics),
            {"alpha": NEAREST_NEIGHBOUR_ALPHA, "num_neighbours": statistics.num_neighbours},
        ),
    }
    return [
        Row(
            f"{kind} normalisation",
            kind,
            "text to video",
            _text_to_video(similarity, split, rescore),
            servable=not bank.holds_test_queries,
            parameters={**parameters, **source},
            note=f"the bank is {bank}",
        )
        for kind, (rescore, parameters) in corrections.items()
        if kind in extras
    ]


def tie_warnings(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row in which queries share their own item's score with another item."""
    return [
        f"{row.label}, {row.direction}: {row.metrics.num_tied_queries} of {row.metrics.num_queries} queries "
        f"have their own item tied with others; R@1 lies between {row.metrics.pessimistic.recall_at_1:.1f} "
        f"and {row.metrics.optimistic.recall_at_1:.1f}"
        for row in rows
        if row.metrics.num_tied_queries
    ]


@dataclass(frozen=True)
class RowChoice:
    """Which rows an evaluation has in addition to the exhaustive ones.

    Attributes:
        candidates: Shortlist sizes; those of V or more are left out.
        extras: Of EXTRAS.
        bank: The queries for those of BANK_EXTRAS.
        single_scores: Also print a row for each of the four scores.

    Raises:
        ValueError: An unknown extra row, or one that lacks its bank.
    """

    candidates: Sequence[int] = DEFAULT_CANDIDATES
    extras: Sequence[str] = ()
    bank: QueryBank | None = None
    single_scores: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.extras) - set(EXTRAS):
            raise ValueError(f"no such extra row: {', '.join(sorted(unknown))}")
        if self.bank is None and set(self.extras) & set(BANK_EXTRAS):
            raise ValueError("normalisation by a bank needs a bank")


DEFAULT_ROWS = RowChoice()


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
    choice: RowChoice = DEFAULT_ROWS,
    options: EncodingOptions = DEFAULT_ENCODING,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """All rows of one model on one split: exhaustive, two-stage, and the corrections asked for.

    Memory: features, one float32 [T, V] for each matrix used at a time, and blocks.

    Raises:
        DatasetError: A clip cannot be read.
        EvaluationError: A score is not finite.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "encode"):
        encoded = encode_split(model, split, reader, options, on_progress)
    names = SCORES if choice.single_scores else ("total",)
    with _timed(seconds, "score"):
        matrices = score_matrices(model, encoded.text, encoded.video, names, on_progress=on_progress)
    total = matrices.pop("total")
    with _timed(seconds, "judge"):
        rows = exhaustive_rows(total, split)
        for name, scores in matrices.items():
            rows += exhaustive_rows(scores, split, f"{name.replace('_', '-')} alone", "single-score")
        del matrices
        if any(count < len(split.clips) for count in choice.candidates):
            coarse = coarse_similarity(model, encoded.text, encoded.video)
            rows += two_stage_rows(coarse, total, split, choice.candidates)
            del coarse
        if "dual-softmax" in choice.extras:
            rows += dual_softmax_rows(total, split)
    if choice.bank is not None and set(choice.extras) & set(BANK_EXTRAS):
        with _timed(seconds, "bank"):
            text = encode_texts(model, choice.bank.texts, dtype=options.dtype)
            statistics = score_bank(model, text, encoded.video, on_progress)
            total /= model.logit_scale_exp
            rows += bank_rows(total, split, statistics, choice.bank, choice.extras)
    # Directions together, in the order in which the rows were made.
    rows.sort(key=lambda row: row.direction)
    return Evaluation(tuple(rows), tuple(tie_warnings(rows)), seconds)


def score_bank(
    model: XClip, text: TextFeatures, video: VideoFeatures, on_progress: OnProgress | None = None
) -> BankStatistics:
    """Statistics of a bank's B texts with V clips, in blocks of texts, without exp(logit_scale)."""

    def blocks() -> Iterator[NDArray[np.floating]]:
        for first in range(0, len(text), BLOCK_SHAPE[0]):
            some = text[first : first + BLOCK_SHAPE[0]]
            yield similarity(model, some, video) / model.logit_scale_exp
            if on_progress is not None:
                on_progress("bank queries", first + len(some), len(text))

    return bank_statistics(blocks())


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
