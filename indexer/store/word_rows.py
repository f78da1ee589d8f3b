"""What of a video is in the index of words, which words of a query choose, and in what order: the same in
every store.

There is a row for title and metadata of each video, numbered 0, and one for each passage of its transcripts,
numbered from 1. Rows hold terms (`indexer.store.words`), not texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from indexer.store.records import WordMatches
from indexer.store.transcripts import Transcript, passages
from indexer.store.words import QueryWord, terms_of, texts_in

PASSAGE_BITS: Final = 20
"""Of a row's number: the number of the video * 2**20 + the number of the passage."""

PASSAGES: Final = 1 << PASSAGE_BITS

MAX_ROWS: Final = 50_000
"""Of the index of words that a search ranks, a tenth of a second's work. The rarest words of a query come
first, and those that would go beyond it choose nothing; where already the rarest is in more, the latest
videos that have all words are taken, without rank."""

COMMON_ROWS: Final = 10
COMMON_SHARE: Final = 0.05
"""A word in more rows than these, of the number of segments, says little (`the`, `holiday` where all is
holidays): where the query has a rarer one that is found, it chooses nothing. The largest share at which small
words do not choose (`benchmarks/text_match.py`, part 4)."""


def terms_of_facts(title: str | None, metadata: str) -> tuple[str, str]:
    """Terms of a title and of metadata (JSON), each joined by spaces."""
    texts = "\n".join(texts_in(json.loads(metadata))) if metadata != "{}" else ""
    return " ".join(terms_of(title or "")), " ".join(terms_of(texts))


def terms_of_passages(transcripts: Sequence[Transcript]) -> Iterator[tuple[int, str, float]]:
    """(number, terms joined by spaces, start in seconds) of each passage that has some."""
    lines = {transcript.track: transcript.lines for transcript in transcripts}
    for number, passage in enumerate(passages(transcripts), start=1):
        some = lines[passage.track][passage.first : passage.end]
        if terms := terms_of("\n".join(line.text for line in some)):
            yield number, " ".join(terms), some[0].start_seconds


def choosing_words(
    counts: Mapping[QueryWord, int], num_segments: int
) -> tuple[list[QueryWord], list[QueryWord]]:
    """Which words of a query choose videos.

    Args:
        counts: in how many rows each is; of those that are found.
        num_segments: of the store.

    Returns:
        Those whose rows are ranked, the rarest first, and all that say something. Where the first list is
        empty, the rarest is in too many rows: the latest rows that have all of the second are taken.
    """
    most = max(COMMON_ROWS, int(COMMON_SHARE * num_segments))
    telling = {word: count for word, count in counts.items() if count <= most} or counts
    chosen, num_rows = [], 0
    for word, count in sorted(telling.items(), key=lambda found: found[1]):
        num_rows += count
        if num_rows <= MAX_ROWS:
            chosen.append(word)
    return chosen, list(telling)


def best_of_videos(
    row_ids: NDArray[np.int64], scores: NDArray[np.float64], words: Sequence[QueryWord], *, is_cut: bool
) -> WordMatches:
    """Each video once, by its best row; equal ones the latest first.

    Args:
        row_ids: int64 [N], see PASSAGE_BITS.
        scores: float64 [N], the lower, the better.
        words: that chose.
        is_cut: whether there may be more such videos.
    """
    videos = row_ids >> PASSAGE_BITS
    order = np.lexsort((row_ids, -videos, scores))
    _, first = np.unique(videos[order], return_index=True)
    best = order[np.sort(first)]
    return WordMatches(videos[best], row_ids[best] & (PASSAGES - 1), tuple(words), is_cut)
