"""Where a page of results ended, as a text that the client keeps and gives back for the next page.

Nothing is kept on the server. A score computed again may differ in its last bits (it depends on what is
scored beside it), so a place in an order is not a score alone: an `Edge` also names the segments that were
given with a score as good as the last one's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from indexer.errors import InvalidCursorError
from indexer.search.types import MAX_CURSOR_CHARACTERS, SearchQuery, is_finite
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.changes import last_sequence, read_token

RELATIVE_TOLERANCE: Final = 1e-5
"""Scores nearer to each other than this, times the scale of the scores, may be equal: float32 products of
unit vectors, computed in another order, differ by less than a tenth of it."""

_VERSION: Final = 1
_MAX_JSON_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Edge:
    """The end of a stretch of segments in descending order of some score.

    score: the last one's. ids: of those segments before the end whose score is the last one's within the
    tolerance; others that were given may be among them.
    """

    score: float
    ids: tuple[int, ...]

    @classmethod
    def behind(
        cls, scores: NDArray[np.float32], ids: NDArray[np.int64], tolerance: float, former: Edge | None = None
    ) -> Self:
        """The end of a stretch of N >= 1 segments. former: the end of the stretch before it."""
        last = float(scores.min())
        # Twice the tolerance, because `covers` measures from scores that may be off by it already.
        near = set(ids[scores <= last + 2 * tolerance].tolist())
        if former is not None and former.score <= last + 2 * tolerance:
            near |= set(former.ids)
        return cls(last, tuple(sorted(near)))

    def covers(
        self, scores: NDArray[np.float32], ids: NDArray[np.int64], tolerance: float
    ) -> NDArray[np.bool_]:
        """bool [N]: which of these segments lie before the end."""
        distances = scores.astype(np.float64) - self.score
        given: NDArray[np.bool_] = np.isin(ids, np.array(self.ids, np.int64))
        covered: NDArray[np.bool_] = (distances > tolerance) | ((distances >= -tolerance) & given)
        return covered


@dataclass(frozen=True)
class Horizon:
    """What there was when the first page was made: the catalog after the change `sequence` (with that
    `token`). Segments above `max_segment_id` came later: ids ascend and are never used again."""

    max_segment_id: int
    sequence: int
    token: str

    @classmethod
    def of(cls, catalog: Catalog) -> Self:
        """Of now."""
        with catalog.connections.snapshot() as connection:
            sequence = last_sequence(connection)
            token = read_token(connection, sequence)
            (max_segment_id,) = connection.execute("SELECT max(id) FROM segments").fetchone()
        return cls(max_segment_id or 0, sequence, token or "")


@dataclass(frozen=True)
class Place:
    """How far the pages have come.

    tier_start, tier_end: the candidates that the last result was one of; None for the very start, and in an
        exhaustive search, which has one tier without ends. last: the results given of that tier.
    num_candidates: segments up to the end of the tier. num_results: results given so far.
    """

    tier_start: Edge | None
    tier_end: Edge | None
    last: Edge
    num_candidates: int
    num_results: int


@dataclass(frozen=True)
class Cursor:
    """All that the next page needs. least_score: what `min_score` and `min_percentile` came to."""

    horizon: Horizon
    least_score: float | None
    place: Place

    def to_text(self, query: SearchQuery, fingerprint: str) -> str | None:
        """URL-safe text, or None where it would be too long."""
        place, horizon = self.place, self.horizon
        fields = [
            _VERSION,
            _digest(query),
            fingerprint[:16],
            [horizon.max_segment_id, horizon.sequence, horizon.token],
            self.least_score,
            [_edge_to_json(edge) for edge in (place.tier_start, place.tier_end, place.last)],
            place.num_candidates,
            place.num_results,
        ]
        packed = zlib.compress(json.dumps(fields, separators=(",", ":")).encode())
        text = base64.urlsafe_b64encode(packed).rstrip(b"=").decode()
        return text if len(text) <= MAX_CURSOR_CHARACTERS else None

    @classmethod
    def from_text(cls, text: str, query: SearchQuery, catalog: Catalog) -> Self:
        """What `to_text` made for this query and index. Raises InvalidCursorError."""
        try:
            version, digest, fingerprint, horizon, least_score, edges, num_candidates, num_results = _unpack(
                text
            )
            if version != _VERSION:
                raise InvalidCursorError("the cursor is of another version; begin again without it")
            start, end, last = (_edge_from_json(edge) for edge in edges)
            if last is None:
                raise ValueError("no last result")
            place = Place(start, end, last, _count(num_candidates), _count(num_results))
            max_segment_id, sequence, token = horizon
            seen = Horizon(_count(max_segment_id), _count(sequence), str(token))
            least = None if least_score is None else _finite(least_score)
        except (ValueError, TypeError) as error:
            if isinstance(error, InvalidCursorError):
                raise
            raise InvalidCursorError(
                "the cursor is none that this index gave; begin again without it"
            ) from None
        if digest != _digest(query):
            raise InvalidCursorError(
                "the cursor belongs to another search: give the fields of the page before, or begin again"
                " without it"
            )
        if fingerprint != catalog.fingerprint[:16] or catalog.change_token(seen.sequence) != seen.token:
            raise InvalidCursorError(
                "the index is no longer the one that the cursor was given for; begin again without it"
            )
        return cls(seen, least, place)


def _digest(query: SearchQuery) -> str:
    """Of all that decides about the order and what is in it."""
    fields = [
        query.text,
        query.candidates,
        query.mode,
        query.group_by,
        query.min_score,
        query.min_percentile,
        query.filter,
    ]
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=dict).encode()).hexdigest()[:16]


def _unpack(text: str) -> Sequence[Any]:
    """The fields in a cursor. Raises ValueError."""
    if len(text) > MAX_CURSOR_CHARACTERS:
        raise ValueError("too long")
    try:
        packed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        inflater = zlib.decompressobj()
        content = inflater.decompress(packed, _MAX_JSON_BYTES)
    except (binascii.Error, zlib.error, UnicodeEncodeError) as error:
        raise ValueError("not packed by us") from error
    is_canonical = base64.urlsafe_b64encode(packed).rstrip(b"=").decode() == text
    if not inflater.eof or inflater.unused_data or not is_canonical:
        raise ValueError("cut off, or too much")
    try:
        fields = json.loads(content)
    except RecursionError as error:
        raise ValueError("too deep") from error
    if not isinstance(fields, list) or not fields:
        raise ValueError("not a list")
    if isinstance(fields[0], bool) or fields[0] != _VERSION:  # true equals 1.
        raise InvalidCursorError("the cursor is of another version; begin again without it")
    return fields


def _edge_to_json(edge: Edge | None) -> list[Any] | None:
    """Ids as the first one and differences, which are small and alike."""
    if edge is None:
        return None
    return [edge.score, np.diff(np.array(edge.ids, np.int64), prepend=0).tolist()]


def _edge_from_json(value: Any) -> Edge | None:
    if value is None:
        return None
    score, differences = value
    ids: list[int] = []
    for difference in differences:
        ids.append((ids[-1] if ids else 0) + _count(difference))
    if ids and ids[-1] > 2**62:
        raise ValueError("no id is so large")
    return Edge(_finite(score), tuple(ids))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise ValueError("not a count")
    return value


def _finite(value: Any) -> float:
    if not is_finite(value):
        raise ValueError("not a number")
    return float(value)
