"""Jobs and idempotency keys from one generation of an index to the next."""

from __future__ import annotations

import sqlite3
from typing import Final

_TABLES: Final = ("jobs", "idempotency_keys")


def carry_jobs(source: sqlite3.Connection, target: sqlite3.Connection) -> int:
    """Replace the jobs and keys of `target` by those of `source`, rows as they are; returns how many jobs.

    Within the callers' transactions. Running jobs are queued there: their workers can no longer end them. The
    attempt counts, so that what such a worker still does is told apart from what the next one does.
    """
    for table in reversed(_TABLES):
        target.execute(f"DELETE FROM {table}")
    for table in _TABLES:
        names = [name for (name,) in source.execute("SELECT name FROM pragma_table_info(?)", (table,))]
        columns, marks = ", ".join(names), ", ".join("?" * len(names))
        target.executemany(
            f"INSERT INTO {table} ({columns}) VALUES ({marks})",
            source.execute(f"SELECT {columns} FROM {table}"),
        )
    target.execute(
        "UPDATE jobs SET state = 'queued', worker_name = NULL, started_at = NULL, lease_expires_at = NULL"
        " WHERE state = 'running'"
    )
    # So that no number is given twice though the jobs that had the last ones are forgotten.
    target.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
    target.executemany(
        "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
        source.execute("SELECT name, seq FROM sqlite_sequence WHERE name = 'jobs'"),
    )
    (num_jobs,) = target.execute("SELECT count(*) FROM jobs").fetchone()
    return int(num_jobs)
