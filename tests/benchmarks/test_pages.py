"""Documents are filled from what benchmarks wrote, and only where something was written."""

import json

from benchmarks.pages.plots import bars, draw
from benchmarks.pages.tables import fill
from benchmarks.report import Report, Timing, arguments

TEXT = "Before.\n<!-- benchmark: example -->\nold\n<!-- end -->\nAfter.\n"


def written(folder):
    choices = arguments("").parse_args(["--json", str(folder / "example.json")])
    with Report("example", choices) as report:
        table = report.comparison("Scoring one text", "product", "ours", ["PyTorch"])
        table.add("8 words", {"product": Timing((0.001,) * 3), "ours": Timing((0.002,) * 3)})
        report.table("Sizes", {"videos": ","}).add(10_000)
        report.check("equal", True, "0 apart")
        report.target("ours / floor", 2.0, at_most=1.5)
    return json.loads((folder / "example.json").read_text())


def test_a_block_is_filled_with_tables_checks_and_targets_and_filling_again_changes_nothing(tmp_path):
    written(tmp_path)
    text, absent = fill(TEXT, tmp_path)
    assert absent == []
    assert text.startswith("Before.\n<!-- benchmark: example -->\n") and text.endswith(
        "<!-- end -->\nAfter.\n"
    )
    assert "| 8 words | 1.00 (1.00-1.00) | 2.00 (2.00-2.00) | - | 2.00 | - |" in text
    assert "| 10,000 |" in text and "- equal: 0 apart" in text and "old" not in text
    assert "- **missed:** ours / floor: 2, at most 1.5 is aimed at" in text
    assert "`python -m benchmarks." in text
    assert fill(text, tmp_path) == (text, [])


def test_a_block_may_take_some_of_the_tables(tmp_path):
    written(tmp_path)
    text, _ = fill("<!-- benchmark: example / Sizes -->\n<!-- end -->", tmp_path)
    assert "10,000" in text and "8 words" not in text


def test_a_block_without_figures_stays_and_is_named(tmp_path):
    assert fill(TEXT, tmp_path) == (TEXT, ["example"])


def test_a_table_is_drawn(tmp_path):
    table = written(tmp_path)["tables"][0]
    assert [name for name, _ in bars(table)] == ["8 words: product, ms", "8 words: ours, ms"]
    draw(table, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().startswith("<?xml")
