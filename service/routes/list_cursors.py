"""`next` and `after` of the list of videos: a change number, and the generation of the index that it is of.

In another generation the same numbers are of other videos, so a page begun in one cannot be continued in it.
"""

from __future__ import annotations

from typing import Final

from indexer.store.sqlite.catalog import Catalog
from service.errors import InvalidCursorError

_NUMBERS_OF_ONE: Final = 1 << 40
"""Per generation. JavaScript's numbers, exact up to 2^53, hold 8,192 generations."""


def to_cursor(catalog: Catalog, sequence: int) -> int:
    """The cursor behind the video that was added by change `sequence`."""
    return (catalog.generation - 1) * _NUMBERS_OF_ONE + sequence


def from_cursor(catalog: Catalog, cursor: int | None) -> int | None:
    """The change number again. Raises InvalidCursorError where it is one of another generation."""
    if cursor is None:
        return None
    number, sequence = divmod(cursor, _NUMBERS_OF_ONE)
    if number + 1 != catalog.generation:
        raise InvalidCursorError("The index was encoded anew since the page before: begin without `after`.")
    return sequence
