"""Which texts and clips meet in which batch. Pure functions over numbers; nothing here opens a file.

    an epoch's order   7 2 9 0 | 4 1 8 3 | 6 5        a shuffle of all texts, by (seed, epoch) alone
    steps (batch 4)       0    |    1    | dropped
    two processes      7 2:9 0 | 4 1:8 3              process r gets slice r of every batch

So the batches are the same for any number of processes, and an epoch can be taken up at any step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError, DatasetError


def epoch_order(
    clip_of_text: Sequence[int], seed: int, epoch: int, one_text_per_clip: bool = False
) -> NDArray[np.int64]:
    """Indices of texts in the order of one epoch, int64 [T], or [V] with one text per clip.

    clip_of_text: ascending, as in `Split`. seed, epoch: 0 or more.
    one_text_per_clip: every clip once, with one of its texts; an epoch later with the next one, so that n
    epochs show all of n texts. Else every text once, its clip as often as it has texts, as in the official
    code. The order rests on raw random bits, which NumPy promises never to change (NEP 19).
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    if not one_text_per_clip:
        return np.argsort(bits.random_raw(len(clip_of_text)), kind="stable")
    counts = np.bincount(np.asarray(clip_of_text, dtype=np.int64))
    firsts = np.cumsum(counts) - counts
    starts = np.random.PCG64(np.random.SeedSequence([seed])).random_raw(len(counts))
    chosen = firsts + ((starts % counts.astype(np.uint64)).astype(np.int64) + epoch) % counts
    return chosen[np.argsort(bits.random_raw(len(counts)), kind="stable")]


def num_steps(num_pairs: int, batch_size: int) -> int:
    """Batches of an epoch of `num_pairs` texts (clips, with one text per clip), without the incomplete one.

    Raises DatasetError where there is not one batch.
    """
    if num_pairs < batch_size:
        raise DatasetError(
            f"{num_pairs} pairs of a text and a clip do not fill one batch of {batch_size}: choose a smaller"
            " batch_size"
        )
    return num_pairs // batch_size


def check_sharing(batch_size: int, rank: int, world_size: int) -> None:
    """Raise ConfigError where batches of `batch_size` cannot be shared equally by `world_size` processes."""
    if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
        raise ConfigError("batch_size and world_size are at least 1, and rank is from 0 to world_size - 1")
    if batch_size % world_size:
        raise ConfigError(f"a batch of {batch_size} cannot be shared equally by {world_size} processes")


def batch_of(
    order: NDArray[np.int64], step: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> NDArray[np.int64]:
    """What a process sees of a step: its slice of the batch. int64 [batch_size // world_size].

    order: from `epoch_order`.
    """
    share = batch_size // world_size
    first = step * batch_size + rank * share
    return order[first : first + share]
