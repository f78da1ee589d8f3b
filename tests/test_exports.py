"""What packages export exists, is documented, and is all there is; the public one loads nothing heavy."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import model
import xclip_search


@pytest.mark.parametrize("package", [model, xclip_search], ids=lambda package: package.__name__)
def test_every_exported_name_exists_and_is_documented(package):
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        exported = getattr(package, name)
        assert inspect.getdoc(exported), name
        assert exported.__name__ == name


def test_the_contract_of_the_model_is_exported():
    assert {"XClip", "XClipConfig", "TextFeatures", "VideoFeatures", "Scores"} <= set(dir(model))
    for name in (
        "load",
        "from_official",
        "save",
        "tokenize",
        "encode_text",
        "encode_tokens",
        "encode_video",
        "score",
    ):
        assert inspect.getdoc(getattr(model.XClip, name)), name


def test_an_index_says_what_each_of_its_methods_does():
    for name in (
        "create",
        "open",
        "open_or_create",
        "add",
        "add_folder",
        "delete",
        "search",
        "encode",
        "close",
    ):
        assert inspect.getdoc(getattr(xclip_search.Index, name)), name


@pytest.mark.parametrize("package", [model, xclip_search], ids=lambda package: package.__name__)
def test_a_name_that_is_not_exported_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        package.Nothing  # noqa: B018


def test_an_index_is_written_verified_and_rebuilt_without_torch(tmp_path):
    program = """
import sys
from indexer.features.writing import update_feature_file
from indexer.maintenance import reindexing
from indexer.maintenance.verification import rebuild, verify
from tests.support.catalog_builders import add_video, create_catalog, make_segment
import numpy as np
with create_catalog(sys.argv[1], embedding_dim=8, num_frames=2) as catalog:
    add_video(catalog, 0, [make_segment(np.random.default_rng(0), 8, 2)])
    update_feature_file(catalog)
    assert list(catalog.directory.glob("features*"))
rebuild(sys.argv[1])
assert verify(sys.argv[1]).is_clean
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(tmp_path / "index")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
