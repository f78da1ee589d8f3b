"""Corrections of a similarity matrix at test time, as pure functions, and their bank of queries.

Contrastive models have *hubs*: items that score high with almost any query. Each correction lowers them.

Q queries (rows), N items (columns), B bank queries; similarities are cosines or means of cosines, without
exp(logit_scale), unless said otherwise. Each correction is split into what depends on the items alone ([N],
made once) and what a single query's row needs. Only what needs no other test query can be served, so a bank
never holds the test's own queries unless that is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

import numpy as np
from numpy.typing import NDArray

from training.datasets.annotation_files import AnnotatedClip, read_lines
from training.datasets.registry import load_annotations
from training.datasets.split import Split, SplitName
from training.errors import EvaluationError
from training.evaluation import DEFAULT_BANK_SIZE
from training.evaluation.metrics import row_blocks

DUAL_SOFTMAX_TEMPERATURE = 1.0
"""At inference, on scores times exp(logit_scale): the author in github.com/starmemda/CAMoE, issue 4."""

QUERY_BANK_BETA = 20.0
QUERY_BANK_K = 1
"""Inverse temperature and how many items a bank query retrieves: the defaults of QB-Norm
(arXiv:2112.12777; github.com/ioanacroi/qb-norm, dynamic_inverted_softmax.py)."""

NEAREST_NEIGHBOUR_ALPHA = 0.75
NEAREST_NEIGHBOUR_K = 128
"""Weight and number of neighbours that the authors of NNN recommend to begin with
(arXiv:2410.24114; github.com/multimodal-interpretability/nnn, README)."""


def log_sum_exp_of_columns(
    scores: NDArray[np.floating], temperature: float = DUAL_SOFTMAX_TEMPERATURE
) -> NDArray[np.float64]:
    """float64 [N]: log of the sum over queries of exp(scores / temperature).

    Args:
        scores: float [Q, N].
    """
    total = np.full(scores.shape[1], -np.inf)
    for _, rows in row_blocks(scores):
        total = np.logaddexp(total, _log_sum_exp(rows.astype(np.float64) / temperature))
    return total


def dual_softmax(
    scores: NDArray[np.floating],
    log_sums: NDArray[np.float64],
    temperature: float = DUAL_SOFTMAX_TEMPERATURE,
) -> NDArray[np.float64]:
    """float64 [rows, N]: each score times its item's softmax over all queries.

    The revision of arXiv:2109.04290 (github.com/starmemda/CAMoE, DSL.py), without its constant factor. In
    float64, because the softmax of a far-off pair is zero in float32, and zeros are ties. Transductive: it
    needs all test queries together and assumes that each item is the answer about equally often.

    Args:
        scores: float [rows, N], times exp(logit_scale).
        log_sums: [N], `log_sum_exp_of_columns` of all Q queries.
    """
    wide = scores.astype(np.float64)
    softmax: NDArray[np.float64] = np.exp(wide / temperature - log_sums)
    return wide * softmax


@dataclass(frozen=True, eq=False)
class BankStatistics:
    """What a bank of B queries says of N items.

    Attributes:
        log_sums: float64 [N], log of the sum over the bank of exp(beta x similarity).
        retrieved: bool [N], whether any bank query has the item among its k best.
        neighbour_means: float64 [N], mean of the item's most similar `num_neighbours` bank queries.
    """

    log_sums: NDArray[np.float64]
    retrieved: NDArray[np.bool_]
    neighbour_means: NDArray[np.float64]
    num_bank_queries: int
    num_neighbours: int


def bank_statistics(
    blocks: Iterable[NDArray[np.floating]],
    *,
    beta: float = QUERY_BANK_BETA,
    k: int = QUERY_BANK_K,
    num_neighbours: int = NEAREST_NEIGHBOUR_K,
) -> BankStatistics:
    """From blocks of bank queries, float [rows, N] each; no whole [B, N] is ever held.

    Args:
        num_neighbours: Where the bank has fewer queries, all are neighbours.

    Raises:
        EvaluationError: The bank is empty or a similarity is not finite.
    """
    log_sums: NDArray[np.float64] | None = None
    retrieved: NDArray[np.bool_] = np.zeros(0, bool)
    nearest: NDArray[np.float64] = np.zeros((0, 0))
    num_queries = 0
    for block in blocks:
        if not len(block):
            continue
        rows = block.astype(np.float64)
        if not np.isfinite(rows).all():
            raise EvaluationError("a similarity of a bank query is not a finite number")
        if log_sums is None:
            num_items = rows.shape[1]
            log_sums = np.full(num_items, -np.inf)
            retrieved = np.zeros(num_items, bool)
            nearest = np.empty((0, num_items))
        log_sums = np.logaddexp(log_sums, _log_sum_exp(beta * rows))
        best = np.argpartition(-rows, min(k, rows.shape[1]) - 1, axis=1)[:, :k]
        retrieved[best.ravel()] = True
        nearest = _largest_of_columns(np.concatenate([nearest, rows]), num_neighbours)
        num_queries += len(rows)
    if log_sums is None:
        raise EvaluationError("the bank holds no query")
    return BankStatistics(log_sums, retrieved, nearest.mean(axis=0), num_queries, len(nearest))


def query_bank_normalization(
    similarity: NDArray[np.floating], bank: BankStatistics, beta: float = QUERY_BANK_BETA
) -> NDArray[np.float64]:
    """float64 [rows, N]: the dynamic inverted softmax of QB-Norm (arXiv:2112.12777).

    A query whose best item is one that the bank retrieves is scored by
    log(exp(beta x similarity) / sum over the bank of exp(beta x its similarity with the item)); every other
    row stays as it is. The paper has no logarithm; it keeps the order and does not overflow.
    """
    rows = similarity.astype(np.float64)
    normalized = beta * rows - bank.log_sums
    active = bank.retrieved[rows.argmax(axis=1)]
    return np.where(active[:, None], normalized, rows)


def nearest_neighbour_normalization(
    similarity: NDArray[np.floating], bank: BankStatistics, alpha: float = NEAREST_NEIGHBOUR_ALPHA
) -> NDArray[np.float64]:
    """float64 [rows, N]: similarity less a bias for each item (arXiv:2410.24114).

    The bias is alpha times the mean of the item's `num_neighbours` highest bank similarities.
    """
    return similarity.astype(np.float64) - alpha * bank.neighbour_means


def _log_sum_exp(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    highest = rows.max(axis=0)
    total: NDArray[np.float64] = np.log(np.exp(rows - highest).sum(axis=0)) + highest
    return total


def _largest_of_columns(rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The `count` largest values of each column, in no order; all where there are not more."""
    if len(rows) <= count:
        return rows
    largest: NDArray[np.float64] = np.partition(rows, len(rows) - count, axis=0)[len(rows) - count :]
    return largest


