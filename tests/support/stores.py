"""Stores of either kind for tests, so that each promise of a store is one test, run with both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.store.records import IndexFacts
from indexer.store.store import create_store, open_store

KINDS = ("sqlite", "postgres")
FINGERPRINT = "f" * 64


class StoreFactory:
    """Makes and opens stores of one kind; closes all at the end of a test."""

    def __init__(self, kind: str, folder: Path, address_of: Callable[[], str]) -> None:
        self.kind = kind
        self._folder = folder
        self._address_of = address_of
        self._made: list[Any] = []
        self._num_addresses = 0

    def address(self) -> str | Path:
        """Where no index is yet."""
        if self.kind == "sqlite":
            self._num_addresses += 1
            return self._folder / f"index-{self._num_addresses}"
        return self._address_of()

    def create(self, address: str | Path | None = None, **changes: Any) -> Any:
        facts = {"fingerprint": FINGERPRINT, "model_spec": "demo", "sampling_json": "{}"}
        facts |= {"embedding_dim": 8, "num_frames": 4, **changes}
        return self._kept(create_store(address or self.address(), IndexFacts(**facts)))

    def only_one(self) -> Any:
        """The same store at each call, for tests of many examples."""
        return self._made[0] if self._made else self.create()

    def open(self, address: str | Path, **options: Any) -> Any:
        return self._kept(open_store(address, **options))

    def _kept(self, store: Any) -> Any:
        self._made.append(store)
        return store

    def close(self) -> None:
        for store in self._made:
            store.close()
