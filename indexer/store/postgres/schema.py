"""The tables of an index in PostgreSQL, and how its schema comes to be and is brought to a newer format.

Texts that are compared or sorted are COLLATE "C": by code points, whatever the language of the server, and
the same after an upgrade of its operating system. Features are bytea in rows that fit into pages, not
compressed, which they would not be. Metadata is text, which is the truth; what filters ask is made from it
(`indexer.store.postgres.filters`).
"""

from __future__ import annotations

from typing import Final

from indexer.errors import IndexExistsError, IndexNotFoundError, IndexVersionError
from indexer.store.checksums import facts_of_rows, rows_of_facts
from indexer.store.postgres.address import PostgresAddress
from indexer.store.postgres.connections import Connections, StoreConnection
from indexer.store.postgres.generations import POINTER_TABLE, write_successor
from indexer.store.records import IndexFacts, Successor

_FIRST: Final = """
CREATE TABLE facts (
    name text COLLATE "C" PRIMARY KEY,
    value text NOT NULL
);

-- One row, which whoever changes videos locks first. Of the last change, and of what numbers were given.
CREATE TABLE counters (
    only_row integer PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    sequence bigint NOT NULL DEFAULT 0,
    token text NOT NULL DEFAULT '',
    last_video bigint NOT NULL DEFAULT 0,
    last_segment bigint NOT NULL DEFAULT 0,
    last_job bigint NOT NULL DEFAULT 0,
    num_videos bigint NOT NULL DEFAULT 0,
    num_segments bigint NOT NULL DEFAULT 0,
    num_word_rows bigint NOT NULL DEFAULT 0,
    num_terms bigint NOT NULL DEFAULT 0,
    successor_generation integer,
    successor_epoch integer,
    successor_crc32 bigint
) WITH (fillfactor = 10);
INSERT INTO counters DEFAULT VALUES;

CREATE TABLE videos (
    number bigint PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    content_sha256 text COLLATE "C" NOT NULL UNIQUE CHECK (length(content_sha256) = 64),
    uri text COLLATE "C",
    title text COLLATE "C",
    metadata text NOT NULL,
    duration_seconds double precision NOT NULL,
    width bigint NOT NULL,
    height bigint NOT NULL,
    frame_rate double precision NOT NULL,
    codec text NOT NULL,
    size_bytes bigint NOT NULL,
    partial smallint NOT NULL CHECK (partial IN (0, 1)),
    fraction_read double precision NOT NULL,
    trusted smallint NOT NULL CHECK (trusted IN (0, 1)),
    added_at double precision NOT NULL,
    sequence bigint NOT NULL UNIQUE,
    media_start_seconds double precision NOT NULL,
    recorded_at double precision,
    missing_since double precision,
    row_crc32 bigint NOT NULL,
    -- For filters alone.
    folded_title bytea,
    plain_uri bytea,
    asked_metadata jsonb NOT NULL
);
CREATE INDEX videos_by_uri ON videos (uri, number);
CREATE INDEX videos_by_size ON videos (size_bytes);
CREATE INDEX videos_by_recorded_at ON videos (recorded_at, sequence);

-- An id is never used twice, so an index that still holds a deleted one can only miss.
CREATE TABLE segments (
    id bigint PRIMARY KEY,
    video_number bigint NOT NULL REFERENCES videos (number) ON DELETE CASCADE,
    start_seconds double precision NOT NULL,
    end_seconds double precision NOT NULL,
    num_frames integer NOT NULL CHECK (num_frames > 0),
    frame_times bytea NOT NULL,
    row_crc32 bigint NOT NULL
);
CREATE INDEX segments_by_video ON segments (video_number, id);

-- What a model made of a segment, with checksums, as one value: `indexer.store.postgres.features`. In parts
-- that fit into pages, so that nothing is stored outside of its row and has to be looked for there.
CREATE TABLE features (
    segment_id bigint NOT NULL REFERENCES segments (id) ON DELETE CASCADE,
    part smallint NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (segment_id, part)
);
ALTER TABLE features ALTER COLUMN bytes SET STORAGE PLAIN;

CREATE TABLE changes (
    sequence bigint PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('add', 'update', 'delete')),
    video_id text NOT NULL,
    segment_ids text NOT NULL,
    changed_at double precision NOT NULL,
    token text NOT NULL,
    row_crc32 bigint NOT NULL
);

CREATE TABLE jobs (
    number bigint PRIMARY KEY,
    id text COLLATE "C" NOT NULL UNIQUE,
    state text NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed')),
    video_id text COLLATE "C" NOT NULL,
    content_sha256 text COLLATE "C",
    source_path text COLLATE "C" NOT NULL,
    uri text COLLATE "C",
    title text,
    metadata text NOT NULL,
    delete_source smallint NOT NULL CHECK (delete_source IN (0, 1)),
    reason text,
    failure text,
    attempts bigint NOT NULL DEFAULT 0,
    worker_name text,
    lease_expires_at double precision,
    created_at double precision NOT NULL,
    started_at double precision,
    finished_at double precision,
    row_crc32 bigint NOT NULL,
    CHECK ((state = 'running') = (lease_expires_at IS NOT NULL))
);
CREATE INDEX jobs_by_state ON jobs (state, attempts, number);
CREATE INDEX jobs_by_source ON jobs (source_path) WHERE state IN ('done', 'failed');
CREATE UNIQUE INDEX one_open_job_for_a_video ON jobs (video_id) WHERE state IN ('queued', 'running');

CREATE TABLE files (
    uri text COLLATE "C" PRIMARY KEY,
    size_bytes bigint NOT NULL,
    modified_ns bigint NOT NULL,
    content_sha256 text COLLATE "C" NOT NULL,
    failure text,
    version text,
    row_crc32 bigint NOT NULL
);
CREATE INDEX files_by_content ON files (content_sha256);

CREATE TABLE kept_out (
    content_sha256 text COLLATE "C" PRIMARY KEY,
    video_id text COLLATE "C" NOT NULL,
    title text,
    uri text,
    size_bytes bigint NOT NULL,
    kept_out_at double precision NOT NULL,
    row_crc32 bigint NOT NULL
);
CREATE INDEX kept_out_by_size ON kept_out (size_bytes);

CREATE TABLE transcripts (
    video_number bigint NOT NULL REFERENCES videos (number) ON DELETE CASCADE,
    track text COLLATE "C" NOT NULL,
    uri text,
    size_bytes bigint,
    modified_ns bigint,
    lines bytea NOT NULL,
    row_crc32 bigint NOT NULL,
    PRIMARY KEY (video_number, track)
);
ALTER TABLE transcripts ALTER COLUMN lines SET STORAGE EXTERNAL;

CREATE TABLE words (
    row_id bigint PRIMARY KEY,
    -- Each term between spaces, and after title and metadata a line's end, which no words that follow one
    -- another go over.
    terms text COLLATE "C" NOT NULL,
    num_terms integer NOT NULL,
    start_seconds double precision,
    lexemes tsvector NOT NULL
);
CREATE INDEX words_by_lexeme ON words USING gin (lexemes) WITH (fastupdate = off);
"""

