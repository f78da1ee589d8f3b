"""Entries of the change log between records and rows, and what a filter matches kept up to date by them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from indexer.errors import ChangesForgottenError, IndexDamagedError
from indexer.store.checksums import checksum_of_row
from indexer.store.records import Change, ChangeKind

COLUMNS: Final = "sequence, kind, video_id, segment_ids, changed_at, token"

MAX_CHANGES_TO_FOLLOW: Final = 10_000
"""Where more has changed since a filter was last asked, all videos are asked again."""


def row_of_change(
    sequence: int, kind: ChangeKind, video_id: str, segment_ids: Sequence[int], changed_at: float
) -> tuple[Any, ...]:
    """The columns COLUMNS and row_crc32 of a change, with a random token."""
    row = (sequence, kind, video_id, json.dumps(list(segment_ids)), changed_at, secrets.token_hex(8))
    return *row, checksum_of_row(row)


def changes_after(sequence: int, rows: Sequence[Sequence[Any]], limit: int) -> list[Change]:
    """At most `limit` changes after `sequence`.

    Args:
        sequence: of the change that was seen last; 0 before the first.
        rows: COLUMNS and row_crc32 of the `limit` + 1 changes from `sequence` on, in order and of one moment.
        limit: how many.

    Raises:
        ChangesForgottenError: the log does not reach back to `sequence`, or never came to it.
        IndexDamagedError: a row is not what was written, or missing.
    """
    if sequence == 0:
        known = not rows or rows[0][0] == 1
        rows = rows[:limit]
    else:
        # The change seen last must still be there: numbers have no gaps, so nothing lies between it and the
        # next.
        known = bool(rows) and rows[0][0] == sequence
        rows = rows[1:]
    if not known:
        raise ChangesForgottenError(f"the change log does not hold change {sequence}; read everything again")
    for number, row in enumerate(rows, start=sequence + 1):
        if row[0] != number:
            raise IndexDamagedError(f"the catalog is damaged: change {number} is missing; restore a backup")
    return [_change(row) for row in rows]


def is_whole_change(row: Sequence[Any]) -> bool:
    """Whether a row of COLUMNS and row_crc32 is what was written."""
    return bool(checksum_of_row(row[:-1]) == row[-1])


def _change(row: Sequence[Any]) -> Change:
    number, kind, video_id, segment_ids, *_ = row
    if not is_whole_change(row):
        raise IndexDamagedError(
            f"the catalog is damaged: change {number} does not match its checksum; restore a backup"
        )
    return Change(number, kind, video_id, tuple(json.loads(segment_ids)))


def replaced_ids(ids: NDArray[np.int64], gone: Sequence[int], new: Sequence[int]) -> NDArray[np.int64]:
    """`ids`, ascending, without those of `gone` and with those of `new`, which are all in `gone`."""
    # Two copies: set operations would sort half a million ids for each added video.
    gone_ids = np.unique(np.array(gone, np.int64))
    places = np.searchsorted(ids, gone_ids)
    is_there = ids[np.minimum(places, len(ids) - 1)] == gone_ids if len(ids) else places < 0
    kept = np.delete(ids, places[is_there])
    added = np.unique(np.array(new, np.int64))
    return np.insert(kept, np.searchsorted(kept, added), added)
