"""What the indexer room shows at its door exists and is documented, and the door itself is light."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import indexer


def test_every_exported_name_exists_and_is_documented() -> None:
    assert indexer.__all__ == sorted(indexer.__all__)
    for name in indexer.__all__:
        exported = getattr(indexer, name)
        assert inspect.getdoc(exported), name
        assert exported.__name__ == name


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = indexer.nonsense


def test_importing_the_room_loads_nothing_heavy() -> None:
    program = "import sys, indexer; assert not {'torch', 'faiss', 'av', 'numpy', 'decord'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
