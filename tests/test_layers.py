"""The arrows of the house: who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "model": set(),
    "indexer": {"model"},
    "training": {"indexer", "model"},
    "service": {"indexer", "model"},
    "xclip_search": {"service", "training", "indexer", "model"},
}
HEAVY = {"torch", "open_clip", "faiss", "decord", "av", "fastapi", "uvicorn", "pydantic"}
FORBIDDEN_NAMES = {"utils", "util", "common", "base", "core", "manager", "helpers", "misc"}


def imported_packages(path: Path) -> Iterator[str]:
    """Top-level package of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(room):
    ours = set(MAY_IMPORT) | {"tests", "benchmarks", "xclip_search"}
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        wrong = (set(imported_packages(path)) & ours) - MAY_IMPORT[room] - {room}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_is_typed_says_what_it_is_for_and_holds_no_drawer_for_everything(room):
    assert (ROOT / room / "py.typed").exists()
    assert (
        len((ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or "").splitlines()) >= 3
    )
    for path in (ROOT / room).rglob("*.py"):
        assert path.stem not in FORBIDDEN_NAMES, path


@pytest.mark.parametrize("module", ["model", "indexer", "training", "service", "xclip_search"])
def test_importing_a_room_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.split() == []


@pytest.mark.parametrize("room", ["model", "indexer", "training"])
def test_only_the_service_reads_the_environment(room):
    for path in (ROOT / room).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "os.environ" not in text and "getenv" not in text, path


def test_nothing_unpickles_and_torch_load_reads_weights_only():
    for room in MAY_IMPORT:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    assert name not in {"pickle.load", "pickle.loads", "eval", "exec"}, path
                    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                    if name == "torch.load":
                        assert keywords.get("weights_only") == "True", path
                    if name in {"np.load", "numpy.load"}:
                        assert keywords.get("allow_pickle", "False") == "False", path
