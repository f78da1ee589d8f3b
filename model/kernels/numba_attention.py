"""All scores of texts with videos in one pass over the features, on a processor: a kernel in Numba.

Importing this module compiles the kernel, in seconds, or reads what was compiled before from Numba's cache.

A block is as many videos as a vector has lanes. Of each video frames are widened to float32, which stays in
the first cache, and multiplied with a text's words and its sentence there. The products of a block, which
stay there too, lie as [W + 1, F, lanes]: all that follows is arithmetic on whole vectors, one video a lane.
Nothing else is written but scores. A score depends on its text and its video alone, to the last bit: not on
what else is scored, nor on how many threads do it. Only where many texts are evaluated (`Plan.is_packed`)
are products summed in another order: a block's frames are packed one video a lane, once for all texts, and
there are no lanes to add up.

Vectors are explicit (`Lanes`), because whether a compiler finds them in loops differs from loop to loop. All
is in one file, because Numba compiles again when the file of a kernel has changed, not what that imports.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

from model.quantization import SCALE_BYTES

logger = logging.getLogger(__name__)

# Vectors

LANES: Final = 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 8
"""float32 values of a vector, and videos of a block."""

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


def _exponential(builder: Any, x: Any) -> Any:
    """e^x for x up to 0, which higher ones count as; 1e-38 for less than -87.

    2^k e^r with |r| <= ln(2) / 2, the polynomial of Cephes's expf (netlib.org/cephes): a relative error below
    2e-7.
    """
    for name, bound in (("<", -87.3), (">", 0.0)):
        beyond = builder.fcmp_ordered(name, x, _constant(bound))
        x = builder.select(beyond, _constant(bound), x)
    k = _call(builder, "rint", builder.fmul(x, _constant(1.44269504088896341)))
    r = _call(builder, "fma", k, _constant(-0.693359375), x)
    r = _call(builder, "fma", k, _constant(2.12194440e-4), r)
    sum_ = _constant(1.9875691500e-4)
    for factor in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        sum_ = _call(builder, "fma", sum_, r, _constant(factor))
    power = _call(builder, "fma", sum_, builder.fmul(r, r), builder.fadd(r, _constant(1.0)))
    exponent = builder.shl(builder.fptosi(k, _INTS), ir.Constant(_INTS, [23] * LANES))
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


def _loaded(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    is_half = kind.dtype == types.uint16
    address = _address(context, builder, kind, array, index, _HALVES if is_half else _FLOATS)
    found = builder.load(address, align=2 if is_half else 4)
    return builder.fpext(found, _FLOATS) if is_half else found


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """LANES values from array[index], float32, or float16 as uint16."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _loaded(context, builder, signature.args[0], *values)

    return _lanes(array, types.intp), code


@intrinsic
def load_frame(context: Any, frames: Any, begin: Any, index: Any, dimension: Any) -> Any:
    """LANES values from `index` on of the frame that begins at frames[begin], float32, float16 as uint16, or
    int8 with its scale behind it, see `model.quantization`, rounded to float16 as copies of it are."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = signature.args[0]
        array, begin, index, dimension = values
        place = builder.add(begin, index)
        if kind.dtype != types.int8:
            return _loaded(context, builder, kind, array, place)
        address = _address(context, builder, kind, array, place, _BYTES)
        integers = builder.sitofp(builder.load(address, align=1), _FLOATS)
        scale = _address(context, builder, kind, array, builder.add(begin, dimension), ir.FloatType())
        value = builder.fmul(integers, _in_all_lanes(builder, builder.load(scale, align=1)))
        return builder.fpext(builder.fptrunc(value, _HALVES), _FLOATS)

    return _lanes(frames, types.intp, types.intp, types.intp), code


@intrinsic
def frame_step(context: Any, frames: Any, dimension: Any) -> Any:
    """From the place of one frame to that of the next."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        num_bytes = SCALE_BYTES if signature.args[0].dtype == types.int8 else 0
        return builder.add(values[1], ir.Constant(values[1].type, num_bytes))

    return types.intp(frames, types.intp), code


@intrinsic
def store(context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write them to array[index], float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, index, vector = values
        address = _address(context, builder, signature.args[0], array, index, _FLOATS)
        builder.store(vector, address, align=4)
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
def sum_of(context: Any, vector: Any) -> Any:
    """Of the lanes, float32."""

    def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        (vector,), size = values, LANES
        while size > 1:
            size //= 2
            undefined = ir.Constant(vector.type, ir.Undefined)
            kind = ir.VectorType(ir.IntType(32), size)
            halves = [
                builder.shuffle_vector(vector, undefined, ir.Constant(kind, [*range(first, first + size)]))
                for first in (0, size)
            ]
            vector = builder.fadd(*halves)
        return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))

    return types.float32(_lanes), code


