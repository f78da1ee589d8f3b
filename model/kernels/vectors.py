"""Vectors of float32 in kernels of Numba, and the products that take most of a kernel's time.

Vectors are explicit (`LANES`), because whether a compiler finds them in loops differs from loop to loop.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llvmlite.binding
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

logger = logging.getLogger(__name__)

OPTIONS: Final = {"nogil": True, "error_model": "numpy", "boundscheck": False}
"""Of all functions of a kernel."""

SOURCE: Final = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()
"""Of the files of this folder. Numba reads from its cache what it compiled before, unless the kernel's own
file has changed, or a value that its function takes from around it. Those that take this one are compiled
again when a file changes that they import from here."""


def compiled(function: Any, signatures: list[Any]) -> Any:
    """From Numba's cache where it was compiled before."""
    try:
        return njit(signatures, cache=True, **OPTIONS)(function)
    except Exception as error:  # There is no common class: no folder that can be written to, a damaged file.
        name = function.__name__.strip("_")
        logger.info("the kernel %s is compiled without a cache: %s: %s", name, type(error).__name__, error)
        return njit(signatures, **OPTIONS)(function)


# Vectors

LANES: Final = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
"""float32 values of a vector."""

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)


class _LanesType(types.Type):
    """A vector of LANES float32, as Numba knows it."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_lanes = _LanesType()


@register_model(_LanesType)
class _LanesModel(models.PrimitiveModel):
    """How it is represented: a vector of LLVM."""

    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


def _constant(value: float) -> Any:
    return ir.Constant(_FLOATS, [value] * LANES)


def _call(builder: Any, name: str, *values: Any) -> Any:
    """An operation of LLVM on vectors."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * len(values))
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f32")
    return builder.call(function, values)


