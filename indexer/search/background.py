"""What scores chance gives in this index, so that one can say how far above chance a score lies.

A set of everyday sentences is scored with a sample of the index's segments. Nearly all such pairs have
nothing to do with each other, so their scores are a background: the percentile of a score is how much of the
background lies below it. It says how rare such a score is for one pair taken at random. It is no probability
that a result is right, and the best of many chance scores is high: among a hundred thousand segments, a
hundred lie above the percentile 99.9 by chance.

The two scores that results are ordered by, the mean of the model's scores and (in `coarse` mode)
`video_sentence` alone, have a background each.

Sentences about nothing in particular: what their scores are, chance scores are.
"""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.coarse.index import CoarseIndex
from indexer.search.feature_cache import FeatureMemory
from indexer.search.types import SearchMode

if TYPE_CHECKING:
    from model.features import TextFeatures
    from model.xclip import XClip

BACKGROUND_TEXTS: Final = (
    # Everyday scenes, as far from each other as a few dozen can be.
    "a man talks to the camera",
    "a woman is cooking in a kitchen",
    "two people play tennis",
    "a dog runs through a park",
    "a crowd cheers at a concert",
    "someone writes on a sheet of paper",
    "a train arrives at a station",
    "children play with toys on the floor",
    "a person rides a horse",
    "a chef cuts vegetables",
    "people walk down a busy street",
    "a football player scores a goal",
    "a man repairs an engine",
    "a woman puts on makeup",
    "a singer performs on a stage",
    "a baby laughs",
    "a doctor examines a patient",
    "waves break on the shore",
    "a teacher stands in front of a class",
    "someone plays a video game",
    "a man lifts weights",
    "a plane lands on a runway",
    "a news reader sits at a desk",
    "a couple dances at a wedding",
    "a person paints a wall",
    "a surfer rides a wave",
    "a car drives along a highway",
    "a monkey climbs a tree",
    "an old man reads a newspaper",
    "rain falls on a window",
    "people eat in a restaurant",
    "a computer screen shows a program",
    # The same in few and plain words, for models with a small vocabulary.
    "a cat on a chair",
    "a bird in the sky",
    "a small boat on the sea at night",
    "a car in the snow",
    "a house in a field",
    "a book and a cup",
    "a bicycle in the city",
    "a fish in the ocean",
    "an apple and a mug",
    "a hat on a chair",
    "the city at night",
    "a dark room",
    "a tree on top of a house",
    "a guitar on a chair",
    "a bell and a clock",
    "a lamp in the middle of the room",
    "grass and a flower",
    "something falls into the sea",
    "a white house by the beach",
    "a plane in the blue sky",
    "a view of the town in winter",
    "a big ball and a small ball",
    "an umbrella at the seaside",
    "a red car turns left",
    "a key on a book",
    "a butterfly on a flower",
    "a crown and a star",
    "nothing",
)


logger = logging.getLogger(__name__)

NUM_SAMPLED_SEGMENTS: Final = 1024
MIN_SEGMENTS: Final = 10
MIN_TEXTS: Final = 12
STALE_SHARE: Final = 0.1
"""Changes since, as a share of the segments then, that make a background stale."""

_SEGMENTS_AT_ONCE: Final = 128


@dataclass(frozen=True, eq=False)
class Background:
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
        """Whether nothing can be said."""
        return not len(self.total)

    def _of(self, mode: SearchMode) -> NDArray[np.float32]:
        return self.coarse if mode == "coarse" else self.total

    def percentiles(self, mode: SearchMode, scores: NDArray[np.float32]) -> list[float] | list[None]:
        """For each score how much of the background lies below, 0 to 100; None where there is none."""
        background = self._of(mode)
        if not len(background):
            return [None] * len(scores)
        below = np.searchsorted(background, scores, side="left")
        # Rounded down, so that a result's percentile given as the least one does not leave it out.
        return [math.floor(1000 * share) / 1000 for share in (100.0 * below / len(background)).tolist()]

    def least_score(self, mode: SearchMode, percentile: float) -> float | None:
        """The lowest score of at least this percentile; None where every score is."""
        background = self._of(mode)
        num_below = math.ceil(percentile / 100 * len(background) - 1e-6)
        if num_below == 0:
            return None
        return float(np.nextafter(background[num_below - 1], np.float32(np.inf)))


class BackgroundScores:
    """The background of an index, made anew when much of the index has changed. For several threads."""

    def __init__(self, model: XClip, index: CoarseIndex, features: FeatureMemory) -> None:
        self._model = model
        self._index = index
        self._features = features
        self._making = threading.Lock()
        self._texts: TextFeatures | None = None
        self._background: Background | None = None

    @property
    def now(self) -> Background | None:
        """The last one made, perhaps a stale one; None where none was."""
        return self._background

    @property
    def is_stale(self) -> bool:
        """Whether `make` has to be called: none was made yet, or much has changed since."""
        made = self._background
        if made is None:
            return True
        return abs(self._index.sequence - made.sequence) > STALE_SHARE * made.num_segments

    def make(self, *, only_first: bool = False) -> Background:
        """A background of the index as it is now. only_first: unless there is one."""
        with self._making:
            if self._background is None or (self.is_stale and not only_first):
                self._background = self._make()
            return self._background

    def _make(self) -> Background:
        sequence, num_segments = self._index.sequence, self._index.num_segments
        empty = np.empty(0, np.float32)
        texts = self._encode_texts()
        if num_segments < MIN_SEGMENTS or texts is None:
            return Background(sequence, num_segments, empty, empty)
        total, coarse = [empty], [empty]
        sample = sample_segments(self._index.segment_ids(), NUM_SAMPLED_SEGMENTS)
        for features in self._features.blocks(sample, _SEGMENTS_AT_ONCE):
            if not len(features):
                continue
            with torch.inference_mode():
                scores = self._model.score(texts, features.videos)
                total.append(scores.total.float().cpu().numpy().ravel())
                coarse.append(scores.video_sentence.float().cpu().numpy().ravel())
        return Background(
            sequence, num_segments, np.sort(np.concatenate(total)), np.sort(np.concatenate(coarse))
        )

    def _encode_texts(self) -> TextFeatures | None:
        """Features of the sentences of which the model knows all words; None where they are too few."""
        if self._texts is None:
            known = [text for text in BACKGROUND_TEXTS if not self._model.unknown_words(text)]
            if len(known) < MIN_TEXTS:
                return None
            with torch.inference_mode():
                self._texts = self._model.encode_text(known)
        return self._texts


def sample_segments(segment_ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the ids, ascending: those that a fixed mixing of their bits puts first.

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
