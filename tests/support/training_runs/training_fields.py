"""The table of config fields in docs/training.md, made from the dataclasses.

python -m tests.support.training_runs.training_fields    prints it
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

from training.config import SAME_RESULT, SAME_UP_TO_ROUNDING, TrainingConfig, information

KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}
BOUNDS = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}


def values_of(annotation: object) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return values_of(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is tuple:
        return f"list of {values_of(get_args(annotation)[0])}"
    if origin in (Union, UnionType):
        return " or ".join(values_of(part) for part in get_args(annotation) if part is not NoneType)
    return KINDS.get(annotation, "path")  # type: ignore[call-overload]


def bounds_of(metadata: list[object]) -> str:
    found = (
        f"{word} {getattr(mark, name):g}"
        for mark in metadata
        for name, word in BOUNDS.items()
        if getattr(mark, name, 2**63) != 2**63
    )
    return " ".join(found)


def shown(value: object) -> str:
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def config_table() -> str:
    lines = []
    for section, kind in get_type_hints(TrainingConfig).items():
        lines += [
            f"### `[{section}]`",
            "",
            "| field | values | default | meaning |",
            "| --- | --- | --- | --- |",
        ]
        for field in fields(kind):
            facts = information(kind, field.name)
            values = " ".join(
                part for part in (values_of(facts.annotation), bounds_of(facts.metadata)) if part
            )
            default = "needed" if field.default is MISSING and facts.is_required() else shown(facts.default)
            free = " (*)" if {SAME_RESULT, SAME_UP_TO_ROUNDING} & set(map(str, facts.metadata)) else ""
            lines.append(f"| `{field.name}`{free} | {values} | {default} | {facts.description} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(config_table())