def _operation(num_vectors: int, generate: Callable[..., Any]) -> Any:
    """From a function of builder and vectors one that kernels may call, from vectors to a vector."""

    def typed(context: Any, *values: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return generate(builder, *values)

        return _lanes(*[_lanes] * num_vectors), code

    # Numba reads the number of parameters from the signature.
    by_count = {
        1: lambda context, a: typed(context, a),
        2: lambda context, a, b: typed(context, a, b),
        3: lambda context, a, b, c: typed(context, a, b, c),
    }
    return intrinsic(by_count[num_vectors])


_POWERS_OF_2: Final = (1.326472731e-3, 9.671512991e-3, 5.550733581e-2, 0.2402224243, 0.6931470037, 1.0)
"""The polynomial for 2^x, of the least relative error for |x| <= 1/2 that is exact at 0."""


def _exponential(builder: Any, x: Any) -> Any:
    """e^x for x up to 0; 1e-38 for less than -87. A relative error below 2e-7, and 6e-8 |x| more."""
    x = builder.fmul(x, _constant(1.44269504088896341))
    x = builder.select(builder.fcmp_ordered("<", x, _constant(-126.0)), _constant(-126.0), x)
    whole = _call(builder, "rint", x)
    x = builder.fsub(x, whole)
    power = _constant(_POWERS_OF_2[0])
    for factor in _POWERS_OF_2[1:]:
        power = _call(builder, "fma", power, x, _constant(factor))
    exponent = builder.shl(builder.fptosi(whole, _INTS), ir.Constant(_INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(power, _INTS), exponent), _FLOATS)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _where(builder: Any, mask: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("!=", mask, _constant(0.0)), a, b)


add = _operation(2, lambda builder, a, b: builder.fadd(a, b))
subtract = _operation(2, lambda builder, a, b: builder.fsub(a, b))
multiply = _operation(2, lambda builder, a, b: builder.fmul(a, b))
divide = _operation(2, lambda builder, a, b: builder.fdiv(a, b))
multiply_add = _operation(3, lambda builder, a, b, c: _call(builder, "fma", a, b, c))
larger = _operation(2, _larger)
where = _operation(3, _where)
exponential = _operation(1, _exponential)


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """LANES float32 that begin at array[index]."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index = values
        return builder.load(_address(context, builder, signature.args[0], array, index, _FLOATS), align=4)

    return _lanes(array, types.intp), code


def _widened(builder: Any, address: Any) -> Any:
    """LANES float16 at an address, as float32."""
    return builder.fpext(builder.load(address, align=2), _FLOATS)


@intrinsic
def load_halves(context: Any, array: Any, index: Any) -> Any:
    """LANES float16 that begin at the byte array[index]."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index = values
        return _widened(builder, _address(context, builder, signature.args[0], array, index, _HALVES))

    return _lanes(array, types.intp), code


@intrinsic
def load_integers(context: Any, array: Any, index: Any, scale: Any) -> Any:
    """LANES int8 from array[index], times the float32 that begins at array[scale], rounded to float16 as
    copies of quantized frames are, see `model.quantization`."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, scale = values
        kind = signature.args[0]
        integers = builder.load(_address(context, builder, kind, array, index, _BYTES), align=1)
        factor = builder.load(_address(context, builder, kind, array, scale, ir.FloatType()), align=1)
        product = builder.fmul(builder.sitofp(integers, _FLOATS), _in_all_lanes(builder, factor))
        return builder.fpext(builder.fptrunc(product, _HALVES), _FLOATS)

    return _lanes(array, types.intp, types.intp), code


@intrinsic
def prefetch(context: Any, array: Any, index: Any) -> Any:
    """Have the cache line of array[index] fetched, without waiting for it."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index = values
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, *[number] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        data = context.make_array(signature.args[0])(context, builder, array).data
        address = builder.bitcast(builder.gep(data, [index]), byte)
        # To be read, kept in the second cache and those behind it, data.
        builder.call(function, [address, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def store(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write them to array[index], float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, vector = values
        address = _address(context, builder, signature.args[0], array, index, _FLOATS)
        builder.store(vector, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes), code


@intrinsic
def store_lanes(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write them LANES apart, from array[index] on, float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, vector = values
        for lane in range(LANES):
            place = builder.add(index, ir.Constant(index.type, lane * LANES))
            address = _address(context, builder, signature.args[0], array, place, ir.FloatType())
            value = builder.extract_element(vector, ir.Constant(ir.IntType(32), lane))
            builder.store(value, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes), code


def _in_all_lanes(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_FLOATS, ir.Undefined)
    vector = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(_INTS, [0] * LANES))


@intrinsic
def everywhere(context: Any, value: Any) -> Any:
    """A float32 in all lanes."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _in_all_lanes(builder, values[0])

    return _lanes(types.float32), code


@intrinsic
def put_sums(context: Any, array: Any, place: Any, step: Any, vectors: Any) -> Any:
    """Write the sum of the lanes of four vectors to array[place], and in steps behind it."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, place, step, vectors = values

        def added(a: Any, b: Any, first: list[int], second: list[int]) -> Any:
            kind = ir.VectorType(ir.IntType(32), LANES)
            return builder.fadd(
                *(builder.shuffle_vector(a, b, ir.Constant(kind, order)) for order in (first, second))
            )

        vectors, size = cgutils.unpack_tuple(builder, vectors), LANES
        while len(vectors) > 1:  # Half as many: the sums of one in the lower half, of the next in the upper.
            low = [lane for lane in range(2 * LANES) if lane % size < size // 2]
            high = [lane + size // 2 for lane in low]
            vectors = [added(a, b, low, high) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
            size //= 2
        (vector,) = vectors
        while size > 1:
            size //= 2
            vector = added(vector, vector, [*range(LANES)], [lane ^ size for lane in range(LANES)])
        for number in range(4):
            lane = ir.Constant(ir.IntType(32), number * LANES // 4)
            target = _address(context, builder, signature.args[0], array, place, ir.FloatType())
            builder.store(builder.extract_element(vector, lane), target, align=4)
            place = builder.add(place, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vectors), code


@intrinsic
def total(context: Any, vector: Any) -> Any:
    """The sum of the lanes of a vector, a float32: halves are added to halves."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        (vector,), size = values, LANES
        while size > 1:
            size //= 2
            order = ir.Constant(_INTS, [lane ^ size for lane in range(LANES)])
            vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, order))
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return types.float32(_lanes), code


MOST_ROWS: Final = 9 if LANES == 16 else 4
"""Of a tile. With three columns they are 27 sums, three vectors and a value in the 32 registers that AVX-512
has, or twelve, three and one in the 16 of AVX2."""


def _tile(
    builder: Any, num_rows: int, at: Callable[..., Any], vector_at: Callable[[Any], Any], places: Any
) -> None:
    """Code for the products of `num_rows` rows. at: an address. vector_at: what is loaded from a place."""
    (row, row_step, dimension), (step, *columns), (target, target_step, *offsets) = (
        cgutils.unpack_tuple(builder, part) for part in cgutils.unpack_tuple(builder, places)
    )

    def stepped(first: Any, step: Any) -> list[Any]:
        return list(itertools.accumulate([step] * (num_rows - 1), builder.add, initial=first))

    sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in columns] for _ in range(num_rows)]
    for total in itertools.chain(*sums):  # They become registers.
        builder.store(_constant(0.0), total)
    rows = stepped(row, row_step)
    with cgutils.for_range(builder, dimension) as loop:
        # LLVM leaves a loop with assembly as it is, be it empty. Unrolled, this one has too few registers.
        builder.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)
        along = builder.mul(loop.index, step)
        vectors = [vector_at(builder.add(first, along)) for first in columns]
        for first, totals in zip(rows, sums, strict=True):
            value = builder.load(at("rows", builder.add(first, loop.index), ir.FloatType()), align=4)
            value = _in_all_lanes(builder, value)
            for vector, total in zip(vectors, totals, strict=True):
                builder.store(_call(builder, "fma", value, vector, builder.load(total)), total)
    for first, totals in zip(stepped(target, target_step), sums, strict=True):
        for offset, total in zip(offsets, totals, strict=True):
            builder.store(builder.load(total), at("found", builder.add(first, offset)), align=4)


@intrinsic
def multiply_tile(context: Any, num_rows: Any, rows: Any, vectors: Any, found: Any, places: Any) -> Any:
    """Products of up to MOST_ROWS rows of numbers with columns of vectors, each summed in the order of both.

    rows and found: float32. vectors: float32, or uint8, the bytes of float16, whose places are bytes then.
    places: three tuples. In `rows`: the place of the first, the step to the next, and the dimension. In
    `vectors`: the step from one of a column to the next, and the place of each column. In `found`: the place
    of the products of the first row, the step to the next row's, and what is added for each column.
    """

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        num_rows, *arrays, places = values
        held = dict(
            zip(("rows", "vectors", "found"), zip(signature.args[1:4], arrays, strict=True), strict=True)
        )

        def at(name: str, place: Any, vector: Any = _FLOATS) -> Any:
            return _address(context, builder, *held[name], place, vector)

        def vector_at(place: Any) -> Any:
            if signature.args[2].dtype == types.float32:
                return builder.load(at("vectors", place), align=4)
            return _widened(builder, at("vectors", place, _HALVES))

        end = builder.append_basic_block("end")
        switch = builder.switch(num_rows, end)
        for number in range(1, MOST_ROWS + 1):
            block = builder.append_basic_block(f"rows_{number}")
            switch.add_case(ir.Constant(num_rows.type, number), block)
            builder.position_at_end(block)
            _tile(builder, number, at, vector_at, places)
            builder.branch(end)
        builder.position_at_end(end)
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
        # In groups of nearly equal size, for reading the vectors takes as long for one row as for several.
        num_groups = (num_rows + MOST_ROWS - 1) // MOST_ROWS
        count = (num_rows + num_groups - 1) // num_groups
        at = ((row, row_step, dimension), columns, (place, place_step, *places[2:]))
        multiply_tile(count, values, vectors, found, at)
        row, place, num_rows = row + count * row_step, place + count * place_step, num_rows - count


@njit(**OPTIONS)
def multiply_matrix(rows, shape, share, matrix, places, found):
    """Products of rows with a matrix, flat. Those of a row do not depend on the others, to the bit.

    rows: float32 [M, K]. shape: M, K and N, a multiple of LANES. share: of N / LANES the first to compute,
    and the one behind the last. matrix: as `multiply_tile` takes vectors. places: in it, of the first LANES
    of N; the steps to the next LANES, and to those of the next of K. found: float32 [M, N].
    """
    count, dimension, size = shape
    begin, column_step, step = places
    of_rows = (0, dimension, count, dimension)
    for a in range(share[0], share[1] - 2, 3):
        b, c = a + 1, a + 2
        columns = (step, begin + a * column_step, begin + b * column_step, begin + c * column_step)
        of_found = (0, size, a * LANES, b * LANES, c * LANES)
        multiply_rows(rows, of_rows, matrix, columns, found, of_found)
    for a in range(share[1] - (share[1] - share[0]) % 3, share[1]):
        of_column = (step, begin + a * column_step)
        multiply_rows(rows, of_rows, matrix, of_column, found, (0, size, a * LANES))