@dataclass(frozen=True)
class QueryBank:
    """Texts and where they come from.

    Attributes:
        source: A label, such as "msrvtt-9k train".
        num_available: Texts of the source before the choice.
        num_left_out: Of them, those that equal a test text or describe a test clip.
        holds_test_queries: True only where that was asked for; rows made with it cannot be compared with
            others.
    """

    texts: tuple[str, ...]
    source: str
    num_available: int
    num_left_out: int
    holds_test_queries: bool = False

    def __str__(self) -> str:
        text = f"{len(self.texts)} of {self.num_available} texts of {self.source}"
        return f"{text}, TEST QUERIES among them" if self.holds_test_queries else text


def make_bank(
    source: str,
    split: Split,
    directory: Path,
    *,
    size: int = DEFAULT_BANK_SIZE,
    seed: int = 0,
    allow_test_queries: bool = False,
) -> QueryBank:
    """A bank for evaluating `split`, from another split of the same data set or from a file.

    Args:
        source: `train`, `val` or `test`, or a file with one text a line.
        directory: Of the data set; its annotations are read, its videos are not needed.
        size: The most texts; of more, this many are drawn by `seed`.
        allow_test_queries: Keep texts that equal a test text or describe a test clip, and say so.

    Raises:
        EvaluationError: The source is the split itself or nothing else remains.
        DatasetError: It cannot be read.
    """
    if size < 1:
        raise EvaluationError(f"a bank needs at least one query, not {size}")
    if source in get_args(SplitName):
        if source == split.name and not allow_test_queries:
            raise EvaluationError(
                f"{split} is what is evaluated, so it must not be the bank; choose another split or a file"
            )
        annotated = load_annotations(split.dataset, directory, cast(SplitName, source))
        named = f"{split.dataset} {source}"
    else:
        annotated = [AnnotatedClip("", (line,)) for _, line in read_lines(Path(source))]
        named = Path(source).name
    texts = [text for clip in annotated for text in clip.texts]
    if not texts:
        raise EvaluationError(f"{named} holds no text")
    # A bank that knows test queries would make the figures better than a service could be.
    kept = _without_the_tests(annotated, split)
    if not allow_test_queries and not kept:
        raise EvaluationError(
            f"every text of {named} equals a text of {split} or describes one of its clips;"
            " choose another bank"
        )
    usable = texts if allow_test_queries else kept
    if len(usable) > size:
        drawn = sorted(random.Random(seed).sample(range(len(usable)), size))
        usable = [usable[position] for position in drawn]
    return QueryBank(
        texts=tuple(usable),
        source=named,
        num_available=len(texts),
        num_left_out=0 if allow_test_queries else len(texts) - len(kept),
        holds_test_queries=allow_test_queries and len(kept) < len(texts),
    )


def _without_the_tests(annotated: Sequence[AnnotatedClip], split: Split) -> list[str]:
    clips = {clip.id for clip in split.clips} | set(split.missing)
    texts = {_normalized(text) for text in split.texts}
    return [
        text
        for clip in annotated
        if clip.id not in clips
        for text in clip.texts
        if _normalized(text) not in texts
    ]


def _normalized(text: str) -> str:
    """Equal for texts that are equal to the tokenizer too, which ignores case and spaces."""
    return " ".join(text.lower().split())
