"""Draw the pictures of docs/performance.md from what benchmarks wrote.

    python -m benchmarks.pages.plots [--folder runs/benchmarks] [--output docs/images]

One bar for each row and time of a table, with the quartiles; see PICTURES. matplotlib comes with the extra
`train`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import REPOSITORY

PICTURES = {
    "performance-start.svg": ("start", "Whole processes"),
    "performance-search.svg": ("alternatives", "Searching"),
    "performance-encode.svg": ("alternatives", "Encoding"),
    "performance-rerank.svg": ("alternatives", "Scoring"),
}
"""File -> whose JSON, and how the title of the table begins."""


def bars(table: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Every time in a table that has quartiles, with what it is of."""
    columns = zip(*table["rows"], strict=True)
    several = sum(any(isinstance(value, dict) for value in column) for column in columns) > 1
    return [
        (f"{row[0]}: {head}" if several else str(row[0]), value)
        for row in table["rows"]
        for head, value in zip(table["columns"], row, strict=True)
        if isinstance(value, dict)
    ]


def draw(table: dict[str, Any], path: Path) -> None:
    """Horizontal bars on a logarithmic axis, the first row on top."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    drawn = bars(table)[::-1]
    figure = Figure(figsize=(8, 0.9 + 0.3 * len(drawn)), layout="constrained")
    axes = figure.add_subplot()
    medians = [value["median"] for _, value in drawn]
    spread = [
        [value["median"] - value["lower"] for _, value in drawn],
        [value["upper"] - value["median"] for _, value in drawn],
    ]
    colours = ["#1f6feb" if "ours" in name or "xclip" in name else "#8c959f" for name, _ in drawn]
    axes.barh([name for name, _ in drawn], medians, xerr=spread, color=colours, height=0.7)
    axes.set_xscale("log")
    units = [head.rpartition(" ")[2] for head in table["columns"]]
    unit = "ms" if "ms" in units else "s"
    axes.set_xlabel(f"{unit}, median and quartiles; less is better")
    axes.set_title(table["title"], fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    # Letters as letters, and the same file for the same figures.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Draw all of which there is JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "benchmarks", help="of the JSON")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "images")
    choices = parser.parse_args()
    missing = []
    for name, (benchmark, title) in PICTURES.items():
        path = choices.folder / f"{benchmark}.json"
        tables = json.loads(path.read_text(encoding="utf-8"))["tables"] if path.exists() else []
        table = next((one for one in tables if one["title"].startswith(title) and bars(one)), None)
        if table is None:
            missing.append(f"{name} (a table {title!r} of {benchmark})")
        else:
            draw(table, choices.output / name)
    if missing:
        sys.exit(f"not drawn: {', '.join(missing)}")


if __name__ == "__main__":
    main()
