"""The baseline (null) score distribution of an index: how far above chance a score lies.

A set of everyday sentences (baseline.txt) is scored with a sample of the index's segments. Nearly all such
pairs have nothing to do with each other, and those that stand out for their sentence are left out. So the
percentile of a score, the share of the baseline below it, says how rare such a score is for one pair taken at
random. It is no probability that a result is right, and the best of many chance scores is high: among a
hundred thousand segments, a hundred lie above the percentile 99.9 by chance.

How many segments of an index chance puts as high as a result is the expectation value of that result, as in
sequence search (Karlin and Altschul, PNAS 1990): the share of chance pairs that reach its score, times the
number of segments that were searched. `Match` says it in words. Models that were trained with a sigmoid have
a probability instead.

The two scores that results are ordered by, the mean of the model's scores and (in `coarse` mode)
`video_sentence` alone, have a baseline each.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.coarse.index import CoarseIndex
from indexer.features.reader import FeatureReader
from indexer.search.types import Match, SearchMode
from indexer.store.cancellation import raise_if_cancelled

if TYPE_CHECKING:
    from model.features import TextFeatures
    from model.xclip import XClip

NUM_SAMPLED_SEGMENTS: Final = 1024
MIN_SEGMENTS: Final = 10
MIN_TEXTS: Final = 12
STALE_SHARE: Final = 0.1
"""Changes since, as a share of the segments then, that make a baseline stale."""

MATCH_BOUNDS: Final[tuple[tuple[Match, float], ...]] = (("strong", 0.1), ("likely", 1.0), ("weak", 10.0))
"""Expectation values below which a result is such a match; `none` above all of them
(benchmarks/facts/relevance.py measures how often each is right)."""

PROBABILITY_BOUNDS: Final[tuple[tuple[Match, float], ...]] = (
    ("strong", 0.5),
    ("likely", 0.1),
    ("weak", 0.01),
)
"""Probabilities from which on a result is such a match, where the model has them."""

TAIL_SHARE: Final = 0.01
"""Of the baseline: above it the share of higher scores is taken to fall exponentially (the generalised Pareto
distribution of excesses with shape 0; Pickands, Annals of Statistics 1975). A sample of some ten thousand
does not hold the scores that one pair in millions reaches."""

MAX_DEVIATIONS: Final = 3.0
"""Of a sentence's scores, those so many standard deviations above its median are of segments that it is right
for, and no chance: a library has cats, and one of the sentences is about a cat. The deviation is read off the
median absolute deviation, times 1.4826 (Leys et al., Journal of Experimental Social Psychology 2013)."""

_SEGMENTS_AT_ONCE: Final = 128
_TEXTS_AT_ONCE: Final = 8
"""Between them the work may be cancelled."""


@functools.cache
def baseline_texts() -> tuple[str, ...]:
    """The sentences: as far from each other as a few dozen can be, half of them in few and plain words."""
    lines = Path(__file__).with_name("baseline.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True, eq=False)
class Baseline:
    """Scores of chance pairs of an index after the change `sequence`, with `num_segments` segments.

    total, coarse: float32 [N], ascending: the mean of the model's scores, and `video_sentence` alone. Empty
    where the index is too small, or the model knows too few of the sentences.
    """

    sequence: int
    num_segments: int
    total: NDArray[np.float32]
    coarse: NDArray[np.float32]

    @property
    def is_empty(self) -> bool:
        """Whether there are no percentiles."""
        return not len(self.total)

    def _of(self, mode: SearchMode) -> NDArray[np.float32]:
        return self.coarse if mode == "coarse" else self.total

    def percentiles(self, mode: SearchMode, scores: NDArray[np.float32]) -> list[float] | list[None]:
        """For each score the share of the baseline below it, 0 to 100; None where the baseline is empty."""
        baseline = self._of(mode)
        if not len(baseline):
            return [None] * len(scores)
        below = np.searchsorted(baseline, scores, side="left")
        # Rounded down, so that a result's percentile given as `min_percentile` does not leave it out.
        return [math.floor(1000 * share) / 1000 for share in (100.0 * below / len(baseline)).tolist()]

    def matches(
        self, mode: SearchMode, scores: NDArray[np.float32], num_segments: int
    ) -> list[Match] | list[None]:
        """For each score how surely it is none of chance; None where the baseline is empty.

        num_segments: that were searched.
        """
        baseline = self._of(mode)
        if not len(baseline):
            return [None] * len(scores)
        expected = num_segments * _share_above(baseline, scores)
        return [_first_bound(value, MATCH_BOUNDS, is_upper=True) for value in expected.tolist()]

    def least_score(self, mode: SearchMode, percentile: float) -> float | None:
        """The lowest score of at least this percentile; None where every score is."""
        baseline = self._of(mode)
        num_below = math.ceil(percentile / 100 * len(baseline) - 1e-6)
        if num_below == 0:
            return None
        return float(np.nextafter(baseline[num_below - 1], np.float32(np.inf)))


class BaselineScores:
    """The baseline of an index, remade when much of it has changed. Safe to use from several threads."""

    def __init__(self, model: XClip, index: CoarseIndex, features: FeatureReader) -> None:
        self._model = model
        self._index = index
        self._features = features
        self._making = threading.Lock()
        self._texts: TextFeatures | None = None
        self._baseline: Baseline | None = None

    @property
    def now(self) -> Baseline | None:
        """The last one made, perhaps stale; None where none was."""
        return self._baseline

    @property
    def is_stale(self) -> bool:
        """Whether `make` has to be called: none was made yet, or much has changed since."""
        made = self._baseline
        if made is None:
            return True
        return abs(self._index.sequence - made.sequence) > STALE_SHARE * made.num_segments

    def make(self, *, only_first: bool = False) -> Baseline:
        """A baseline of the index as it is now. only_first: unless there is one.

        Raises SearchCancelledError where the work of this thread is cancelled.
        """
        with self._making:
            if self._baseline is None or (self.is_stale and not only_first):
                self._baseline = self._make()
            return self._baseline

    def _make(self) -> Baseline:
        sequence, num_segments = self._index.sequence, self._index.num_segments
        empty = np.empty(0, np.float32)
        texts = self._encode_texts()
        if num_segments < MIN_SEGMENTS or texts is None:
            return Baseline(sequence, num_segments, empty, empty)
        total, coarse = [], []
        sample = sample_segments(self._index.segment_ids(), NUM_SAMPLED_SEGMENTS)
        wanted = {*self._model.config.score_names, "video_sentence"}
        for features in self._features.blocks(sample, _SEGMENTS_AT_ONCE):
            raise_if_cancelled()
            if not len(features):
                continue
            with torch.inference_mode():
                scores = self._model.score(texts, features.videos, wanted)
                total.append(scores.total.float().cpu().numpy())
                coarse.append(scores.video_sentence.float().cpu().numpy())
        if not total:  # All was deleted meanwhile.
            return Baseline(sequence, num_segments, empty, empty)
        return Baseline(sequence, num_segments, of_chance(total), of_chance(coarse))

    def _encode_texts(self) -> TextFeatures | None:
        """Features of the sentences of which the model knows all words; None where they are too few."""
        if self._texts is None:
            known = [text for text in baseline_texts() if not self._model.unknown_words(text)]
            if len(known) < MIN_TEXTS:
                return None
            with torch.inference_mode():
                parts = []
                for start in range(0, len(known), _TEXTS_AT_ONCE):
                    raise_if_cancelled()
                    parts.append(self._model.encode_text(known[start : start + _TEXTS_AT_ONCE]))
            self._texts = type(parts[0]).cat(parts)
        return self._texts


def match_of_probability(probability: float) -> Match:
    """In words what a model with a sigmoid says of a result, 0 to 1."""
    return _first_bound(probability, PROBABILITY_BOUNDS, is_upper=False)


def _first_bound(value: float, bounds: Sequence[tuple[Match, float]], *, is_upper: bool) -> Match:
    for match, bound in bounds:
        if value < bound if is_upper else value >= bound:
            return match
    return "none"


def of_chance(blocks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """All scores but those of what a sentence is right for, ascending: float32 [N], from blocks [T, n]."""
    scores = np.concatenate(blocks, axis=1)
    median = np.median(scores, axis=1, keepdims=True)
    deviation = 1.4826 * np.median(np.abs(scores - median), axis=1, keepdims=True)
    kept: NDArray[np.float32] = np.sort(scores[scores <= median + MAX_DEVIATIONS * deviation])
    return kept


def _share_above(baseline: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """The share of chance pairs that reach each score, float64 [N]. baseline: ascending, not empty."""
    num_tail = max(1, round(TAIL_SHARE * len(baseline)))
    start = float(baseline[-num_tail])
    mean_excess = max(float(baseline[-num_tail:].mean(dtype=np.float64)) - start, 1e-6)
    counted = 1 - np.searchsorted(baseline, scores, side="left") / len(baseline)
    beyond = np.maximum(scores.astype(np.float64) - start, 0.0)
    return np.where(scores > start, num_tail / len(baseline) * np.exp(-beyond / mean_excess), counted)


def sample_segments(segment_ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the ids, ascending: those that come first when their bits are mixed.

    Which ids are taken depends on them alone, so the sample changes as little as the index does.
    """
    if len(segment_ids) <= count:
        return np.sort(segment_ids)
    # The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
    mixed = segment_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.sort(segment_ids[np.argpartition(mixed, count)[:count]])
