"""The rows of an evaluation's table: one ranking in one direction each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.datasets.split import Split
from training.evaluation.bank import QueryBank
from training.evaluation.normalization import (
    DUAL_SOFTMAX_TEMPERATURE,
    NEAREST_NEIGHBOUR_ALPHA,
    QUERY_BANK_BETA,
    QUERY_BANK_K,
    BankStatistics,
    dual_softmax,
    log_sum_exp_of_columns,
    nearest_neighbour_normalization,
    query_bank_normalization,
)
from training.evaluation.paper_results import Direction
from training.evaluation.protocol import judge
from training.evaluation.two_stage import two_stage_metrics
from training.metrics import (
    Rescore,
    RetrievalMetrics,
    multi_caption_metrics,
    retrieval_metrics,
    video_to_text_similarity,
)

Extra = Literal["dual-softmax", "query-bank", "nearest-neighbour"]
Kind = Literal["exhaustive", "single-score", "two-stage", Extra]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    servable: whether a search could rank so, knowing one query and the indexed clips alone.
    parameters: what makes the row, as JSON values. note: a few words for people.
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
    """Both directions of the official protocol. scores: float [T, V]."""
    result = judge(scores, split)
    return [
        Row(label, kind, "text to video", result.text_to_video),
        Row(
            label,
            kind,
            "video to text",
            result.video_to_text,
            note=_of_captions(split) if kind == "exhaustive" else "",
        ),
    ]


def two_stage_rows(
    coarse: NDArray[np.floating], total: NDArray[np.floating], split: Split, candidates: Sequence[int]
) -> list[Row]:
    """Text to video through shortlists of several sizes; those that hold every clip are left out.

    coarse, total: float [T, V]. The other direction is not searched in two stages: an index holds clips.
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
            note="transductive, needs all test queries at once",
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

    similarity: float [T, V], without exp(logit_scale), as the bank's.
    """
    source = {
        "bank_source": bank.source,
        "bank_size": len(bank.texts),
        "bank_available": bank.num_available,
        "bank_left_out": bank.num_left_out,
        "bank_holds_test_queries": bank.holds_test_queries,
    }
    rows = []
    if "query-bank" in extras:
        rows.append(
            Row(
                "query-bank normalisation",
                "query-bank",
                "text to video",
                _text_to_video(similarity, split, lambda rows: query_bank_normalization(rows, statistics)),
                servable=not bank.holds_test_queries,
                parameters={"beta": QUERY_BANK_BETA, "k": QUERY_BANK_K, **source},
                note=f"the bank is {bank}",
            )
        )
    if "nearest-neighbour" in extras:
        rows.append(
            Row(
                "nearest-neighbour normalisation",
                "nearest-neighbour",
                "text to video",
                _text_to_video(
                    similarity, split, lambda rows: nearest_neighbour_normalization(rows, statistics)
                ),
                servable=not bank.holds_test_queries,
                parameters={
                    "alpha": NEAREST_NEIGHBOUR_ALPHA,
                    "num_neighbours": statistics.num_neighbours,
                    **source,
                },
                note=f"the bank is {bank}",
            )
        )
    return rows


def tie_warnings(rows: Sequence[Row]) -> list[str]:
    """A sentence for each row in which queries share their own item's score with another item."""
    return [
        f"{row.label}, {row.direction}: {row.metrics.num_tied_queries} of {row.metrics.num_queries} queries "
        f"have their own item tied with others; R@1 lies between {row.metrics.pessimistic.recall_at_1:.1f} "
        f"and {row.metrics.optimistic.recall_at_1:.1f}"
        for row in rows
        if row.metrics.num_tied_queries
    ]


def _text_to_video(scores: NDArray[np.floating], split: Split, rescore: Rescore) -> RetrievalMetrics:
    if split.has_several_texts_per_clip:
        return multi_caption_metrics(scores, split.clip_of_text, rescore)
    return retrieval_metrics(scores, rescore)


def _of_captions(split: Split) -> str:
    return "a clip's best caption stands for it" if split.has_several_texts_per_clip else ""
