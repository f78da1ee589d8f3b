"""Threads that divide the stages of a kernel, of which there are many short ones.

A thread begins alone. Others join when they come to it, and take part from the next stage on: nobody waits
for one that the operating system has not started yet. Within a stage they wait for each other, at first
without telling the operating system, as it is soon over.

    thread 1   begin_stage, work, end_stage   begin_stage, work, end_stage   ...   dismiss
    thread 2       join . . . . . . . . . .   next_stage, work, leave_stage  ...   next_stage
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

_JOINED, _STAGE, _LEFT = 0, 8, 16
"""Places in a team's state: how many have joined beside the first thread; the stage, and in how many parts it
is done; how many have done their part. Each has a cache line of its own."""

_MOST: Final = 64
"""More than the parts of a stage."""

_OVER: Final = -1
"""In place of a stage: there are no more."""

_SPINS: Final = 200
"""Looks, a short moment, before a waiting thread lets others on its processor pass at each look.
The one it waits for may be among them."""


def new_team() -> NDArray[np.int64]:
    """The state of a team, for one run through the stages."""
    return np.zeros(24, np.int64)


def dissolve(team: NDArray[np.int64]) -> None:
    """`dismiss` for Python: nobody may go on waiting where the kernel was not called in the end."""
    team[_STAGE] = _OVER


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
def begin_stage(team, stage):
    """Begin a stage, from 0 upwards. Returns in how many parts it is done, of which the first is this
    thread's."""
    num_parts = 1 + _get(team, _JOINED)
    _put(team, _LEFT, np.int64(0))
    _put(team, _STAGE, (stage + 1) * _MOST + num_parts)
    return num_parts


@njit(**OPTIONS)
def end_stage(team, num_parts):
    """Wait until all parts are done."""
    spins = 0
    while _get(team, _LEFT) < num_parts - 1:
        spins = _wait(spins)


@njit(**OPTIONS)
def dismiss(team):
    """Let the others return."""
    _put(team, _STAGE, np.int64(_OVER))


@njit(**OPTIONS)
def join(team):
    """Returns which part is this thread's, in stages of more parts than that."""
    return _add(team, _JOINED, np.int64(1)) + 1


@njit(**OPTIONS)
def next_stage(team, stage):
    """Wait for another stage than this. Returns it, and in how many parts it is done: none after the last."""
    spins = 0
    while True:
        found = _get(team, _STAGE)
        if found == _OVER:
            return stage, np.int64(0)
        if found // _MOST - 1 > stage:
            return found // _MOST - 1, found % _MOST
        spins = _wait(spins)


@njit(**OPTIONS)
def leave_stage(team):
    """Say that a part is done."""
    _add(team, _LEFT, np.int64(1))
