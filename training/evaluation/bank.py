"""The bank of queries that normalisations learn an item's popularity from: never the test's own queries."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from training.datasets.annotation_files import AnnotatedClip, read_lines
from training.datasets.registry import load_annotations
from training.datasets.split import Split, SplitName
from training.errors import EvaluationError

DEFAULT_BANK_SIZE = 5000
"""Most queries of a bank: a bank costs as much as that many test texts."""


@dataclass(frozen=True)
class QueryBank:
    """Texts and where they come from.

    source: for people, such as "msrvtt-9k train". num_available: texts of the source before the choice.
    num_left_out: of them, those that equal a test text or describe a test clip.
    holds_test_queries: true only where that was asked for; rows made with it cannot be compared with others.
    """

    texts: tuple[str, ...]
    source: str
    num_available: int
    num_left_out: int
    holds_test_queries: bool = False

    def __str__(self) -> str:
        told = f"{len(self.texts)} of {self.num_available} texts of {self.source}"
        return f"{told}, TEST QUERIES among them" if self.holds_test_queries else told


def make_bank(
    source: str,
    split: Split,
    directory: Path,
    *,
    size: int = DEFAULT_BANK_SIZE,
    seed: int = 0,
    allow_test_queries: bool = False,
) -> QueryBank:
    """A bank for judging `split`, from another split of the same data set or from a file.

    source: train, val or test, or a file with one text a line. directory: of the data set; its annotations
    are read, its videos are not needed.
    size: where there are more texts, so many are drawn by `seed`.
    allow_test_queries: keep texts that equal a test text or describe a test clip, and say so.
    Raises EvaluationError where the source is the split itself or nothing else remains, DatasetError where
    it cannot be read.
    """
    if size < 1:
        raise EvaluationError(f"a bank needs at least one query, not {size}")
    if source in get_args(SplitName):
        if source == split.name and not allow_test_queries:
            raise EvaluationError(
                f"{split} is what is judged, so it must not be the bank; choose another split or a file"
            )
        annotated = load_annotations(split.dataset, directory, cast(SplitName, source))
        named = f"{split.dataset} {source}"
    else:
        annotated = [AnnotatedClip("", (line,)) for _, line in read_lines(Path(source))]
        named = Path(source).name
    texts = [text for clip in annotated for text in clip.texts]
    if not texts:
        raise EvaluationError(f"{named} holds no text")
    kept = _without_the_tests(annotated, split)
    if not allow_test_queries and not kept:
        raise EvaluationError(
            f"every text of {named} equals a text of {split} or describes one of its clips;"
            " choose another bank"
        )
    return QueryBank(
        texts=_draw(texts if allow_test_queries else kept, size, seed),
        source=named,
        num_available=len(texts),
        num_left_out=0 if allow_test_queries else len(texts) - len(kept),
        holds_test_queries=allow_test_queries and len(kept) < len(texts),
    )


def _without_the_tests(annotated: Sequence[AnnotatedClip], split: Split) -> list[str]:
    clips = {clip.id for clip in split.clips} | set(split.missing)
    texts = {_as_compared(text) for text in split.texts}
    return [
        text
        for clip in annotated
        if clip.id not in clips
        for text in clip.texts
        if _as_compared(text) not in texts
    ]


def _as_compared(text: str) -> str:
    """What the tokenizer too takes for the same: case and spaces do not count."""
    return " ".join(text.lower().split())


def _draw(texts: Sequence[str], size: int, seed: int) -> tuple[str, ...]:
    if len(texts) <= size:
        return tuple(texts)
    places = sorted(random.Random(seed).sample(range(len(texts)), size))
    return tuple(texts[place] for place in places)
