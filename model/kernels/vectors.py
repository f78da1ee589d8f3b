"""Vectors of float32 in kernels of Numba.

Vectors are explicit (`LANES`), because whether a compiler finds them in loops differs from loop to loop.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import llvmlite.binding
from filelock import FileLock
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


_LOCK_SECONDS: Final = 120.0
"""To wait for another process at most: some times as long as it takes to compile a kernel."""


def compiled(function: Any, signatures: list[Any]) -> Any:
    """From Numba's cache where it was compiled before. Of processes that start together one compiles it, and
    the others wait."""
    name = function.__name__.strip("_")
    try:
        kernel = njit(cache=True, **OPTIONS)(function)
        with _one_process(Path(kernel.stats.cache_path) / f"{function.__module__}.{name}.lock"):
            for signature in signatures:
                kernel.compile(signature)
        kernel.disable_compile()
        return kernel
    except Exception as error:  # There is no common class: no folder that can be written to, a damaged file.
        logger.info("the kernel %s is compiled without a cache: %s: %s", name, type(error).__name__, error)
        return njit(signatures, **OPTIONS)(function)


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Wait for others that compile the same. Where files cannot be locked nobody waits."""
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    with suppress(OSError):  # A timeout is one.
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# Vectors

LANES: Final = 16 if llvmlite.binding.get_host_cpu_features().get("avx512bw") else 8
"""float32 values of a vector."""

FLOATS = ir.VectorType(ir.FloatType(), LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
INTS = ir.VectorType(ir.IntType(32), LANES)
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
        super().__init__(manager, kind, FLOATS)


def constant(value: float) -> Any:
    """In all lanes."""
    return ir.Constant(FLOATS, [value] * LANES)


def call_llvm(builder: Any, name: str, *values: Any) -> Any:
    """An operation of LLVM on vectors."""
    kind = ir.FunctionType(FLOATS, [FLOATS] * len(values))
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
    x = builder.fmul(x, constant(1.44269504088896341))
    x = builder.select(builder.fcmp_ordered("<", x, constant(-126.0)), constant(-126.0), x)
    whole = call_llvm(builder, "rint", x)
    x = builder.fsub(x, whole)
    power = constant(_POWERS_OF_2[0])
    for factor in _POWERS_OF_2[1:]:
        power = call_llvm(builder, "fma", power, x, constant(factor))
    exponent = builder.shl(builder.fptosi(whole, INTS), ir.Constant(INTS, [23] * LANES))
    return builder.bitcast(builder.add(builder.bitcast(power, INTS), exponent), FLOATS)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _where(builder: Any, mask: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("!=", mask, constant(0.0)), a, b)


add = _operation(2, lambda builder, a, b: builder.fadd(a, b))
subtract = _operation(2, lambda builder, a, b: builder.fsub(a, b))
multiply = _operation(2, lambda builder, a, b: builder.fmul(a, b))
divide = _operation(2, lambda builder, a, b: builder.fdiv(a, b))
multiply_add = _operation(3, lambda builder, a, b, c: call_llvm(builder, "fma", a, b, c))
larger = _operation(2, _larger)
where = _operation(3, _where)
exponential = _operation(1, _exponential)


def address_of(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Any) -> Any:
    """Of array[index], as that of a vector, or of another type of LLVM."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """LANES float32 that begin at array[index]."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index = values
        return builder.load(address_of(context, builder, signature.args[0], array, index, FLOATS), align=4)

    return _lanes(array, types.intp), code


@intrinsic
def load_halves(context: Any, array: Any, index: Any) -> Any:
    """LANES float16 that begin at the byte array[index]."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index = values
        address = address_of(context, builder, signature.args[0], array, index, _HALVES)
        return builder.fpext(builder.load(address, align=2), FLOATS)

    return _lanes(array, types.intp), code


@intrinsic
def load_integers(context: Any, array: Any, index: Any, scale: Any) -> Any:
    """LANES int8 from array[index], times the float32 that begins at array[scale], rounded to float16 as
    copies of quantized frames are, see `model.quantization`."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, scale = values
        kind = signature.args[0]
        integers = builder.load(address_of(context, builder, kind, array, index, _BYTES), align=1)
        factor = builder.load(address_of(context, builder, kind, array, scale, ir.FloatType()), align=1)
        product = builder.fmul(builder.sitofp(integers, FLOATS), in_all_lanes(builder, factor))
        return builder.fpext(builder.fptrunc(product, _HALVES), FLOATS)

    return _lanes(array, types.intp, types.intp), code


@intrinsic
def prefetch(context: Any, array: Any, index: Any) -> Any:
    """Have the cache line of array[index] fetched, without waiting for it."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index = values
        data = context.make_array(signature.args[0])(context, builder, array).data
        prefetch_from(builder, builder.gep(data, [index]))
        return context.get_dummy_value()

    return types.void(array, types.intp), code


def prefetch_from(builder: Any, address: Any) -> None:
    """Code for `prefetch`. The address may be behind the end of what is there."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, *[number] * 3])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    # To be read, kept in the second cache and those behind it, data.
    builder.call(function, [builder.bitcast(address, byte), number(0), number(2), number(1)])


@intrinsic
def store(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write them to array[index], float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, vector = values
        address = address_of(context, builder, signature.args[0], array, index, FLOATS)
        builder.store(vector, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes), code


@intrinsic
def store_integers(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write them, rounded to integers of 16 bits, to array[index], int32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, vector = values
        shorts = ir.VectorType(ir.IntType(16), LANES)
        integers = builder.fptosi(call_llvm(builder, "rint", vector), INTS)
        address = address_of(context, builder, signature.args[0], array, index, shorts)
        builder.store(builder.trunc(integers, shorts), address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes), code


@intrinsic
def store_lanes(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write them LANES apart, from array[index] on, float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, vector = values
        for lane in range(LANES):
            place = builder.add(index, ir.Constant(index.type, lane * LANES))
            address = address_of(context, builder, signature.args[0], array, place, ir.FloatType())
            value = builder.extract_element(vector, ir.Constant(ir.IntType(32), lane))
            builder.store(value, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes), code


def in_all_lanes(builder: Any, value: Any) -> Any:
    """A float32 or an int32, in LANES lanes."""
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    vector = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(vector, undefined, ir.Constant(INTS, [0] * LANES))


@intrinsic
def everywhere(context: Any, value: Any) -> Any:
    """A float32 in all lanes."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return in_all_lanes(builder, values[0])

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
            target = address_of(context, builder, signature.args[0], array, place, ir.FloatType())
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
            order = ir.Constant(INTS, [lane ^ size for lane in range(LANES)])
            vector = builder.fadd(vector, builder.shuffle_vector(vector, vector, order))
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return types.float32(_lanes), code


@intrinsic
def highest(context: Any, vector: Any) -> Any:
    """The largest of the lanes of a vector, a float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [FLOATS])
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)

    return types.float32(_lanes), code
