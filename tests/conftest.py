"""Fixtures of all tests: real clips where they are, GPU tests that cannot be skipped by mistake."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def clips_directory() -> Path:
    """Real clips with captions.json, named by XCLIP_TEST_CLIPS or beside the repository; else a skip."""
    named = os.environ.get("XCLIP_TEST_CLIPS")
    directory = Path(named) if named else REPOSITORY.parent / "shared" / "clips"
    if not (directory / "captions.json").is_file():
        if named:
            pytest.fail(f"XCLIP_TEST_CLIPS names {directory}, where there is no captions.json")
        pytest.skip(f"no real clips in {directory}; XCLIP_TEST_CLIPS names another folder")
    return directory


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A `gpu` test without a GPU is skipped, unless XCLIP_TEST_NEED_GPU=1 demands one: then it fails."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("XCLIP_TEST_NEED_GPU") == "1":
            pytest.fail("XCLIP_TEST_NEED_GPU=1, but torch sees no CUDA device")
        pytest.skip("torch sees no CUDA device")
