"""Programs that documents and comments name exist."""

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import PROGRAMS
from benchmarks.pages.tables import BLOCK

ROOT = Path(__file__).parent.parent.parent
PROGRAM = re.compile(r"(?<![\w/])(?:benchmarks/([\w/]+)\.py|python(?:3)? -m benchmarks((?:\.\w+)*))")


def texts():
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.py", "Makefile"):
        yield from ROOT.glob(pattern)
    for package in ("model", "indexer", "service", "training", "xclip_search", "tests"):
        yield from (path for path in (ROOT / package).rglob("*.py") if path != Path(__file__))


def test_every_program_that_is_named_exists():
    named = {
        (path.relative_to(ROOT), (found[1] or found[2].lstrip(".").replace(".", "/")) or "__main__")
        for path in texts()
        for found in PROGRAM.finditer(path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    places = ROOT / "benchmarks"
    missing = {
        f"{path}: {name}"
        for path, name in named
        if not (places / f"{name}.py").exists() and not (places / name / "__main__.py").exists()
    }
    assert not missing


def test_no_document_names_a_program_by_a_path_that_cannot_be_run():
    # `python benchmarks/x.py` does not find what the programs share.
    wrong = [path for path in texts() if re.search(r"python3? benchmarks/", path.read_text(encoding="utf-8"))]
    assert not wrong


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_make_bench_runs_reports_under_its_own_name(name):
    place = ROOT / "benchmarks" / name.replace(".", "/")
    program = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__main__.py"
    assert f'Report("{name}"' in program.read_text(encoding="utf-8")


def test_the_page_is_filled_by_what_make_bench_runs():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert {block["name"] for block in BLOCK.finditer(page)} == set(PROGRAMS)


@pytest.mark.parametrize("text", ["python -m benchmarks.absent", "`benchmarks/media/absent.py`"])
def test_the_pattern_finds_programs(text):
    assert PROGRAM.search(text)
