"""The examples in docstrings run, each module's in a folder of its own with a video to try them on."""

from __future__ import annotations

import doctest
import importlib
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


def test_there_are_examples_at_the_entry_points() -> None:
    assert {"indexer.index", "model.xclip", "xclip_search"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(
    name: str, drawn_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    shutil.copy(drawn_clip, tmp_path / "videos" / "clip.mp4")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed
