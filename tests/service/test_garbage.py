"""What stays is set aside from garbage collections, and not kept when it goes after all."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from service.garbage import set_aside_what_stays
from service.index_switch import _retire


class Knot:
    """Something that only a collection can free."""

    def __init__(self) -> None:
        self.itself = self

    @property
    def searcher(self) -> Knot:
        return self

    def close(self) -> None:
        pass


def slow_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads take their time to forget what they were given, after they have reported that it is done."""
    loop = asyncio.get_running_loop()
    report = loop.call_soon_threadsafe

    def report_and_linger(*args: Any, **options: Any) -> asyncio.Handle:
        handle = report(*args, **options)
        time.sleep(0.3)
        return handle

    monkeypatch.setattr(loop, "call_soon_threadsafe", report_and_linger)


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


def test_a_retired_service_is_let_go_of_though_it_was_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    async def change_over() -> weakref.ref[Knot]:
        slow_threads(monkeypatch)
        former: Any = Knot()
        seen = weakref.ref(former)
        set_aside_what_stays()
        task = asyncio.create_task(_retire(former, 0.0))
        del former
        await task
        return seen

    assert asyncio.run(change_over())() is None


def test_what_was_set_aside_is_freed_when_the_process_ends() -> None:
    program = (
        "from service.garbage import set_aside_what_stays\n"
        "class Knot:\n"
        "    def __init__(self): self.itself = self\n"
        "    def __del__(self): print('freed', flush=True)\n"
        "Knot()\n"
        "set_aside_what_stays()\n"
        "kept = Knot()\n"
        "set_aside_what_stays()\n"
        "del kept\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "freed\nfreed\n"
