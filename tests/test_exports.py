"""What packages export exists, is documented, and is all there is; the public one loads nothing heavy."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import model
import xclip_search

HEAVY = {"torch", "faiss", "fastapi", "av", "numpy", "pydantic", "httpx", "open_clip", "uvicorn"}


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


@pytest.mark.parametrize("package", ["xclip_search", "indexer", "service", "training"])
def test_importing_a_package_loads_nothing_heavy(package):
    program = f"import sys, {package}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