def _packed_products(num_rows: int) -> Any:
    """Makes a function of kernels: products of `num_rows` rows with four frames of LANES packed videos.

    It is given `rows`, `packed` and `found`, and for each the place of the first (row, frame, product) and a
    step: the dimension of rows, to the next frame, to the products of the next row.
    """

    @intrinsic
    def multiply_packed(context: Any, rows: Any, packed: Any, found: Any, places: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            *arrays, places = values
            (row, dimension), (frame, frame_step), (place, row_step) = (
                cgutils.unpack_tuple(builder, pair) for pair in cgutils.unpack_tuple(builder, places)
            )

            def at(number: int, place: Any, vector: Any = _FLOATS) -> Any:
                return _address(context, builder, signature.args[number], arrays[number], place, vector)

            def steps(first: Any, step: Any, count: int) -> list[Any]:
                places = [first]
                while len(places) < count:
                    places.append(builder.add(places[-1], step))
                return places

            sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(4)] for _ in range(num_rows)]
            for total in itertools.chain(*sums):  # They become registers.
                builder.store(_constant(0.0), total)
            row_places, frame_places = steps(row, dimension, num_rows), steps(frame, frame_step, 4)
            with cgutils.for_range(builder, dimension) as loop:
                step = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
                vectors = [builder.load(at(1, builder.add(first, step)), align=4) for first in frame_places]
                for first, totals in zip(row_places, sums, strict=True):
                    value = builder.load(at(0, builder.add(first, loop.index), ir.FloatType()), align=4)
                    value = _in_all_lanes(builder, value)
                    for vector, total in zip(vectors, totals, strict=True):
                        builder.store(_call(builder, "fma", value, vector, builder.load(total)), total)
            lanes = ir.Constant(place.type, LANES)
            for first, totals in zip(steps(place, row_step, num_rows), sums, strict=True):
                for target, total in zip(steps(first, lanes, 4), totals, strict=True):
                    builder.store(builder.load(total), at(2, target), align=4)
            return context.get_dummy_value()

        return types.void(rows, packed, found, places), code

    return multiply_packed


# What kernels are given


class Matrices(NamedTuple):
    """float32, flat, of the model's numbers of words and frames; by their names in `ScoreHead`."""

    word_logit: NDArray[np.float32]
    frame_logit: NDArray[np.float32]
    word: NDArray[np.float32]
    frame: NDArray[np.float32]
    word_second: NDArray[np.float32]
    frame_second: NDArray[np.float32]


class Texts(NamedTuple):
    """T texts, prepared. Rows are flat float32, those of a text after those of the one before.

    with_frames: of each text its mapped words, where `frame_word` is wanted, and then its sentence, where
        `sentence_frame` is.
    with_videos: likewise its words for `video_word`, and its mapped sentence for `video_sentence`.
    num_words: int64 [T], of each; all of them take part.
    """

    with_frames: NDArray[np.float32]
    with_videos: NDArray[np.float32]
    num_words: NDArray[np.int64]


class Videos(NamedTuple):
    """V videos. All flat; features are of N records, of which `records` int64 [V] says which are meant.

    frames: float16 as uint16 [N * F * D], float32, or int8 [N * F * (D + 4)]. pooled: float32 [N * D]. mask:
    bool [V * F], true where a frame takes part.
    """

    frames: NDArray[np.uint16] | NDArray[np.float32] | NDArray[np.int8]
    pooled: NDArray[np.float32]
    mask: NDArray[np.bool_]
    records: NDArray[np.int64]


class Plan(NamedTuple):
    """What to compute, with F frames of D values, D a multiple of LANES.

    most_words: the model's number of words, the size of its matrices. scale: of every score. weights: float32
    [4], of each score in the total. is_packed: whether frames are first brought into an order in which
    several texts are multiplied sooner. The last five say which scores are wanted, and whether `frame_word`
    has both sides.
    """

    num_frames: int
    dimension: int
    most_words: int
    temperature: float
    scale: float
    weights: NDArray[np.float32]
    is_packed: bool
    video_sentence: bool
    video_word: bool
    sentence_frame: bool
    frame_word: bool
    both_sides: bool


