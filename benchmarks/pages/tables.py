"""Fill documents with what benchmarks found: no figure is copied by hand.

    python -m benchmarks.pages.tables [--folder runs/benchmarks] [DOCUMENT ...]

In a document stands

    <!-- benchmark: start -->
    ...
    <!-- end -->

and what is between is replaced by the tables, checks, targets and notes of `start.json`, with the command and
the machine. `<!-- benchmark: alternatives / Encoding -->` takes only tables whose titles begin so.
A block whose JSON is not there stays as it is, and is named.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.machine import REPOSITORY
from benchmarks.report import Table

DOCUMENTS = (REPOSITORY / "docs" / "performance.md",)
BLOCK = re.compile(
    r"(?P<begin><!-- benchmark: (?P<name>[\w.]+)(?: / (?P<title>[^>]+?))? -->\n).*?(?P<end><!-- end -->)",
    re.DOTALL,
)


def fill(text: str, folder: Path) -> tuple[str, list[str]]:
    """A document with its blocks filled, and the names of those for which there is no JSON."""
    absent: list[str] = []

    def filled(block: re.Match[str]) -> str:
        path = folder / f"{block['name']}.json"
        if not path.exists():
            absent.append(block["name"])
            return block[0]
        found = json.loads(path.read_text(encoding="utf-8"))
        return f"{block['begin']}\n{rendered(found, block['title'])}\n\n{block['end']}"

    return BLOCK.sub(filled, text), absent


def rendered(found: dict[str, Any], title: str | None = None) -> str:
    """Markdown of what a benchmark wrote. title: only tables whose titles begin so."""
    tables = [Table(**table) for table in found["tables"]]
    if title is not None:
        return "\n\n".join(markdown(table) for table in tables if table.title.startswith(title))
    facts = machine.in_words(found["machine"]).replace("\n", "; ")
    parts = [f"`{found['command']}`, {found['ended'][:10]}. {facts}.", *map(markdown, tables)]
    lines = [
        f"- {_mark(check['right'], 'wrong:')}{check['what']}: {check['found'] or 'so'}"
        for check in found["checks"]
    ]
    lines += [
        f"- {_mark(one['kept'], 'missed:')}{one['what']}: {one['value']:.3g}{_bounds(one)}"
        for one in found["targets"]
    ]
    lines += [f"- {note}" for note in found["notes"]]
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def markdown(table: Table) -> str:
    """Title, head and rows."""
    return "\n".join([table.head(), *map(table.row, table.rows)])


def _mark(good: bool, otherwise: str) -> str:
    return "" if good else f"**{otherwise}** "


def _bounds(target: dict[str, Any]) -> str:
    bounds = (("at most", target["at_most"]), ("at least", target["at_least"]))
    return "".join(f", {word} {bound:g} is aimed at" for word, bound in bounds if bound is not None)


def main() -> None:
    """Fill the documents; status 1 where a block could not be filled."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("documents", nargs="*", type=Path, default=list(DOCUMENTS))
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "benchmarks", help="of the JSON")
    choices = parser.parse_args()
    missing = []
    for document in choices.documents:
        text, absent = fill(document.read_text(encoding="utf-8"), choices.folder)
        document.write_text(text, encoding="utf-8")
        missing += absent
    if missing:
        sys.exit(f"not filled, for there is no JSON of: {', '.join(missing)}")


if __name__ == "__main__":
    main()
