"""Integrity checks of an index in PostgreSQL: each row against its checksum, and table against table.

Whether a page of the server is what it wrote is for PostgreSQL to check (initdb
--data-checksums, pg_amcheck).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from indexer.errors import IndexDamagedError
from indexer.store.checksums import DamagedRows, damages_of_rows
from indexer.store.postgres.changes import damaged_changes
from indexer.store.postgres.connections import Connections, StoreConnection
from indexer.store.postgres.features import FeatureRows
from indexer.store.postgres.files import damaged_kept_out
from indexer.store.postgres.filters import FILTERED_COLUMNS, filtered_values
from indexer.store.postgres.words import damaged_transcripts, damaged_words
from indexer.store.records import Damage
from indexer.store.video_rows import COLUMNS, video_record

_INCONSISTENT: Final = {
    "SELECT 'video ' || id || ' has no segment' FROM videos"
    " WHERE NOT EXISTS (SELECT 1 FROM segments WHERE video_number = number)": "catalog",
    "SELECT DISTINCT 'features are there of segment ' || segment_id || ', which is not' FROM features"
    " WHERE NOT EXISTS (SELECT 1 FROM segments WHERE id = segment_id)": "catalog",
    "SELECT 'a segment got a number that was not given' FROM counters"
    " WHERE last_segment < (SELECT max(id) FROM segments)": "catalog",
    "SELECT 'a video got a number that was not given' FROM counters"
    " WHERE last_video < (SELECT max(number) FROM videos)": "catalog",
    "SELECT 'it counts ' || num_videos || ' videos and ' || num_segments || ' segments, but holds '"
    " || (SELECT count(*) FROM videos) || ' and ' || (SELECT count(*) FROM segments) FROM counters"
    " WHERE num_videos != (SELECT count(*) FROM videos)"
    " OR num_segments != (SELECT count(*) FROM segments)": "totals",
    "SELECT 'the last change is not ' || sequence FROM counters"
    " WHERE sequence != (SELECT coalesce(max(sequence), 0) FROM changes)": "change log",
    "SELECT 'changes are missing' FROM changes"
    " HAVING count(*) != max(sequence) - min(sequence) + 1": "change log",
    "SELECT 'video ' || id || ' was added by a change that is not there' FROM videos"
    " WHERE sequence > (SELECT coalesce(max(sequence), 0) FROM changes)": "change log",
}
"""Statements that give a row for each thing that is wrong, and the part that it is wrong in."""


def damages(
    connections: Connections, features: FeatureRows, on_progress: Callable[[int], None]
) -> Iterator[Damage]:
    """What is not what was written, but for jobs.

    Args:
        connections: of one moment.
        features: that reads the segments.
        on_progress: called now and then with the number of segments read.
    """
    with connections.reading() as connection:
        for statement, part in _INCONSISTENT.items():
            for (problem,) in connection.execute(statement).fetchall():
                yield Damage(part, problem)
        yield from _damaged_videos(connection)
        rows = DamagedRows(
            kept_out=damaged_kept_out(connection),
            changes=damaged_changes(connection),
            transcripts=damaged_transcripts(connection),
            words=damaged_words(connection),
            segments=features.damaged(connections),
        )
        yield from damages_of_rows(rows, on_progress)


def _damaged_videos(connection: StoreConnection) -> Iterator[Damage]:
    last, names = 0, COLUMNS.split(", ")
    while rows := connection.execute(
        f"SELECT number, {COLUMNS}, row_crc32 FROM videos WHERE number > %s ORDER BY number LIMIT 1000",
        (last,),
    ).fetchall():
        wanted = {}
        for number, *row in rows:
            try:
                video_record(row)
            except (IndexDamagedError, ValueError):
                yield Damage("catalog", f"video number {number}: its record is not what was written")
            else:
                values = dict(zip(names, row, strict=False))
                wanted[number] = filtered_values(values["title"], values["uri"], values["metadata"])
        differ = connection.execute(
            "SELECT videos.number FROM videos"
            " JOIN unnest(%s::bigint[], %s::bytea[], %s::bytea[], %s::text[])"
            f" AS wanted (number, {FILTERED_COLUMNS}) ON wanted.number = videos.number"
            " WHERE videos.folded_title IS DISTINCT FROM wanted.folded_title"
            " OR videos.plain_uri IS DISTINCT FROM wanted.plain_uri"
            " OR videos.asked_metadata != wanted.asked_metadata::jsonb",
            (list(wanted), *map(list, zip(*wanted.values(), strict=True))) if wanted else ([], [], [], []),
        ).fetchall()
        for (number,) in differ:
            yield Damage("totals", f"what filters ask of video number {number} is not what it says")
        last = rows[-1][0]


def recount(connection: StoreConnection) -> None:
    """Make the totals again. Words count theirs where they are made again."""
    connection.execute(
        "UPDATE counters SET num_videos = (SELECT count(*) FROM videos),"
        " num_segments = (SELECT count(*) FROM segments)"
    )
