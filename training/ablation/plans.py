"""Which runs a grid has: every variant with every seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.ablation.folders import Folders
from training.ablation.variants import Variant
from training.errors import RunError


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

    Raises RunError, naming the file, where one cannot be read or is another run's.
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
