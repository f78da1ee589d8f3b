"""What is compared: variants, the tables that they are in, and the runs of a grid.

A grid has every variant with every seed; a variant of several tables is trained once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from types import MappingProxyType
from typing import Any

from model.score_names import SCORE_NAMES
from training.ablation.paper_tables import (
    AGGREGATIONS,
    GRANULARITIES,
    SCORERS,
    TEMPERATURES,
    TEMPORAL_ENCODER,
    PaperTable,
)
from training.ablation.settings import Folders
from training.errors import ConfigError, RunError

FULL = "xclip"
"""The variant that every table holds: all four scores, AOSM at temperature 0.01, temporal encoder."""

ABBREVIATIONS = MappingProxyType(dict(zip(SCORE_NAMES, ("VS", "VW", "SF", "FW"), strict=True)))


@dataclass(frozen=True)
class Variant:
    """A model to train and evaluate.

    Attributes:
        name: What its files are called.
        choices: Fields of `training.config.ModelChoices` that differ from the full model's.
        trained: False for a model that is evaluated as it starts.
    """

    name: str
    choices: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Attributes:
        rows: Variant and its label, in order.
        paper: The paper's that it answers to.
    """

    name: str
    title: str
    rows: tuple[tuple[Variant, str], ...]
    paper: PaperTable

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants of the rows."""
        return tuple(variant for variant, _ in self.rows)


def _score_subsets() -> tuple[tuple[Variant, str], ...]:
    """All 15, from single scores up, named as `vs+sf`; that of all four is the full model."""
    rows = []
    for size in range(1, len(SCORE_NAMES) + 1):
        for names in combinations(SCORE_NAMES, size):
            if size == len(SCORE_NAMES):
                rows.append((_FULL, f"all four ({FULL})"))
            else:
                label = " + ".join(ABBREVIATIONS[one] for one in names)
                rows.append((Variant(label.replace(" ", "").lower(), {"score_names": names}), label))
    return tuple(rows)


_FULL = Variant(FULL)

TABLES: Mapping[str, Table] = MappingProxyType(
    {
        table.name: table
        for table in (
            Table(
                "scorers",
                "Scorers",
                (
                    (Variant("clip", {"scorer": "clip"}, trained=False), "clip (zero-shot)"),
                    (Variant("clip4clip-meanP", {"scorer": "clip4clip-meanP"}), "clip4clip-meanP"),
                    (
                        Variant("clip4clip-seqTransf", {"scorer": "clip4clip-seqTransf"}),
                        "clip4clip-seqTransf",
                    ),
                    (Variant("filip", {"scorer": "filip"}), "filip"),
                    (Variant("taco", {"scorer": "taco"}), "taco"),
                    (_FULL, FULL),
                ),
                SCORERS,
            ),
            Table(
                "scores",
                "Subsets of the four scores",
                _score_subsets(),
                GRANULARITIES,
            ),
            Table(
                "aggregations",
                "Aggregation of the similarities",
                (
                    *(
                        (Variant(name, {"aggregation": name}), name)
                        for name in ("max-max", "mean-mean", "mean-max", "max-mean")
                    ),
                    (_FULL, f"attention ({FULL})"),
                ),
                AGGREGATIONS,
            ),
            Table(
                "temperatures",
                "Temperature of the attention",
                (
                    (Variant("temperature-1", {"temperature": 1.0}), "1"),
                    (Variant("temperature-0.1", {"temperature": 0.1}), "0.1"),
                    (_FULL, f"0.01 ({FULL})"),
                    (Variant("temperature-0.001", {"temperature": 0.001}), "0.001"),
                ),
                TEMPERATURES,
            ),
            Table(
                "temporal",
                "Temporal encoder",
                (
                    (Variant("no-temporal-encoder", {"temporal_layers": 0}), "off"),
                    (_FULL, f"on ({FULL})"),
                ),
                TEMPORAL_ENCODER,
            ),
        )
    }
)


def select_tables(names: Sequence[str] | None) -> tuple[Table, ...]:
    """The tables of these names in the order of `TABLES`; all where None.

    Raises:
        ConfigError: An unknown name, or none at all.
    """
    if names is None:
        return tuple(TABLES.values())
    if unknown := set(names) - TABLES.keys():
        raise ConfigError(f"no such table: {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if not names:
        raise ConfigError(f"no table is named; there are {', '.join(TABLES)}")
    return tuple(table for table in TABLES.values() if table.name in names)


def distinct_variants(tables: Sequence[Table]) -> tuple[Variant, ...]:
    """Every variant of the tables once, in the order in which they first stand there."""
    return tuple({variant.name: variant for table in tables for variant in table.variants}.values())


@dataclass(frozen=True)
class RunPlan:
    """A variant and a seed."""

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.variant.name}-seed-{self.seed}"


def plan_runs(variants: Sequence[Variant], num_seeds: int) -> tuple[RunPlan, ...]:
    """All variants with seed 0, then all with seed 1, and so on; one that is not trained needs one seed."""
    return tuple(
        RunPlan(variant, seed)
        for seed in range(num_seeds)
        for variant in variants
        if variant.trained or seed == 0
    )


def read_records(plans: Sequence[RunPlan], folders: Folders) -> list[dict[str, Any]]:
    """The records of those runs that are done, in the order of the plans.

    Raises:
        RunError: One cannot be read or is another run's; the message names the file.
    """
    records = []
    for plan in plans:
        path = folders.record(plan.name)
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise RunError(f"{path} cannot be read ({error}); remove it, and the run is done again") from None
        if (record.get("variant"), record.get("seed")) != (plan.variant.name, plan.seed):
            raise RunError(f"{path} is not the record of {plan.name}")
        records.append(record)
    return records
