"""What stays is set aside from garbage collections, and not kept when it goes after all."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from service.garbage import set_aside_what_stays
from service.generation_watch import _retire


class Knot:
    """Something that only a collection can free."""

    def __init__(self) -> None:
        self.itself = self

    @property
    def searcher(self) -> Knot:
        return self

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def collected_as_before() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_lives_is_passed_over_by_collections() -> None:
    knot = Knot()
    seen = weakref.ref(knot)
    set_aside_what_stays()
    assert gc.get_freeze_count() > 0
    del knot
    gc.collect()
    assert seen() is not None
    set_aside_what_stays()
    assert seen() is None


def test_a_retired_service_is_let_go_of_though_it_was_set_aside() -> None:
    async def change_over() -> weakref.ref[Knot]:
        former: Any = Knot()
        seen = weakref.ref(former)
        set_aside_what_stays()
        task = asyncio.create_task(_retire(former, 0.0))
        del former
        await task
        return seen

    assert asyncio.run(change_over())() is None
