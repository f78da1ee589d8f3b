"""Products of 16-bit integers in kernels of Numba: twice as many at a time as of float32, nearly as exact.

Processors multiply 16-bit integers in pairs and add both products to a sum of 32 bits: VPMADDWD of AVX2 and
AVX-512, VPDPWSSD where there is VNNI. Rows of numbers are therefore cut into blocks of BLOCK numbers; those
of a block are multiplied by a factor of their own, and rounded (block floating point). No sum of a block can
overflow: it is at most the product of the lengths of both vectors of integers (Cauchy and Schwarz), however
large its parts are, and lengths have a limit. Sums of blocks are added in float32.

Rounding changes a number by at most 1/65,534 of its block's length, and where no number is most of it by
1/92,674; in bfloat16 it changes by up to 1/512 of itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from model.kernels.products import add_products, by_number_of_rows, group_size, new_sums, put_found, stepped
from model.kernels.vectors import (
    FLOATS,
    INTS,
    LANES,
    OPTIONS,
    address_of,
    call_llvm,
    constant,
    everywhere,
    highest,
    in_all_lanes,
    larger,
    load,
    multiply,
    multiply_add,
    prefetch_from,
    store_integers,
    subtract,
    total,
)

BLOCK: Final = 32
"""Numbers that share a factor. With more a product takes a little less time and has larger errors."""

PAIRS: Final = BLOCK // 2
"""Of a block."""

MOST_LENGTH: Final = np.float32(46337)
"""Of a block of integers before they are rounded, which adds up to half the root of BLOCK, 2.83. The square
of the sum is below 2^31."""

MOST: Final = np.float32(32767)
"""Of an integer of 16 bits."""

_LITTLE: Final = np.float32(1e-30)
"""Added to lengths, which may be 0."""

_MOST_ROWS: Final = 8 if LANES == 16 else 3
"""Of a tile, as `model.kernels.products.MOST_ROWS`; without VNNI a product has a register for itself."""

COLUMNS: Final = 3
"""Vectors that lie side by side in a packed matrix, and are read together."""

_AHEAD: Final = 8192
"""Pairs, 32 kB, from those that a tile reads to those that it prefetches: they come while others are
multiplied, which a processor does not see to well enough by itself. Tiles of few rows do not prefetch: they
wait for memory in any case, and longer so."""


class Integers(NamedTuple):
    """Rows of numbers as integers, flat; their numbers are those of a block, or several.

    pairs: int32, each two numbers of 16 bits. [M, K / 2].
    scales: float32, what a block's integers are to be multiplied by. [M, K / BLOCK].
    """

    pairs: NDArray[np.int32]
    scales: NDArray[np.float32]


def packed(matrix: Tensor) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A matrix as `multiply_integers` takes it, and what its products are to be multiplied by.

    Args:
        matrix: float32 [N, K], a multiple of LANES and one of BLOCK.

    Returns:
        int32, flat, of [N / LANES / COLUMNS, K / 2, COLUMNS, LANES]: pairs of 16 bits, with zeros behind the
        last. float32 [N]: a scale a row, for it is applied when all blocks are summed.
    """
    size, dimension = matrix.shape
    longest = matrix.unflatten(1, (-1, BLOCK)).norm(dim=2).amax(dim=1)
    limit = float(MOST) / (matrix.abs().amax(dim=1) + float(_LITTLE))
    factors = torch.minimum(float(MOST_LENGTH) / (longest + float(_LITTLE)), limit)
    columns = COLUMNS * LANES
    integers = torch.zeros(-(-size // columns) * columns, dimension, dtype=torch.int16)
    integers[:size] = (matrix * factors[:, None]).round_()
    in_lanes = integers.view(torch.int32).unflatten(0, (-1, columns)).transpose(1, 2)
    return in_lanes.contiguous().view(-1).numpy(), (1 / factors).numpy()


@njit(**OPTIONS)
def packed_size(size, dimension):
    """Pairs of a packed matrix [N, K]."""
    columns = COLUMNS * LANES
    return (size + columns - 1) // columns * columns * dimension // 2


@njit(**OPTIONS)
def to_integers(values, place, size, integers, pair):
    """Blocks of float32 to `Integers`. place: of the first of `size` numbers. pair: of the first pair."""
    zero = everywhere(np.float32(0))
    for begin in range(0, size, BLOCK):
        squares, sizes = zero, zero
        for i in range(begin, begin + BLOCK, LANES):
            value = load(values, place + i)
            squares = multiply_add(value, value, squares)
            sizes = larger(sizes, larger(value, subtract(zero, value)))
        factor = MOST_LENGTH / (np.sqrt(total(squares)) + _LITTLE)
        limit = MOST / (highest(sizes) + _LITTLE)
        if limit < factor:  # Where one is no number, the factor is none.
            factor = limit
        integers.scales[(pair + begin // 2) // PAIRS] = 1 / factor
        factors = everywhere(factor)
        for i in range(begin, begin + BLOCK, LANES):
            store_integers(integers.pairs, pair + i // 2, multiply(load(values, place + i), factors))


_SHORTS = ir.VectorType(ir.IntType(16), 2 * LANES)


def _multiply_add(builder: Any, a: Any, b: Any, to: Any) -> Any:
    """Products of pairs, both added to a sum. With VNNI LLVM makes one instruction of it."""
    name = "llvm.x86.avx512.pmaddw.d.512" if LANES == 16 else "llvm.x86.avx2.pmadd.wd"
    kind = ir.FunctionType(INTS, [_SHORTS, _SHORTS])
    function = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.add(builder.call(function, [builder.bitcast(value, _SHORTS) for value in (a, b)]), to)


def _tile(builder: Any, num_rows: int, at: Callable[[str, Any, Any], Any], places: Any) -> None:
    """Code for the products of `num_rows` rows. at: an address in one of the arrays, by its name."""
    (row, row_step, num_blocks), columns, target = (
        cgutils.unpack_tuple(builder, part) for part in cgutils.unpack_tuple(builder, places)
    )
    size, step, ahead = (ir.Constant(row.type, value) for value in (PAIRS, COLUMNS * LANES, _AHEAD))
    rows = stepped(builder, row, row_step, num_rows)
    sums = new_sums(builder, constant(0.0), num_rows, len(columns))

    def everywhere_at(array: str, place: Any, kind: Any) -> Any:
        return in_all_lanes(builder, builder.load(at(array, place, kind), align=4))

    with cgutils.for_range(builder, num_blocks) as loop:
        first = builder.mul(loop.index, size)
        begins = [builder.add(row, first) for row in rows]
        integers = new_sums(builder, ir.Constant(INTS, [0] * LANES), num_rows, len(columns))

        def vectors_at(number: Any) -> list[Any]:
            along = builder.mul(builder.add(first, number), step)
            places = [builder.add(column, along) for column in columns]
            if num_rows > _MOST_ROWS // 2:
                for place in places:
                    prefetch_from(builder, at("matrix", builder.add(place, ahead), INTS))
            return [builder.load(at("matrix", place, INTS), align=4) for place in places]

        def values_at(number: Any) -> Any:
            places = (builder.add(begin, number) for begin in begins)
            return (everywhere_at("pairs", place, ir.IntType(32)) for place in places)

        add_products(builder, size, (vectors_at, values_at, partial(_multiply_add, builder)), integers)
        for begin, parts, totals in zip(begins, integers, sums, strict=True):
            scale = everywhere_at("scales", builder.udiv(begin, size), ir.FloatType())
            for part, total in zip(parts, totals, strict=True):
                value = builder.sitofp(builder.load(part), FLOATS)
                builder.store(call_llvm(builder, "fma", value, scale, builder.load(total)), total)
    put_found(builder, target, sums, lambda place: at("found", place, FLOATS))


@intrinsic
def _multiply_tile(context: Any, num_rows: Any, rows: Any, matrix: Any, found: Any, places: Any) -> Any:
    """Products of up to _MOST_ROWS rows of `Integers` with columns of a matrix, as those of
    `model.kernels.products.multiply_tile`.

    places: three tuples. In the pairs: the place of the first row, the step to the next, and the number of
    blocks. In `matrix`: the place of each column. In `found`: as there.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        num_rows, rows, matrix, found, places = values
        arrays = [*cgutils.unpack_tuple(builder, rows), matrix, found]
        kinds = [*signature.args[1].types, *signature.args[2:4]]
        named = dict(
            zip(("pairs", "scales", "matrix", "found"), zip(kinds, arrays, strict=True), strict=True)
        )

        def at(array: str, place: Any, kind: Any) -> Any:
            return address_of(context, builder, *named[array], place, kind)

        by_number_of_rows(builder, num_rows, _MOST_ROWS, lambda number: _tile(builder, number, at, places))
        return context.get_dummy_value()

    return types.void(types.intp, rows, matrix, found, places), code


@njit(**OPTIONS)
def _multiply_rows(rows, of_rows, matrix, columns, found, places):
    """As `model.kernels.products.multiply_rows`. of_rows: the first, how many, and K."""
    first, num_rows, dimension = of_rows
    row, (place, place_step) = first * (dimension // 2), places[:2]
    while num_rows > 0:
        count = group_size(num_rows, _MOST_ROWS)
        at = ((row, dimension // 2, dimension // BLOCK), columns, (place, place_step, *places[2:]))
        _multiply_tile(count, rows, matrix, found, at)
        row, place = row + count * (dimension // 2), place + count * place_step
        num_rows -= count


@njit(**OPTIONS)
def multiply_integers(rows, of_rows, matrix, of_matrix, found, of_found):
    """Products of rows with columns of a matrix, but for the matrix's scales. Those of a row do not depend on
    the others, to the bit.

    rows: `Integers`. of_rows: the first, how many, and K. matrix: see `packed`. of_matrix: its place, the
    first vector of LANES columns, and the one behind the last. found: float32. of_found: the place of the
    first product, and the step to those of the next row.
    """
    (place, begin, end), size = of_matrix, of_rows[2]
    for a in range(begin, end - 2, COLUMNS):
        columns = (_column(place, a, size), _column(place, a + 1, size), _column(place, a + 2, size))
        at = (a - begin) * LANES
        _multiply_rows(rows, of_rows, matrix, columns, found, (*of_found, at, at + LANES, at + 2 * LANES))
    for a in range(end - (end - begin) % COLUMNS, end):
        of_column = (_column(place, a, size),)
        _multiply_rows(rows, of_rows, matrix, of_column, found, (*of_found, (a - begin) * LANES))


@njit(**OPTIONS)
def _column(place, number, dimension):
    """Where a vector of a packed matrix begins."""
    return place + (number // COLUMNS * COLUMNS * (dimension // 2) + number % COLUMNS) * LANES
