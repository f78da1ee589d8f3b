"""How every benchmark times, checks, prints and writes.

    def main() -> None:
        parser = arguments(__doc__)                           # --short, --json PATH
        choices = parser.parse_args()
        with Report("scoring", choices) as report:            # prints machine and versions
            report.check("equal to the plain function", difference < 1e-5, f"{difference:.1e} apart")
            timings = interleaved({"product": product, "fused": fused, "PyTorch": plain})
            table = report.comparison("One text with 2,000 videos", "product", "fused", ["PyTorch"])
            table.add("32 words", timings)
            report.target("pair / product", timings["fused"].ratio_to(timings["product"]), at_most=1.5)

A failed check ends the program with status 1, after the tables and the JSON. A missed target does not: it
may be the machine's fault. Read ratios: they are medians over rounds in which both were timed side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import machine

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}
MIN_ROUNDS = 3
"""Also where the time for timing is up."""

PAUSE_SECONDS = 0.1
"""Before what is timed: threads of OpenMP of what ran before go on spinning for a while."""


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, in the unit of the table's column."""

    median: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one function. Rounds of functions timed together have the same positions."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the seconds."""
        return statistics.median(self.seconds)

    def spread(self, unit: str = "ms", *, per: float = 1.0) -> Spread:
        """Median and quartiles in a unit of UNITS. per: of one of so many things done in a round."""
        scale = UNITS[unit] / per
        lower, median, upper = (
            statistics.quantiles(self.seconds, n=4, method="inclusive")
            if len(self.seconds) > 1
            else self.seconds * 3
        )
        return Spread(scale * median, scale * lower, scale * upper)

    def ratio_to(self, other: Timing) -> float:
        """Median of the rounds' ratios, which other work on the machine disturbs least."""
        if len(self.seconds) != len(other.seconds):
            return self.median / other.median
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warm_up: int = 1,
    within_seconds: float = 60.0,
    pause_seconds: float = 0.0,
) -> dict[str, Timing]:
    """Time functions in turns, so that what else the machine does falls on all alike.

    Each round begins with another function, for what runs after it may find other things in the caches.

    Args:
        functions: name -> what to time; called without arguments.
        rounds: how often each is timed.
        warm_up: rounds before that, not counted.
        within_seconds: begin no further round after so long, except for the first MIN_ROUNDS.
        pause_seconds: wait before each call; `PAUSE_SECONDS` where functions have threads.
    """
    names = list(functions)
    for _ in range(warm_up):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - begun > within_seconds:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            function = functions[name]
            if pause_seconds:
                time.sleep(pause_seconds)
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


@dataclass
class Table:
    """Rows, printed as they come.

    columns: head -> format of its numbers as in an f-string (`.1f`, `,`), or nothing for text.
    """

    title: str
    columns: dict[str, str]
    rows: list[list[Any]] = field(default_factory=list)

    def head(self) -> str:
        """Title and heads, Markdown."""
        rule = _line("---:" if spec else "---" for spec in self.columns.values())
        return f"{self.title}\n\n{_line(self.columns)}\n{rule}"

    def row(self, values: Sequence[Any]) -> str:
        """One row, Markdown."""
        return _line(_cell(value, spec) for value, spec in zip(values, self.columns.values(), strict=True))

    def add(self, *values: Any) -> None:
        """Add a row and print it; None where there is no value."""
        self.rows.append(list(values))
        print(self.row(values), flush=True)