class Scratch(NamedTuple):
    """float32, flat, of one thread; sizes by `scratch_sizes`."""

    frames: NDArray[np.float32]
    frame_products: NDArray[np.float32]
    video_products: NDArray[np.float32]
    mask: NDArray[np.float32]
    steps: NDArray[np.float32]
    ones: NDArray[np.float32]


def scratch_sizes(plan: Plan, num_texts: int, num_words: int) -> Scratch:
    """How many values each needs, for texts of at most `num_words`."""
    rows, frames = num_words + 1, plan.num_frames
    held: Any = (
        (LANES if num_texts > 1 else 1) * frames * plan.dimension,
        rows * frames * LANES,
        rows * LANES,
        frames * LANES,
        max(rows, frames, 5) * LANES,
        LANES,
    )
    return Scratch(*held)


# Kernels

_OPTIONS: Final = {"nogil": True, "error_model": "numpy", "boundscheck": False}


@njit(**_OPTIONS)
def _four_by_three(left, at, right, row, dimension):
    """Products of the vectors of `left` at four places with three rows of `right` from `row` on."""
    # Twelve sums, three rows and a vector: the sixteen registers that AVX2 has.
    a, b, c, d = at
    second, third = row + dimension, row + 2 * dimension
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = everywhere(np.float32(0))
    for i in range(0, dimension, LANES):
        x, y, z = load(right, row + i), load(right, second + i), load(right, third + i)
        of = load(left, a + i)
        a0, a1, a2 = multiply_add(of, x, a0), multiply_add(of, y, a1), multiply_add(of, z, a2)
        of = load(left, b + i)
        b0, b1, b2 = multiply_add(of, x, b0), multiply_add(of, y, b1), multiply_add(of, z, b2)
        of = load(left, c + i)
        c0, c1, c2 = multiply_add(of, x, c0), multiply_add(of, y, c1), multiply_add(of, z, c2)
        of = load(left, d + i)
        d0, d1, d2 = multiply_add(of, x, d0), multiply_add(of, y, d1), multiply_add(of, z, d2)
    return (a0, b0, c0, d0), (a1, b1, c1, d1), (a2, b2, c2, d2)


@njit(**_OPTIONS)
def _four_by_one(left, at, right, row, dimension):
    """Products of the vectors of `left` at four places with the row of `right` at `row`."""
    a, b, c, d = at
    a0 = b0 = c0 = d0 = everywhere(np.float32(0))
    for i in range(0, dimension, LANES):
        x = load(right, row + i)
        a0, b0 = multiply_add(load(left, a + i), x, a0), multiply_add(load(left, b + i), x, b0)
        c0, d0 = multiply_add(load(left, c + i), x, c0), multiply_add(load(left, d + i), x, d0)
    return a0, b0, c0, d0


@njit(**_OPTIONS)
def _put(found, place, step, sums):
    a, b, c, d = sums
    found[place] = sum_of(a)
    found[place + step] = sum_of(b)
    found[place + 2 * step] = sum_of(c)
    found[place + 3 * step] = sum_of(d)


@njit(**_OPTIONS)
def _products(left, at, right, rows, found, places):
    """Products of four vectors with rows. rows: the first, how many, and their dimension. places: where the
    first product goes, and the steps to that of the next vector and of the next row."""
    row, num_rows, dimension = rows
    place, step, row_step = places
    number = 0
    while number + 3 <= num_rows:
        first, second, third = _four_by_three(left, at, right, row, dimension)
        _put(found, place, step, first)
        _put(found, place + row_step, step, second)
        _put(found, place + 2 * row_step, step, third)
        number, row, place = number + 3, row + 3 * dimension, place + 3 * row_step
    while number < num_rows:
        _put(found, place, step, _four_by_one(left, at, right, row, dimension))
        number, row, place = number + 1, row + dimension, place + row_step


