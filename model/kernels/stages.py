"""Threads that divide the stages of a kernel, of which there are many short ones.

A stage is a number of items that any thread may do. One thread leads; others take an item whenever they come:
nobody waits for one that the operating system has not started yet, or lets wait, but for the item that it is
at. Who finds nothing to do waits at first without telling the operating system, as a stage is soon over.

    leader   open_stage, take, work, finish, take, work, finish, take: nothing, close_stage, open_stage, ...
    helper   join, take, work, finish, take: nothing, wait_for_stage, take, work, finish, ...
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from model.kernels.vectors import OPTIONS

_JOINED, _NEXT, _FINISHED = 0, 8, 16
"""Places in a team's state: how many threads have joined the leader; the stage and its next item; how many
items of it are finished. Each has a cache line of its own."""

_MOST: Final = 1 << 32
"""More than the items of a stage, and than are asked for when there are no more. The stage is above them."""

_OVER: Final = 1 << 20
"""In place of a stage: there are no more."""

_SPINS: Final = 5000
"""Looks, some tenths of a millisecond, before a waiting thread lets others on its processor pass at each
look: the one it waits for may be among them. Others that pass keep the processor for milliseconds, whatever
their priority is."""


def new_team() -> NDArray[np.int64]:
    """The state of a team, for one run through the stages: the first is not open yet."""
    team = np.zeros(24, np.int64)
    team[_NEXT] = -_MOST
    return team


def dissolve(team: NDArray[np.int64]) -> None:
    """`dismiss` for Python: nobody may go on waiting where the kernel was not called in the end."""
    team[_NEXT] = _OVER * _MOST


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


@intrinsic
def _get(context: Any, array: Any, index: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *values)
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(array, types.intp), code


@intrinsic
def _put(context: Any, array: Any, index: Any, value: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *values[:2])
        builder.store_atomic(values[2], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), code


@intrinsic
def _add(context: Any, array: Any, index: Any, value: Any) -> Any:
    """Returns what it was before."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        place = _pointer(context, builder, signature.args[0], *values[:2])
        return builder.atomic_rmw("add", place, values[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), code


@intrinsic
def _pause(context: Any) -> Any:
    """For the other thread of a core."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), code


_yield = types.ExternalFunction("sched_yield", types.int32())


@njit(**OPTIONS)
def _wait(spins):
    """Returns how often it has been called."""
    if spins < _SPINS:
        _pause()
    else:
        _yield()
    return spins + 1


@njit(**OPTIONS)
def open_stage(team, stage):
    """Begin a stage, from 0 upwards, when the one before is closed."""
    _put(team, _FINISHED, np.int64(0))
    _put(team, _NEXT, stage * _MOST)


@njit(**OPTIONS)
def take(team):
    """Returns a stage, and the next of its items, if it has so many. Before the first stage, and after the
    last, there are none: see `is_open`."""
    found = _add(team, _NEXT, np.int64(1))
    return found // _MOST, found % _MOST


@njit(**OPTIONS)
def is_open(stage):
    """Whether it is one."""
    return 0 <= stage < _OVER


@njit(**OPTIONS)
def finish(team):
    """Say that an item is done."""
    _add(team, _FINISHED, np.int64(1))


@njit(**OPTIONS)
def close_stage(team, num_items):
    """Wait until all items are done."""
    spins = 0
    while _get(team, _FINISHED) < num_items:
        spins = _wait(spins)


@njit(**OPTIONS)
def wait_for_stage(team, stage):
    """Wait until another stage than this is open. Returns whether there is one."""
    spins = 0
    while stage < _OVER and _get(team, _NEXT) // _MOST == stage:
        spins = _wait(spins)
    return _get(team, _NEXT) // _MOST < _OVER


@njit(**OPTIONS)
def dismiss(team):
    """Let the others return."""
    _put(team, _NEXT, np.int64(_OVER * _MOST))


@njit(**OPTIONS)
def join(team):
    """Returns the number of this thread, from 1 upwards: the leader is 0."""
    return _add(team, _JOINED, np.int64(1)) + 1
