"""Several writes leave as one, in their order, and none is lost at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from service.http.gathered_writes import GATHERED_BYTES, GatheredWrites


class Kept(asyncio.Transport):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__({"peername": "somebody"})
        self.told: list[Any] = []

    def write(self, data: Any) -> None:
        self.told.append(bytes(data))

    def write_eof(self) -> None:
        self.told.append("eof")

    def close(self) -> None:
        self.told.append("closed")


def told(act: Callable[[GatheredWrites], None], *, when_the_loop_came_round: bool) -> list[Any]:
    async def main() -> list[Any]:
        kept = Kept()
        transport = GatheredWrites(kept, asyncio.get_running_loop())
        assert transport.get_extra_info("peername") == "somebody"
        act(transport)
        if when_the_loop_came_round:
            await asyncio.sleep(0)
        return list(kept.told)  # More may come while the loop ends.

    return asyncio.run(main())


def test_writes_leave_together_when_the_loop_comes_round() -> None:
    def answer(transport: GatheredWrites) -> None:
        for part in (b"head", b"", b"body"):
            transport.write(part)

    assert told(answer, when_the_loop_came_round=False) == []
    assert told(answer, when_the_loop_came_round=True) == [b"headbody"]


def test_much_is_written_at_once_so_that_the_transport_can_ask_for_a_pause() -> None:
    def stream(transport: GatheredWrites) -> None:
        transport.write(b"head")
        transport.write(b"x" * GATHERED_BYTES)
        transport.write(b"rest")

    assert told(stream, when_the_loop_came_round=False) == [b"head" + b"x" * GATHERED_BYTES]
    assert told(stream, when_the_loop_came_round=True)[1:] == [b"rest"]


def test_what_was_written_before_the_end_leaves_before_it() -> None:
    def end(transport: GatheredWrites) -> None:
        transport.write(b"last")
        transport.write_eof()
        transport.close()

    assert told(end, when_the_loop_came_round=True) == [b"last", "eof", "closed"]