def _line(cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _cell(value: Any, spec: str) -> str:
    if isinstance(value, dict):
        value = Spread(**value)
    if isinstance(value, Spread):
        return f"{value.median:{spec}} ({value.lower:{spec}}-{value.upper:{spec}})"
    if value is None:
        return "-"
    return str(value) if isinstance(value, str | bool) else format(value, spec)


class Comparison:
    """A table of floor, ours, alternatives and their ratios, one row a case."""

    def __init__(
        self, table: Table, floor: str | None, ours: str, alternatives: Sequence[str], unit: str
    ) -> None:
        self._table, self._floor, self._ours = table, floor, ours
        self._alternatives, self._unit = alternatives, unit

    def add(self, case: str, timings: Mapping[str, Timing], *, per: float = 1.0) -> None:
        """Add what was timed together; an alternative may be missing. per: see `Timing.spread`."""
        floor = [] if self._floor is None else [self._floor]
        names = (*floor, self._ours, *self._alternatives)
        spreads = (timings[name].spread(self._unit, per=per) if name in timings else None for name in names)
        ours = timings[self._ours]
        ratios = (timings[name].ratio_to(ours) if name in timings else None for name in self._alternatives)
        to_floor = [ours.ratio_to(timings[name]) for name in floor]
        self._table.add(case, *spreads, *to_floor, *ratios)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has; doc: the module's."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="small sizes, for `python -m benchmarks`")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write what was found there too")
    return parser


class Report:
    """What one program found. As a context manager it writes the JSON and sets the exit status."""

    def __init__(self, name: str, choices: argparse.Namespace) -> None:
        self.name, self._choices = name, choices
        self._machine = machine.describe()
        self._tables: list[Table] = []
        self._checks: list[dict[str, Any]] = []
        self._targets: list[dict[str, Any]] = []
        self._notes: list[str] = []
        print(machine.in_words(self._machine), flush=True)

    @property
    def short(self) -> bool:
        """Whether small sizes were asked for."""
        return bool(self._choices.short)

    def table(self, title: str, columns: dict[str, str]) -> Table:
        """Begin a table; see `Table`."""
        table = Table(title, columns)
        self._tables.append(table)
        print(f"\n{table.head()}", flush=True)
        return table

    def comparison(
        self, title: str, floor: str | None, ours: str, alternatives: Sequence[str] = (), *, unit: str = "ms"
    ) -> Comparison:
        """Begin a table of times, their names as in the timings that are added to it.

        Args:
            title: what is compared.
            floor: what nothing of the kind can be faster than; None where that is not known.
            ours: what this repository does.
            alternatives: others that do the same.
            unit: one of UNITS.
        """
        names = (*([] if floor is None else [floor]), ours, *alternatives)
        times = {f"{name}, {unit}": ".2f" for name in names}
        to_floor = {} if floor is None else {"ours / floor": ".2f"}
        ratios = {f"{name} / ours": ".2f" for name in alternatives}
        table = self.table(title, {"case": "", **times, **to_floor, **ratios})
        return Comparison(table, floor, ours, alternatives, unit)

    def check(self, what: str, right: bool, found: str = "") -> None:
        """Whether what was timed was also right. what: the promise, a sentence. found: the figure."""
        self._checks.append({"what": what, "right": bool(right), "found": found})
        print(f"{'right' if right else 'WRONG'}: {what}{f' ({found})' if found else ''}", flush=True)

    def target(
        self, what: str, value: float, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """A figure and the bound that it is held to."""
        kept = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        self._targets.append(
            {"what": what, "value": value, "at_most": at_most, "at_least": at_least, "kept": bool(kept)}
        )
        bounds = (
            f"{word} {bound:g}"
            for word, bound in (("at most", at_most), ("at least", at_least))
            if bound is not None
        )
        print(f"{'kept' if kept else 'MISSED'}: {what}: {value:.3g}, {' and '.join(bounds)}", flush=True)

    def note(self, text: str) -> None:
        """What a reader of the tables has to know, such as what was left out and why."""
        self._notes.append(text)
        print(text, flush=True)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "benchmark": self.name,
            "command": f"python -m benchmarks.{self.name} {' '.join(sys.argv[1:])}".strip(),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": self._machine,
            "tables": [asdict(table) for table in self._tables],
            "checks": self._checks,
            "targets": self._targets,
            "notes": self._notes,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        if self._choices.json is not None:
            self._choices.json.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.as_json(), indent=1, default=_plain)
            self._choices.json.write_text(text + "\n", encoding="utf-8")
        if not all(check["right"] for check in self._checks):
            sys.exit(1)


def _plain(value: Any) -> Any:
    """Spreads, and numbers of numpy, for JSON."""
    if isinstance(value, Path):
        return str(value)
    return value.item()
