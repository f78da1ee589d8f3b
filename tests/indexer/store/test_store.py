"""A store is opened by its address."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.errors import IndexNotFoundError
from indexer.store.store import open_store
from tests.support.catalog_builders import FINGERPRINT, create_catalog


def test_a_store_is_opened_by_the_directory_of_its_index(tmp_path: Path) -> None:
    create_catalog(tmp_path).close()
    for address in (tmp_path, str(tmp_path)):
        with open_store(address, fingerprint=FINGERPRINT) as store:
            assert store.facts.embedding_dim == 8
    with pytest.raises(IndexNotFoundError, match="no index in"):
        open_store(tmp_path / "nowhere")


@pytest.mark.parametrize("address", ["mysql://user:secret@host/name", "https://host/index"])
def test_an_address_of_another_kind_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(IndexNotFoundError, match="lies in a directory") as caught:
        open_store(address)
    assert "host" not in str(caught.value)
