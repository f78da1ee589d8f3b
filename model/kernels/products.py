"""Products of rows of float32 with vectors, in kernels of Numba: what takes most of a kernel's time.

A tile is a few rows and one or three columns of vectors, whose sums are registers while a dimension is gone
through: each vector that is read is used for all rows, and each number of a row for all columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from model.kernels.vectors import (
    FLOATS,
    LANES,
    OPTIONS,
    address_of,
    call_llvm,
    constant,
    in_all_lanes,
)

MOST_ROWS: Final = 9 if LANES == 16 else 4
"""Of a tile. With three columns they are 27 sums, three vectors and a value in the 32 registers that AVX-512
has, or twelve, three and one in the 16 of AVX2."""


# Code that tiles are made of


def stepped(builder: Any, first: Any, step: Any, count: int) -> list[Any]:
    """So many places, from the first on."""
    return list(itertools.accumulate([step] * (count - 1), builder.add, initial=first))


def new_sums(builder: Any, zero: Any, num_rows: int, num_columns: int) -> list[list[Any]]:
    """Sums that are zero, by rows; they become registers."""
    sums = [[cgutils.alloca_once(builder, zero.type) for _ in range(num_columns)] for _ in range(num_rows)]
    for total in itertools.chain(*sums):
        builder.store(zero, total)
    return sums


def add_products(
    builder: Any, count: Any, operands: tuple[Any, Any, Any], sums: Sequence[Sequence[Any]]
) -> None:
    """Code for a loop that adds to the sums. operands: what gives the vectors of all columns for a number of
    the loop; the values of all rows, one by one; and what adds the product of both to a sum."""
    vectors_at, values_at, multiply_add = operands
    with cgutils.for_range(builder, count) as loop:
        # LLVM leaves a loop with assembly as it is, be it empty. Unrolled, this one has too few registers.
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)
        vectors = vectors_at(loop.index)
        for value, totals in zip(values_at(loop.index), sums, strict=True):
            for vector, total in zip(vectors, totals, strict=True):
                builder.store(multiply_add(value, vector, builder.load(total)), total)


def put_found(
    builder: Any, places: Sequence[Any], sums: Sequence[Sequence[Any]], at: Callable[[Any], Any]
) -> None:
    """Code that writes sums. places: of the first row, the step to the next, and what is added by column."""
    target, step, *offsets = places
    for first, totals in zip(stepped(builder, target, step, len(sums)), sums, strict=True):
        for offset, total in zip(offsets, totals, strict=True):
            builder.store(builder.load(total), at(builder.add(first, offset)), align=4)


def by_number_of_rows(builder: Any, num_rows: Any, most_rows: int, tile: Callable[[int], None]) -> None:
    """Code for tiles of any number of rows: each has its own, which is long: the function that this becomes a
    part of is not to be repeated where it is called."""
    builder.function.attributes.add("noinline")
    end = builder.append_basic_block("end")
    switch = builder.switch(num_rows, end)
    for number in range(1, most_rows + 1):
        block = builder.append_basic_block(f"rows_{number}")
        switch.add_case(ir.Constant(num_rows.type, number), block)
        builder.position_at_end(block)
        tile(number)
        builder.branch(end)
    builder.position_at_end(end)


@njit(**OPTIONS)
def group_size(num_rows, most_rows):
    """How many rows to take next: groups of nearly equal size, for reading the vectors takes as long for one
    row as for several."""
    num_groups = (num_rows + most_rows - 1) // most_rows
    return (num_rows + num_groups - 1) // num_groups


# Products of float32


@intrinsic
def multiply_tile(context: Any, num_rows: Any, rows: Any, vectors: Any, found: Any, places: Any) -> Any:
    """Products of up to MOST_ROWS rows of numbers with columns of vectors, each summed in the order of both.

    rows, vectors and found: float32. places: three tuples. In `rows`: the place of the first, the step to the
    next, and the dimension. In `vectors`: the step from one of a column to the next, and the place of each
    column. In `found`: the place of the products of the first row, the step to the next row's, and what is
    added for each column.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        num_rows, rows, vectors, found, places = values
        of_rows, of_vectors, of_found = signature.args[1:4]
        (row, row_step, dimension), (step, *columns), target = (
            cgutils.unpack_tuple(builder, part) for part in cgutils.unpack_tuple(builder, places)
        )

        def vector_at(place: Any) -> Any:
            return builder.load(address_of(context, builder, of_vectors, vectors, place, FLOATS), align=4)

        def vectors_at(number: Any) -> list[Any]:
            along = builder.mul(number, step)
            return [vector_at(builder.add(first, along)) for first in columns]

        def value_at(place: Any) -> Any:
            address = address_of(context, builder, of_rows, rows, place, ir.FloatType())
            return in_all_lanes(builder, builder.load(address, align=4))

        def tile(number: int) -> None:
            sums = new_sums(builder, constant(0.0), number, len(columns))
            first_values = stepped(builder, row, row_step, number)

            def values_at(number: Any) -> Any:
                return (value_at(builder.add(first, number)) for first in first_values)

            def multiply_add(*operands: Any) -> Any:
                return call_llvm(builder, "fma", *operands)

            add_products(builder, dimension, (vectors_at, values_at, multiply_add), sums)
            put_found(
                builder,
                target,
                sums,
                lambda place: address_of(context, builder, of_found, found, place, FLOATS),
            )

        by_number_of_rows(builder, num_rows, MOST_ROWS, tile)
        return context.get_dummy_value()

    return types.void(types.intp, rows, vectors, found, places), code


@njit(**OPTIONS)
def multiply_rows(values, rows, vectors, columns, found, places):
    """Products of rows of numbers with columns of vectors, see `multiply_tile`. rows: the place of the first,
    the step to the next, how many, and their dimension. places: of the products of the first row, the step to
    the next row's, and what is added for each column."""
    row, row_step, num_rows, dimension = rows
    place, place_step = places[:2]
    while num_rows > 0:
        count = group_size(num_rows, MOST_ROWS)
        at = ((row, row_step, dimension), columns, (place, place_step, *places[2:]))
        multiply_tile(count, values, vectors, found, at)
        row, place, num_rows = row + count * row_step, place + count * place_step, num_rows - count


@njit(**OPTIONS)
def multiply_matrix(rows, of_rows, matrix, of_matrix, found, of_found):
    """Products of rows with a matrix, flat. Those of a row do not depend on the others, to the bit.

    rows, found: float32. of_rows: see `multiply_rows`. matrix: as `multiply_tile` takes vectors. of_matrix:
    how many vectors of LANES columns, the place of the first, the step to the next, and to those of the next
    dimension. of_found: the place of the first product, and the step to those of the next row.
    """
    num_columns, begin, column_step, step = of_matrix
    for a in range(0, num_columns - 2, 3):
        b, c = a + 1, a + 2
        columns = (step, begin + a * column_step, begin + b * column_step, begin + c * column_step)
        multiply_rows(rows, of_rows, matrix, columns, found, (*of_found, a * LANES, b * LANES, c * LANES))
    for a in range(num_columns - num_columns % 3, num_columns):
        of_column = (step, begin + a * column_step)
        multiply_rows(rows, of_rows, matrix, of_column, found, (*of_found, a * LANES))
