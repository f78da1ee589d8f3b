"""How many jobs failed, and why: for whoever watches over an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from indexer.job_queue import UNFETCHED

if TYPE_CHECKING:
    from indexer.catalog import Catalog


@dataclass(frozen=True)
class FailedJobs:
    """Jobs that failed for one reason. is_unfetched: their file never came here."""

    reason: str
    is_unfetched: bool
    count: int


def count_failed_jobs(catalog: Catalog) -> list[FailedJobs]:
    """All failed jobs that are not forgotten yet, by reason."""
    with catalog.connections.reading() as connection:
        rows = connection.execute(
            f"SELECT coalesce(reason, ''), {UNFETCHED}, count(*) FROM jobs"
            " WHERE state = 'failed' GROUP BY 1, 2"
        ).fetchall()
    return [FailedJobs(reason, bool(unfetched), count) for reason, unfetched, count in rows]
