"""Checksums of rows, and the facts of an index with theirs: the same in every store.

A database checks its own pages, or leaves that to the disk, but not what a row says: each row has a checksum,
so that a byte that changes is noticed where the row is read, and by `verify`, instead of being searched with
or shown.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from indexer.errors import IndexDamagedError
from indexer.store.records import Damage, IndexFacts

NO_CHECKSUM: Final = -1
"""Of values of types that were never written: a damaged row can hold anything. No row's checksum is this."""

_DOUBLES: Final = [struct.Struct(f"<{count}d") for count in range(6)]
"""Of so many numbers: made once, for a search checks hundreds of rows."""


def checksum_of_row(values: Sequence[str | int | float | None]) -> int:
    """CRC-32 of a row's values in the order of its columns, booleans as 0 or 1."""
    try:
        return zlib.crc32(json.dumps(list(values), ensure_ascii=False).encode())
    except (TypeError, ValueError):
        return NO_CHECKSUM


def checksum_of_blob(
    blob: bytes | bytearray | memoryview, *numbers: int | float, fingerprint: bytes = b""
) -> int:
    """CRC-32 of bytes together with numbers that say what they belong to, whole ones below 2^53, and with the
    fingerprint that they were made with."""
    try:
        return zlib.crc32(blob, zlib.crc32(_DOUBLES[len(numbers)].pack(*numbers) + fingerprint))
    except (TypeError, struct.error, OverflowError):
        return NO_CHECKSUM


# What does not match its checksum


@dataclass(frozen=True, kw_only=True)
class DamagedRows:
    """What a store finds when it reads its rows, table by table; each is read when it is its turn.

    Attributes:
        kept_out: hashes of the contents.
        changes: sequence numbers.
        transcripts, words: what is wrong, a sentence.
        segments: (id, what is wrong) of every segment, "" where nothing is.
    """

    kept_out: Iterable[str]
    changes: Iterable[int]
    transcripts: Iterable[str]
    words: Iterable[str]
    segments: Iterable[tuple[int, str]]


def damages_of_rows(rows: DamagedRows, on_progress: Callable[[int], None]) -> Iterator[Damage]:
    """Say what is wrong with rows. on_progress: called now and then with the number of segments read."""
    for content_sha256 in rows.kept_out:
        yield Damage("catalog", f"kept-out content {content_sha256} does not match its checksum")
    for sequence in rows.changes:
        yield Damage("change log", f"change {sequence} does not match its checksum")
    for problem in rows.transcripts:
        yield Damage("catalog", problem)
    for problem in rows.words:
        yield Damage("words", problem)
    num_done = 0
    for num_done, (segment_id, problem) in enumerate(rows.segments, start=1):
        if num_done % 1000 == 0:
            on_progress(num_done)
        if problem:
            yield Damage("catalog", f"segment {segment_id}: {problem}")
    on_progress(num_done)


# The facts of an index

_FACTS_CHECKSUM: Final = "checksum"


def rows_of_facts(facts: IndexFacts, created_at: float) -> dict[str, str]:
    """What a table of facts holds, by name. created_at: seconds since 1970."""
    rows = {name: str(value) for name, value in asdict(facts).items()}
    rows["created_at"] = repr(created_at)
    rows[_FACTS_CHECKSUM] = str(_checksum_of_facts(rows))
    return rows


def facts_of_rows(rows: Mapping[str, str], where: object) -> tuple[IndexFacts, float]:
    """The facts, and when the index was made, in seconds since 1970.

    Args:
        rows: of `rows_of_facts`; catalogs of early versions have no checksum.
        where: names the index in errors.

    Raises:
        IndexDamagedError: one is missing, or not what was written.
    """
    try:
        facts = IndexFacts(
            fingerprint=rows["fingerprint"],
            model_spec=rows["model_spec"],
            embedding_dim=int(rows["embedding_dim"]),
            num_frames=int(rows["num_frames"]),
            sampling_json=rows["sampling_json"],
        )
        bytes.fromhex(facts.fingerprint)
        created_at = float(rows["created_at"])
    except (KeyError, ValueError, TypeError) as error:
        raise IndexDamagedError(f"the catalog {where} lacks a fact in its table of facts: {error}") from error
    if _FACTS_CHECKSUM in rows and rows[_FACTS_CHECKSUM] != str(_checksum_of_facts(rows)):
        raise IndexDamagedError(
            f"the catalog {where} is damaged: its table of facts does not match its checksum"
        )
    return facts, created_at


def _checksum_of_facts(rows: Mapping[str, str]) -> int:
    names = sorted(rows.keys() - {_FACTS_CHECKSUM})
    return checksum_of_row([text for name in names for text in (name, rows[name])])