@njit(**_OPTIONS)
def _attend(values, at, matrix, size, mask):
    """AOSM of similarities divided by the temperature, which the result is as well: a vector.

    at: the place of the first similarities in `values`, the step to the next, and their number N, which may
    be 0. matrix: [size, size], of which the corner for N counts. mask: an array of 1 and 0 for each, and the
    step from one to the next; similarities are 0 where it is.
    """
    start, step, count = at
    is_real, mask_step = mask
    zero, far = everywhere(np.float32(0)), everywhere(np.float32(-1e30))
    largest = far
    for i in range(count):
        value = where(load(is_real, i * mask_step), load(values, start + i * step), far)
        largest = larger(largest, value)
    weighted = weights = zero
    for group in range(0, count, 4):
        # Four at a time, for a sum is added to only every four cycles. Behind the last, the last again.
        a, b = group * size, min(group + 1, count - 1) * size
        c, d = min(group + 2, count - 1) * size, min(group + 3, count - 1) * size
        first = second = third = fourth = zero
        for j in range(count):
            value = load(values, start + j * step)
            first = multiply_add(everywhere(matrix[a + j]), value, first)
            second = multiply_add(everywhere(matrix[b + j]), value, second)
            third = multiply_add(everywhere(matrix[c + j]), value, third)
            fourth = multiply_add(everywhere(matrix[d + j]), value, fourth)
        i = group
        for projected in (first, second, third, fourth):
            if i < count:
                weight = exponential(subtract(load(values, start + i * step), largest))
                weight = multiply(weight, load(is_real, i * mask_step))
                weighted, weights = multiply_add(weight, projected, weighted), add(weights, weight)
            i += 1
    # A softmax over nothing weighs nothing.
    return divide(weighted, larger(weights, everywhere(np.float32(1e-30))))


@njit(**_OPTIONS)
def _frame_word(num_words, matrices, plan, scratch):
    """Divided by the temperature: a vector."""
    frames, steps, products = plan.num_frames, scratch.steps, scratch.frame_products
    of_frames, of_words = (scratch.mask, LANES), (scratch.ones, 0)
    for word in range(num_words):
        at = (word * frames * LANES, LANES, frames)
        store(steps, word * LANES, _attend(products, at, matrices.frame, frames, of_frames))
    at = (0, LANES, num_words)
    by_words = _attend(steps, at, matrices.word_second, plan.most_words, of_words)
    if not plan.both_sides:
        return by_words
    for frame in range(frames):
        at = (frame * LANES, frames * LANES, num_words)
        per_frame = _attend(products, at, matrices.word, plan.most_words, of_words)
        is_real = load(scratch.mask, frame * LANES)
        store(steps, frame * LANES, where(is_real, per_frame, everywhere(np.float32(0))))
    by_frames = _attend(steps, (0, LANES, frames), matrices.frame_second, frames, of_frames)
    return multiply(add(by_frames, by_words), everywhere(np.float32(0.5)))


@njit(**_OPTIONS)
def _scores_of_block(num_words, matrices, plan, scratch):
    """Put the four scores and the total of a block, from its products, as vectors into `scratch.steps`."""
    frames, most_words = plan.num_frames, plan.most_words
    scale = everywhere(np.float32(plan.scale))
    per_similarity = everywhere(np.float32(plan.scale * plan.temperature))
    of_frames, of_words = (scratch.mask, LANES), (scratch.ones, 0)
    video_sentence = video_word = sentence_frame = frame_word = everywhere(np.float32(np.nan))
    if plan.video_sentence:
        place = num_words * LANES if plan.video_word else 0
        video_sentence = multiply(load(scratch.video_products, place), scale)
    if plan.video_word:
        at = (0, LANES, num_words)
        found = _attend(scratch.video_products, at, matrices.word_logit, most_words, of_words)
        video_word = multiply(found, per_similarity)
    if plan.sentence_frame:
        at = (num_words * frames * LANES if plan.frame_word else 0, LANES, frames)
        found = _attend(scratch.frame_products, at, matrices.frame_logit, frames, of_frames)
        sentence_frame = multiply(found, per_similarity)
    if plan.frame_word:
        frame_word = multiply(_frame_word(num_words, matrices, plan, scratch), per_similarity)
    number, total = 0, everywhere(np.float32(0))
    for score in (video_sentence, video_word, sentence_frame, frame_word):
        if plan.weights[number] != 0:  # What does not count may be NaN.
            total = multiply_add(score, everywhere(plan.weights[number]), total)
        store(scratch.steps, number * LANES, score)
        number += 1
    store(scratch.steps, number * LANES, total)


@njit(**_OPTIONS)
def _divide_products(num_rows, num_video_words, plan, scratch):
    """By the temperature; those of a frame that takes no part become zero."""
    zero, factor = everywhere(np.float32(0)), everywhere(np.float32(1 / plan.temperature))
    for row in range(num_rows):
        for frame in range(plan.num_frames):
            place = (row * plan.num_frames + frame) * LANES
            product = multiply(load(scratch.frame_products, place), factor)
            store(scratch.frame_products, place, where(load(scratch.mask, frame * LANES), product, zero))
    for row in range(num_video_words):
        product = load(scratch.video_products, row * LANES)
        store(scratch.video_products, row * LANES, multiply(product, factor))


