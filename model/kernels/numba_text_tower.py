"""The text transformer of CLIP on a processor: a kernel in Numba.

Importing this module compiles the kernel, in seconds, or reads what was compiled before from Numba's cache.

A short text takes as long as the weights of the tower take to be read, and as their products take. Here
weights are float16, read once for all rows of a call, in the order in which they are packed, and widened in
registers; arithmetic is in float32. A row is a token of a text; there are none for padding. What becomes of a
text does not depend on those beside it, nor on the number of threads, to the last bit.

All texts begin with the same token, which sees no other: what its row adds to the attention of others is
computed once (`Texts.first`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from model.kernels.stages import begin_stage, dismiss, end_stage, join, leave_stage, next_stage
from model.kernels.vectors import (
    LANES,
    OPTIONS,
    SOURCE,
    add,
    compiled,
    divide,
    everywhere,
    exponential,
    larger,
    load,
    multiply,
    multiply_add,
    multiply_matrix,
    store,
    subtract,
    total,
)

# What the kernel is given


class Shape(NamedTuple):
    """Of a tower. `hidden` and `dimension` are multiples of LANES, as is the width of a head.

    width: of the transformer. hidden: of its feed-forward parts. dimension: of features, D. epsilon: of layer
    normalisation. is_quick: whether GELU is CLIP's approximation of it.
    """

    num_blocks: int
    num_heads: int
    width: int
    hidden: int
    dimension: int
    epsilon: float
    is_quick: bool


class Weights(NamedTuple):
    """Of a tower, flat, in the order in which they are used.

    matrices: the bytes of float16; each as [N / LANES, K, LANES] for a product of rows [M, K] to [M, N]. Of
        each block for query, key and value, for what attention has mixed, and two for its feed-forward part;
        then the projection.
    vectors: float32. Of each block scale and shift of its first normalisation, the biases of the first two
        matrices, scale and shift of its second, and the biases of the other two; then scale and shift of the
        last normalisation, and the bias of the projection.
    """

    matrices: NDArray[np.uint8]
    vectors: NDArray[np.float32]


class Texts(NamedTuple):
    """T texts of M rows.

    rows: float32 [M, width], embeddings of tokens and positions; the kernel changes them.
    starts: int64 [T + 1], where the rows of each text begin, and where the last ones end.
    follow: whether they follow a first row, which is not among them.
    first: float32 [num_blocks, 2, width], key and value of that row; where `follow` is False, those of
        rows[0] are put there.
    features: float32 [M, D], where the result goes, not normalised.
    """

    rows: NDArray[np.float32]
    starts: NDArray[np.int64]
    follow: bool
    first: NDArray[np.float32]
    features: NDArray[np.float32]


class Scratch(NamedTuple):
    """float32, flat; sizes by `scratch_sizes`.

    normal: [M, width]. wide: [M, the larger of 3 width and hidden]. logits: [num_heads, positions and more].
    """

    normal: NDArray[np.float32]
    wide: NDArray[np.float32]
    logits: NDArray[np.float32]


def scratch_sizes(shape: Shape, num_rows: int, num_positions: int) -> tuple[int, int, int]:
    """How many values each array of `Scratch` needs, for texts of at most `num_positions`."""
    widest = max(3 * shape.width, shape.hidden)
    return num_rows * shape.width, num_rows * widest, shape.num_heads * (num_positions + LANES)


# Parts of a stage

_FAR_BELOW: Final = np.float32(-1e30)
"""Below all logits."""

_BIAS, _RESIDUAL, _GELU, _QUICK_GELU = range(4)
"""What follows a product: its bias alone; that, and rows to which it is added; that, and an activation."""


@njit(**OPTIONS)
def _normalize(rows, share, shape, scales, found):
    """Layer normalisation. share: the first row, and the one behind the last. scales: an array, and the place
    in it of the scale; the shift follows."""
    width, (vectors, at) = shape.width, scales
    for row in range(share[0] * width, share[1] * width, width):
        sums = everywhere(np.float32(0))
        for i in range(0, width, LANES):
            sums = add(sums, load(rows, row + i))
        mean = everywhere(total(sums) / np.float32(width))
        sums = everywhere(np.float32(0))
        for i in range(0, width, LANES):
            deviation = subtract(load(rows, row + i), mean)
            sums = multiply_add(deviation, deviation, sums)
        factor = everywhere(np.float32(1 / np.sqrt(total(sums) / np.float32(width) + shape.epsilon)))
        for i in range(0, width, LANES):
            value = multiply(subtract(load(rows, row + i), mean), factor)
            value = multiply_add(value, load(vectors, at + i), load(vectors, at + width + i))
            store(found, row + i, value)


@njit(**OPTIONS)
def _quick_gelu(x):
    """x sigmoid(1.702 x) (clip/model.py of openai/CLIP)."""
    zero, one = everywhere(np.float32(0)), everywhere(np.float32(1))
    size = larger(x, subtract(zero, x))
    power = exponential(multiply(size, everywhere(np.float32(-1.702))))
    return subtract(larger(x, zero), multiply(size, divide(power, add(one, power))))


@njit(**OPTIONS)
def _gelu(x):
    """x times the normal distribution's integral up to x, with erf by formula 7.1.26 of Abramowitz and
    Stegun, Handbook of Mathematical Functions, within 1.5e-7."""
    zero, one = everywhere(np.float32(0)), everywhere(np.float32(1))
    size = larger(x, subtract(zero, x))
    t = divide(one, multiply_add(size, everywhere(np.float32(0.3275911 / np.sqrt(2))), one))
    tail = everywhere(np.float32(1.061405429))
    tail = multiply_add(tail, t, everywhere(np.float32(-1.453152027)))
    tail = multiply_add(tail, t, everywhere(np.float32(1.421413741)))
    tail = multiply_add(tail, t, everywhere(np.float32(-0.284496736)))
    tail = multiply(multiply_add(tail, t, everywhere(np.float32(0.254829592))), t)
    power = exponential(multiply(multiply(size, size), everywhere(np.float32(-0.5))))
    return subtract(
        larger(x, zero), multiply(size, multiply(multiply(tail, power), everywhere(np.float32(0.5))))
    )


@njit(**OPTIONS)
def _finish(product, share, biases, kind, target):
    """What follows a product [M, N], to `target`. share: of its columns the first and the one behind the
    last; M, and N. biases: an array, and the place of the first. kind: `_BIAS` or another."""
    begin, end, count, width = share
    vectors, at = biases
    for row in range(0, count * width, width):
        for i in range(begin, end, LANES):
            value = add(load(product, row + i), load(vectors, at + i))
            if kind == _RESIDUAL:
                value = add(load(target, row + i), value)
            elif kind == _GELU:
                value = _gelu(value)
            elif kind == _QUICK_GELU:
                value = _quick_gelu(value)
            store(target, row + i, value)


@njit(**OPTIONS)
def _dot(left, a, right, b, size):
    sums = everywhere(np.float32(0))
    for i in range(0, size, LANES):
        sums = multiply_add(load(left, a + i), load(right, b + i), sums)
    return total(sums)


@njit(**OPTIONS)
def _soften(logits, begin, count, largest):
    """Softmax over `count` logits, of which this is the largest, but for the division. Returns the sum."""
    for i in range(begin + count, begin + count + LANES):
        logits[i] = _FAR_BELOW
    sums, most = everywhere(np.float32(0)), everywhere(largest)
    for i in range(begin, begin + count, LANES):
        weight = exponential(subtract(load(logits, i), most))
        sums = add(sums, weight)
        store(logits, i, weight)
    return total(sums)


@njit(**OPTIONS)
def _attend_row(row, text, block, head, shape, scratch):
    """Attention of a row in a head to the first row, and to those of its text up to itself. text: its first
    row; whether it follows a first one, and key and value of that in all blocks."""
    begin, follow, first = text
    logits, wide, width, step = scratch.logits, scratch.wide, shape.width, 3 * shape.width
    size = width // shape.num_heads
    scale = np.float32(1 / np.sqrt(size))
    at, key, value = head * (len(logits) // shape.num_heads), width + head * size, 2 * width + head * size
    query, first_key = row * step + head * size, 2 * block * width + head * size
    largest, count = _FAR_BELOW, 0
    if follow:
        largest, count = _dot(wide, query, first, first_key, size) * scale, 1
        logits[at] = largest
    for other in range(begin, row + 1):
        logit = _dot(wide, query, wide, other * step + key, size) * scale
        logits[at + count] = logit
        largest, count = max(largest, logit), count + 1
    factor = everywhere(1 / _soften(logits, at, count, largest))
    for i in range(0, size, LANES):
        mixed, number = everywhere(np.float32(0)), 0
        if follow:
            mixed, number = multiply(everywhere(logits[at]), load(first, first_key + width + i)), 1
        for other in range(begin, row + 1):
            mixed = multiply_add(everywhere(logits[at + number]), load(wide, other * step + value + i), mixed)
            number += 1
        store(scratch.normal, row * width + head * size + i, multiply(mixed, factor))


@njit(**OPTIONS)
def _attend(texts, block, share, shape, scratch):
    """Attention within texts. share: the first head, and the one behind the last."""
    starts, first, width = texts.starts, texts.first, shape.width
    if not texts.follow:
        size = width // shape.num_heads
        for i in range(share[0] * size, share[1] * size):
            first[2 * block * width + i] = scratch.wide[width + i]
            first[(2 * block + 1) * width + i] = scratch.wide[2 * width + i]
    for text in range(len(starts) - 1):
        for row in range(starts[text], starts[text + 1]):
            for head in range(share[0], share[1]):
                _attend_row(row, (starts[text], texts.follow, first), block, head, shape, scratch)


# Stages: of each block a normalisation, a product, attention, a product, a normalisation, two products

_STAGES: Final = 7


@njit(**OPTIONS)
def _share(count, part):
    """The first of a part, and the one behind the last. part: its number, and how many there are."""
    number, num_parts = part
    return count * number // num_parts, count * (number + 1) // num_parts


@njit(**OPTIONS)
def _work(stage, part, texts, weights, shape, scratch):
    """A part of a stage: of rows that are normalised, of heads, or of the columns of a product."""
    count, width, hidden = texts.starts[len(texts.starts) - 1], shape.width, shape.hidden
    normal, wide, vectors = scratch.normal, scratch.wide, weights.vectors
    block, number = stage // _STAGES, stage % _STAGES
    at, place = block * (9 * width + hidden), block * 4 * width * (2 * width + hidden)
    if number == 2:
        _attend(texts, block, _share(shape.num_heads, part), shape, scratch)
        return
    if number in (0, 4):
        scales = (vectors, at + (6 * width if number else 0))
        _normalize(texts.rows, _share(count, part), shape, scales, normal)
        return
    source, product, target, size, columns = normal, wide, wide, width, 3 * width
    if number == 1:
        kind, at = _BIAS, at + 2 * width
        if block == shape.num_blocks:
            product, target, columns = texts.features, texts.features, shape.dimension
    elif number == 3:
        kind, target, columns = _RESIDUAL, texts.rows, width
        at, place = at + 5 * width, place + 6 * width * width
    elif number == 5:
        kind, columns = _QUICK_GELU if shape.is_quick else _GELU, hidden
        at, place = at + 8 * width, place + 8 * width * width
    else:
        kind, source, product, target = _RESIDUAL, wide, normal, texts.rows
        size, columns = hidden, width
        at, place = at + 8 * width + hidden, place + 8 * width * width + 2 * width * hidden
    # One product at one place in the code, where it is long.
    begin, end = _share(columns // LANES, part)
    places = (place, 2 * size * LANES, 2 * LANES)
    multiply_matrix(source, (count, size, columns), (begin, end), weights.matrices, places, product)
    _finish(product, (begin * LANES, end * LANES, count, columns), (vectors, at), kind, target)


@njit(**OPTIONS)
def _encode(team, texts, weights, shape, scratch):
    """Texts through the tower. team: see `new_team`; others may `_help` with the same arguments."""
    for stage in range(_STAGES * shape.num_blocks + 2):  # The last normalisation, and the projection.
        num_parts = begin_stage(team, stage)
        _work(stage, (0, num_parts), texts, weights, shape, scratch)
        end_stage(team, num_parts)
    dismiss(team)


@njit(**OPTIONS)
def _help(team, texts, weights, shape, scratch):
    """Take part in what another thread does with `_encode`, until it has ended."""
    part, stage = join(team), np.int64(-1)
    while True:
        stage, num_parts = next_stage(team, stage)
        if num_parts == 0:
            return
        if part < num_parts:
            _work(stage, (part, num_parts), texts, weights, shape, scratch)
            leave_stage(team)


def _kernel(source):
    """What is called from outside. source: `SOURCE` of `model.kernels.vectors`."""

    def encode_texts(helps, team, texts, weights, shape, scratch):
        """`_help` or `_encode`."""
        _ = source
        if helps:
            _help(team, texts, weights, shape, scratch)
        else:
            _encode(team, texts, weights, shape, scratch)

    return encode_texts


def _signature():
    floats, number, flag = types.float32[::1], types.int64, types.boolean
    texts = types.NamedTuple((floats, number[::1], flag, floats, floats), Texts)
    weights = types.NamedTuple((types.uint8[::1], floats), Weights)
    shape = types.NamedTuple((*[number] * 5, types.float64, flag), Shape)
    scratch = types.NamedUniTuple(floats, 3, Scratch)
    return types.void(flag, number[::1], texts, weights, shape, scratch)


encode_texts: Final = compiled(_kernel(SOURCE), [_signature()])
"""Texts through the tower. With True as the first argument and the same ones otherwise a thread helps another
one; see `_encode` and `_help`."""
