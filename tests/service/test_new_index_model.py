"""The model of a new index: named once for servers and jobs, and no hindrance when the index has another."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from indexer.errors import FingerprintMismatchError, IndexNotFoundError
from indexer.ingest.encoding import index_fingerprint
from indexer.store.sqlite.catalog import Catalog
from model import XClip, XClipConfig
from service.loading import open_index
from service.settings import Settings
from tests.support.video_files import write_coloured_video
from xclip_search.index import app


@pytest.fixture
def other_model(tmp_path: Path) -> Path:
    import torch

    torch.manual_seed(1)
    XClip(XClipConfig.tiny()).eval().save(tmp_path / "other")
    return tmp_path / "other"


def fingerprint_of(index: Path) -> str:
    with Catalog.open(index) as catalog:
        return catalog.fingerprint


def test_a_server_makes_a_new_index_with_it_and_serves_an_old_one_with_its_own(
    model_directory: Path, other_model: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    with pytest.raises(IndexNotFoundError):
        open_index(Settings(index=index, device="cpu"))
    open_index(Settings(index=index, device="cpu", new_index_model=str(model_directory))).close()
    made = fingerprint_of(index)
    with open_index(Settings(index=index, device="cpu", new_index_model=str(other_model))) as opened:
        catalog = opened.catalog
        assert index_fingerprint(opened.model, catalog.sampling_json) == made == catalog.fingerprint
    with pytest.raises(FingerprintMismatchError):
        open_index(
            Settings(index=index, model=str(other_model), device="cpu", new_index_model=str(model_directory))
        )


def test_index_makes_a_new_index_with_it_and_adds_to_an_old_one_with_its_own(
    model_directory: Path, other_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    for number, model in enumerate((model_directory, other_model)):
        write_coloured_video(tmp_path / f"{number}.mp4", (50 * number, 20, 200), 2)
        monkeypatch.setenv("XCLIP_NEW_INDEX_MODEL", str(model))
        command = ["index", str(tmp_path / f"{number}.mp4"), "--index", str(index), "--workers", "1"]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert "1 added" in result.stdout
    with Catalog.open(index) as catalog:
        assert catalog.num_videos == 2 and catalog.model_spec == str(model_directory)
