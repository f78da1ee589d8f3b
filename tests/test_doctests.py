"""The examples in docstrings and README run, each in a folder of its own with a video to try them on."""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest

from training.demo_corpus.corpus import write_corpus

ROOT = Path(__file__).resolve().parents[1]
WITH_EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("model", "indexer", "training", "service", "xclip_search")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.fixture(scope="session")
def drawn_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_corpus(folder, 1, seed=1)
    return next(folder.rglob("*.mp4"))


@pytest.fixture
def folder(tmp_path: Path, drawn_clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with videos/clip.mp4."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    shutil.copy(drawn_clip, tmp_path / "videos" / "clip.mp4")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


def test_the_entry_points_have_an_example() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {
        test.name
        for name in WITH_EXAMPLES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    wanted = {
        "indexer.index.Index",
        "model.scoring.ScoreHead",
        "model.tokenization.Tokenizer",
        "model.xclip.XClip",
        "xclip_search",
        "xclip_search.client.Client",
    }
    assert wanted <= found


@pytest.mark.usefixtures("folder")
def test_the_python_of_the_readme_runs_and_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(example.splitlines()) <= 6
    exec(compile(example, "README.md", "exec"), {})
    assert " clip " in capsys.readouterr().out
