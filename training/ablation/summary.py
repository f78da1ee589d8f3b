"""Runs to rows: mean and sample standard deviation over seeds, for every table, set and direction."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.ablation.variants import Table

METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "mean_rank")
DIRECTIONS = ("text_to_video", "video_to_text")

Record = Mapping[str, Any]
"""What one variant with one seed left behind, as `training.ablation.runner` writes it."""


@dataclass(frozen=True)
class Spread:
    """mean of `num_seeds` values; deviation: their sample standard deviation, None for one value."""

    mean: float
    deviation: float | None
    num_seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n - 1) of at least one value."""
    return Spread(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
    )


@dataclass(frozen=True)
class SummaryRow:
    """A variant on one held-out set. figures: direction, then metric; empty where no run of it is there."""

    variant: str
    label: str
    num_seeds: int
    figures: Mapping[str, Mapping[str, Spread]]


def summarize(table: Table, held_out_set: str, records: Sequence[Record]) -> tuple[SummaryRow, ...]:
    """The rows of a table for one of the held-out sets, from all runs' records."""
    rows = []
    for variant, label in table.rows:
        results = [one["sets"][held_out_set] for one in records if one["variant"] == variant.name]
        figures = {
            direction: {
                metric: spread([float(result[direction][metric]) for result in results]) for metric in METRICS
            }
            for direction in (DIRECTIONS if results else ())
        }
        rows.append(SummaryRow(variant.name, label, len(results), figures))
    return tuple(rows)


def summary_as_json(table: Table, held_out_sets: Sequence[str], records: Sequence[Record]) -> dict[str, Any]:
    """A table as plain values: ours for each held-out set, and the paper's."""
    return {
        "name": table.name,
        "title": table.title,
        "sets": {name: [asdict(row) for row in summarize(table, name, records)] for name in held_out_sets},
        "paper": {
            "title": table.paper.title,
            "source": table.paper.source,
            "note": table.paper.note,
            "rows": {name: asdict(row) for name, row in table.paper.rows.items()},
        },
    }
