"""MSVD's captions are a pickle: plain data comes back, nothing that a pickle names is imported or run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from training.datasets.msvd import read_plain_pickle
from training.errors import DatasetError


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_as_it_was(tmp_path, protocol):
    captions = {"clip": [["a", "dog", "müde"], ["two"]], "none": None, "numbers": (1, 2**70, 0.5, True)}
    path = tmp_path / "raw-captions.pkl"
    path.write_bytes(pickle.dumps(captions, protocol))
    assert read_plain_pickle(path) == captions


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path, protocol):
    path, target = tmp_path / "raw-captions.pkl", tmp_path / "made"
    path.write_bytes(stored := pickle.dumps({"clip": [["a", "dog"]], "bomb": Bomb(target)}, protocol))
    with pytest.raises(DatasetError, match=r"raw-captions\.pkl: .*mkdir.*nothing .* executed"):
        read_plain_pickle(path)
    assert not target.exists()
    pickle.loads(stored)  # noqa: S301  # made by the test itself
    assert target.exists()  # So the pickle was a live one.


@pytest.mark.parametrize("stored", [b"", b"no pickle", b"(]", b"\x80\x63.", b"\x80\x04]\x94("])
def test_a_file_that_is_damaged_or_not_there_is_named(tmp_path, stored):
    path = tmp_path / "raw-captions.pkl"
    with pytest.raises(DatasetError, match=r"raw-captions\.pkl cannot be read"):
        read_plain_pickle(path)
    path.write_bytes(stored)
    with pytest.raises(DatasetError, match=r"raw-captions\.pkl is not a pickle that can be read"):
        read_plain_pickle(path)