MIGRATIONS: Final = (_FIRST,)
"""What brings a schema of the format of each position to the next one; an empty schema is of format 0."""

FORMAT: Final = len(MIGRATIONS)

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('xclip ' || %s, 0))"


def create_schema(
    address: PostgresAddress, connections: Connections, facts: IndexFacts, successor_of: int | None
) -> None:
    """Make an empty index; it appears whole or not at all.

    Args:
        address: of the index.
        connections: to the generation that is made.
        facts: what the index shall be.
        successor_of: the generation that stays the current one until this one supersedes it; None where there
            is no other.

    Raises:
        IndexExistsError: one is there.
        IndexStorageError: the server does not allow it.
    """
    with connections.reading() as connection, connection.transaction():
        connection.execute(_LOCK, (connections.schema,))
        if is_taken(connection, connections.schema):
            raise IndexExistsError(f"an index is already in {address.name}")
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {connections.schema}")
        _migrate(connection)
        (created_at,) = connection.execute(
            "SELECT extract(epoch FROM clock_timestamp())::float8"
        ).fetchone() or (0.0,)
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO facts VALUES (%s, %s)", rows_of_facts(facts, created_at).items())
        if successor_of is not None:
            write_successor(connection, Successor(successor_of, epoch=0))


def read_facts(connections: Connections, where: str) -> tuple[IndexFacts, float]:
    """What the index is, and when it was made, in seconds since 1970. One of an older format is brought to
    ours first.

    Raises:
        IndexNotFoundError: there is no index.
        IndexVersionError: it is of a format that this version does not read.
        IndexDamagedError: the facts are not what was written.
    """
    with connections.reading() as connection:
        if not schema_exists(connection, connections.schema):
            raise IndexNotFoundError(f"there is no index in schema {connections.schema} of {where}")
        found = _format(connection)
    if found < FORMAT and not connections.is_read_only:
        with connections.reading() as connection, connection.transaction():
            connection.execute(_LOCK, (connections.schema,))
            _migrate(connection)
            found = _format(connection)
    if found != FORMAT:
        raise IndexVersionError(
            f"the index in {where} is of format {found}, this version of xclip-search reads format {FORMAT}"
        )
    return facts_of_rows(dict(connections.rows("SELECT name, value FROM facts")), where)


def is_taken(connection: StoreConnection, schema: str) -> bool:
    """Whether a schema holds an index of ours, or names a generation that holds it."""
    row = connection.execute(
        "SELECT to_regclass(%s) IS NOT NULL OR to_regclass(%s) IS NOT NULL",
        (f"{schema}.migrations", f"{schema}.{POINTER_TABLE}"),
    ).fetchone()
    return row is not None and bool(row[0])


def schema_exists(connection: StoreConnection, schema: str) -> bool:
    """Whether there is an index of ours in a schema."""
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{schema}.migrations",)).fetchone()
    return row is not None and bool(row[0])


def _migrate(connection: StoreConnection) -> None:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations"
        " (format integer PRIMARY KEY, migrated_at timestamptz NOT NULL DEFAULT now())"
    )
    for number in range(_format(connection), FORMAT):
        connection.execute(MIGRATIONS[number].encode())
        connection.execute("INSERT INTO migrations (format) VALUES (%s)", (number + 1,))


def _format(connection: StoreConnection) -> int:
    row = connection.execute("SELECT coalesce(max(format), 0) FROM migrations").fetchone()
    return int(row[0]) if row is not None else 0
