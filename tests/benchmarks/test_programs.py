"""Programs that documents and comments name exist."""

import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("text", ["python -m benchmarks.absent", "`benchmarks/media/absent.py`"])
def test_the_pattern_finds_programs(text):
    assert PROGRAM.search(text)