@njit(**_OPTIONS)
def _widen(videos, video, place, lane, plan, scratch):
    """Frames of a video to scratch.frames[place] as float32, and their mask into a lane."""
    frames, dimension = plan.num_frames, plan.dimension
    step = frame_step(videos.frames, dimension)
    begin = videos.records[video] * frames * step
    for frame in range(frames):
        for i in range(0, dimension, LANES):
            store(scratch.frames, place + i, load_frame(videos.frames, begin, i, dimension))
        begin, place = begin + step, place + dimension
        scratch.mask[frame * LANES + lane] = np.float32(videos.mask[video * frames + frame])


@njit(**_OPTIONS)
def _pack(videos, block, plan, scratch):
    """Frames of a block to scratch.frames, float32 [F, D, LANES], and their mask. block: the first video, and
    the one behind the last."""
    first, end = block
    frames = plan.num_frames
    size = frames * plan.dimension
    for lane in range(LANES):
        video = min(first + lane, end - 1)
        begin = videos.records[video] * size
        for i in range(size):
            scratch.frames[i * LANES + lane] = np.float32(videos.frames[begin + i])
        for frame in range(frames):
            scratch.mask[frame * LANES + lane] = np.float32(videos.mask[video * frames + frame])


# Four sums for each of six rows, four frames and a value are 29 registers, of 32 that AVX-512 has; with two
# rows they are 13, of 16 that AVX2 has.
_MOST_ROWS: Final = 6 if LANES == 16 else 2
_most_packed = _packed_products(_MOST_ROWS)
_one_packed = _packed_products(1)


@njit(**_OPTIONS)
def _multiply_packed(texts, rows, plan, scratch):
    """Products of packed frames with rows of a text. rows: the first, how many, and their dimension."""
    row, num_rows, dimension = rows
    frames = plan.num_frames
    for group in range(0, frames, 4):
        first = min(group, frames - 4)  # Where four do not divide their number, some are done twice.
        packed = (first * dimension * LANES, dimension * LANES)
        number = 0
        while number < num_rows:
            of = (row + number * dimension, dimension)
            places = (of, packed, ((number * frames + first) * LANES, frames * LANES))
            if number + _MOST_ROWS <= num_rows:
                _most_packed(texts.with_frames, scratch.frames, scratch.frame_products, places)
                number += _MOST_ROWS
            else:
                _one_packed(texts.with_frames, scratch.frames, scratch.frame_products, places)
                number += 1


@njit(**_OPTIONS)
def _multiply_frames(texts, rows, place, lane, plan, scratch):
    """Products of the frames at scratch.frames[place] with rows of a text, into a lane."""
    frames, dimension = plan.num_frames, plan.dimension
    for frame in range(0, frames, 4):
        first = min(frame, frames - 4)  # Where four do not divide their number, some are done twice.
        a = place + first * dimension
        at = (a, a + dimension, a + 2 * dimension, a + 3 * dimension)
        places = (first * LANES + lane, LANES, frames * LANES)
        _products(scratch.frames, at, texts.with_frames, rows, scratch.frame_products, places)


@njit(**_OPTIONS)
def _multiply_videos(texts, rows, videos, block, plan, scratch):
    """Products of video features with rows of a text. block: the first video, and the one behind the last."""
    first, end = block
    records, dimension = videos.records, plan.dimension
    for lane in range(0, LANES, 4):
        at = (
            records[min(first + lane, end - 1)] * dimension,
            records[min(first + lane + 1, end - 1)] * dimension,
            records[min(first + lane + 2, end - 1)] * dimension,
            records[min(first + lane + 3, end - 1)] * dimension,
        )
        _products(videos.pooled, at, texts.with_videos, rows, scratch.video_products, (lane, 1, LANES))


def _score(texts, videos, matrices, plan, scratch, target):
    """All texts with some videos.

    target: scores float32, flat [5, T, V], the four in the order of SCORE_NAMES and the total; V; the first
    video to score, and the one behind the last.
    """
    found, num_videos, begin, end = target
    num_texts, dimension = len(texts.num_words), plan.dimension
    for first in range(begin, end, LANES):
        num_lanes = min(LANES, end - first)
        frame_row, video_row = 0, 0
        for text in range(num_texts):
            num_words = texts.num_words[text]
            num_rows = num_words * plan.frame_word + plan.sentence_frame
            rows = (frame_row, num_rows, dimension)
            if plan.is_packed and num_rows:
                if text == 0:
                    _pack(videos, (first, end), plan, scratch)
                _multiply_packed(texts, rows, plan, scratch)
            for lane in range(0 if plan.is_packed or not num_rows else LANES):
                place = lane * plan.num_frames * dimension if num_texts > 1 else 0
                if text == 0:
                    _widen(videos, min(first + lane, end - 1), place, lane, plan, scratch)
                _multiply_frames(texts, rows, place, lane, plan, scratch)
            frame_row += num_rows * dimension
            num_video_words = num_words * plan.video_word
            rows = (video_row, num_video_words + plan.video_sentence, dimension)
            _multiply_videos(texts, rows, videos, (first, end), plan, scratch)
            video_row += (num_video_words + plan.video_sentence) * dimension
            _divide_products(num_rows, num_video_words, plan, scratch)
            _scores_of_block(num_words, matrices, plan, scratch)
            for number in range(5):
                place = (number * num_texts + text) * num_videos + first
                for lane in range(num_lanes):
                    found[place + lane] = scratch.steps[number * LANES + lane]


def _map_rows(rows, count, matrix, dimension, found):
    """`count` rows times a matrix [D, D], all flat, on one thread: several would wait for each other, on a
    busy machine longer than the few rows of a text take."""
    for i in range(0, count * dimension, LANES):
        store(found, i, everywhere(np.float32(0)))
    for d in range(0, dimension, 8):  # Eight rows of the matrix at a time, which is read once.
        a = d * dimension
        for row in range(0, count * dimension, dimension):
            of = row + d
            x0, x1, x2, x3 = rows[of], rows[of + 1], rows[of + 2], rows[of + 3]
            x4, x5, x6, x7 = rows[of + 4], rows[of + 5], rows[of + 6], rows[of + 7]
            for i in range(0, dimension, LANES):
                b = a + i
                one = multiply(everywhere(x0), load(matrix, b))
                two = multiply(everywhere(x1), load(matrix, b + dimension))
                one = multiply_add(everywhere(x2), load(matrix, b + 2 * dimension), one)
                two = multiply_add(everywhere(x3), load(matrix, b + 3 * dimension), two)
                one = multiply_add(everywhere(x4), load(matrix, b + 4 * dimension), one)
                two = multiply_add(everywhere(x5), load(matrix, b + 5 * dimension), two)
                one = multiply_add(everywhere(x6), load(matrix, b + 6 * dimension), one)
                two = multiply_add(everywhere(x7), load(matrix, b + 7 * dimension), two)
                store(found, row + i, add(load(found, row + i), add(one, two)))


def _signatures() -> list[Any]:
    """Of `_score`, with frames as indexes keep them, and as they are evaluated."""
    floats, numbers, flag = types.float32[::1], types.int64[::1], types.boolean
    matrices, scratch = (types.NamedUniTuple(floats, len(kind._fields), kind) for kind in (Matrices, Scratch))
    plan = types.NamedTuple((*[types.int64] * 3, *[types.float64] * 2, floats, *[flag] * 6), Plan)
    texts = types.NamedTuple((floats, floats, numbers), Texts)
    target = types.Tuple((floats, *[types.int64] * 3))
    videos = (
        types.NamedTuple((frames, floats, types.boolean[::1], numbers), Videos)
        for frames in (types.uint16[::1], floats, types.int8[::1])
    )
    return [types.void(texts, kind, matrices, plan, scratch, target) for kind in videos]


def _compiled(function: Any, signatures: list[Any]) -> Any:
    """From Numba's cache where it was compiled before."""
    try:
        return njit(signatures, cache=True, **_OPTIONS)(function)
    except Exception as error:  # There is no common class: no folder that can be written to, a damaged file.
        logger.info("the scoring kernel is compiled without a cache: %s: %s", type(error).__name__, error)
        return njit(signatures, **_OPTIONS)(function)


score: Final = _compiled(_score, _signatures())
"""`_score`, compiled."""

map_rows: Final = _compiled(
    _map_rows,
    [types.void(*[types.float32[::1], types.int64] * 2, types.float32[::1])],
)
"""`_map_rows`, compiled."""
