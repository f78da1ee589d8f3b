"""The transformers of CLIP's towers on a processor: a kernel in Numba.

Importing this module compiles the kernel, in seconds, or reads what was compiled before from Numba's cache.

Nearly all that a tower computes is products with its weights. Here both are integers of 16 bits, see
`model.kernels.fixed_point`; all else is float32. Weights are read once for all rows of a call, in the order
in which they are packed: a short text takes about as long as that. A row is a position of a sequence: a token
of a text, or a patch of a picture. What becomes of a sequence does not depend on those beside it, nor on the
number of threads, to the last bit.

All texts begin with the same token, which sees no other: what its row adds to the attention of others is
computed once (`Sequences.first`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from model.kernels.fixed_point import BLOCK, Integers, multiply_integers, packed_size, to_integers
from model.kernels.products import multiply_matrix
from model.kernels.stages import (
    close_stage,
    dismiss,
    finish,
    is_open,
    join,
    open_stage,
    take,
    wait_for_stage,
)
from model.kernels.vectors import (
    LANES,
    OPTIONS,
    SOURCE,
    add,
    compiled,
    divide,
    everywhere,
    exponential,
    highest,
    larger,
    load,
    multiply,
    multiply_add,
    store,
    store_lanes,
    subtract,
    total,
)

# What the kernel is given


class Shape(NamedTuple):
    """Of a transformer. `width`, `hidden` and `dimension` are multiples of BLOCK, and the width of a head is
    one of LANES.

    width: of rows. hidden: of its feed-forward parts. dimension: of features, D; 0 where rows are the result.
    epsilon: of layer normalisation. is_quick: whether GELU is CLIP's approximation of it. is_causal: whether
    positions attend to those before them alone. of_first: whether the first row of each sequence is all that
    is wanted: the last block then leaves out the others.
    """

    num_blocks: int
    num_heads: int
    width: int
    hidden: int
    dimension: int
    epsilon: float
    is_quick: bool
    is_causal: bool
    of_first: bool


class Weights(NamedTuple):
    """Of a transformer, flat, in the order in which they are used.

    matrices: int32, each as from `model.kernels.fixed_point.packed`. Of each block for query, key and value,
        for what attention has mixed, and two for its feed-forward part; then the projection, if any.
    vectors: float32. Of each block scale and shift of its first normalisation, the scales of the products of
        its first matrix and the biases, those of its second, scale and shift of its second normalisation, and
        scales and biases of its third and fourth matrix. With a projection, scale and shift of a last
        normalisation, and scales and biases of the projection.
    """

    matrices: NDArray[np.int32]
    vectors: NDArray[np.float32]


class Sequences(NamedTuple):
    """S sequences of M rows.

    rows: float32 [M, width], embeddings; the kernel changes them. With `Shape.of_first` the first S are the
        result.
    starts: int64 [S + 1], where the rows of each sequence begin, and where the last ones end.
    follow: whether they follow a first row, which is not among them.
    first: float32 [num_blocks, 2, width], key and value of that row; of causal sequences that do not follow
        one, those of rows[0] are put there.
    features: float32 [M, D], where the result goes, not normalised.
    """

    rows: NDArray[np.float32]
    starts: NDArray[np.int64]
    follow: bool
    first: NDArray[np.float32]
    features: NDArray[np.float32]


class Scratch(NamedTuple):
    """Flat; sizes by `new_scratch`.

    normal: what products with `width` numbers are of. hidden: the same with `hidden` ones.
    attention: float32 [M, 3 width], queries, keys and values.
    own: float32, of each thread a piece of `own_size`.
    """

    normal: Integers
    hidden: Integers
    attention: NDArray[np.float32]
    own: NDArray[np.float32]
    own_size: int


def _heads_at_once(shape):
    """Heads that are computed together: so many that blocks divide their numbers."""
    size, count = shape.width // shape.num_heads, 1
    while count * size % BLOCK:
        count += 1
    return count


def new_scratch(shape: Shape, lengths: list[int], num_threads: int) -> Scratch:
    """For sequences of so many rows each."""
    num_rows, most = sum(lengths), max(lengths) + 1
    width = _heads_at_once(shape) * shape.width // shape.num_heads
    padded = most + LANES  # A multiple of LANES is in between.
    attending = (padded + most) * width + _AT_ONCE * (padded + width)
    own_size = max(min(num_rows, _ROWS) * _COLUMNS, attending, shape.width)

    def integers(size: int) -> Integers:
        count = num_rows * size
        return Integers(np.empty(count // 2, np.int32), np.empty(count // BLOCK, np.float32))

    return Scratch(
        integers(shape.width),
        integers(shape.hidden),
        np.empty(3 * num_rows * shape.width, np.float32),
        np.empty(num_threads * own_size, np.float32),
        own_size,
    )


# Items of stages

_FAR_BELOW: Final = np.float32(-1e30)
"""Below all logits."""

_AT_ONCE: Final = 36
"""Rows whose attention is computed at a time: their logits stay within the nearest cache."""

_COLUMNS: Final = 96
"""Columns of a product that are an item: a multiple of BLOCK and of three times LANES."""

_ROWS: Final = 256
"""And its rows, of which the product stays within the second cache."""

_NORMALIZED_ROWS: Final = 8
"""Rows whose normalisation is an item."""

_BIAS, _RESIDUAL, _GELU, _QUICK_GELU = range(4)
"""What follows a product: its bias alone; that, and rows to which it is added; that, and an activation."""


@njit(**OPTIONS)
def _normalize(rows, share, shape, scales, own, found):
    """Layer normalisation, to `Integers`. share: the first row, and the one behind the last. scales: an
    array, and the place in it of the scale; the shift follows. own: a piece of an array."""
    width, (vectors, at), (values, place) = shape.width, scales, own
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
            store(values, place + i, value)
        to_integers(values, place, width, found, row // 2)


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
def _finish(own, share, scales, kind, target):
    """What follows a product, but for activations that become integers.

    own: the product, [_ROWS, _COLUMNS] in a piece of an array. share: of all of it the first row and the one
    behind the last, the same of columns, and N. scales: an array, and the places of the products' scales and
    of their biases. kind: `_BIAS` or another. target: float32 [M, N]; of activations not used."""
    (product, place), (first, last, begin, end, width), (vectors, scale, bias) = own, share, scales
    for row in range(first, last):
        for i in range(begin, end, LANES):
            at = place + (row - first) * _COLUMNS + i - begin
            value = multiply_add(load(product, at), load(vectors, scale + i), load(vectors, bias + i))
            if kind == _GELU:
                store(product, at, _gelu(value))
            elif kind == _QUICK_GELU:
                store(product, at, _quick_gelu(value))
            elif kind == _RESIDUAL:
                store(target, row * width + i, add(load(target, row * width + i), value))
            else:
                store(target, row * width + i, value)


@njit(**OPTIONS)
def _multiply(source, product, share, weights, own, found):
    """A part of a product of `Integers` [M, K], and what follows.

    product: K; the places of its matrix, and of the products' scales, which the biases follow; and `_BIAS` or
    another. share: see `_finish`. own: a piece of an array. found: where results go, float32 [M, N], and
    `Integers` [M, N] for activations.
    """
    (size, place, at, kind), (first, last, begin, end, width) = product, share
    of_rows, of_matrix = (first, last - first, size), (place, begin // LANES, end // LANES)
    multiply_integers(source, of_rows, weights.matrices, of_matrix, own[0], (own[1], _COLUMNS))
    _finish(own, share, (weights.vectors, at, at + width), kind, found[0])
    if kind in (_GELU, _QUICK_GELU):
        for row in range(first, last):
            pair = (row * width + begin) // 2
            to_integers(own[0], own[1] + (row - first) * _COLUMNS, end - begin, found[1], pair)


# Attention


@njit(**OPTIONS)
def _pack(sequence, block, head, shape, attention, own):
    """Keys of a sequence's head as vectors of LANES positions, and its values one behind the other, to a
    piece of an array. sequence: see `_attend`."""
    begin, end, follow, first = sequence
    width, step, (packed, place) = shape.width, 3 * shape.width, own
    size = width // shape.num_heads
    count = end - begin + follow
    values = place + (count + LANES - 1) // LANES * LANES * size
    for number in range(count):
        at = place + number // LANES * LANES * size + number % LANES
        if follow and number == 0:
            source, key, value = first, 2 * block * width + head * size, (2 * block + 1) * width + head * size
        else:
            source, key = attention, (begin + number - follow) * step + width + head * size
            value = key + width
        for i in range(0, size, LANES):
            store_lanes(packed, at + i * LANES, load(source, key + i))
            store(packed, values + number * size + i, load(source, value + i))


@njit(**OPTIONS)
def _soften(logits, place, num_seen, count, scale):
    """Softmax over the first of `count` products at a place, times a scale; the others become 0."""
    for i in range(num_seen, (count + LANES - 1) // LANES * LANES):
        logits[place + i] = _FAR_BELOW
    factor, most = everywhere(scale), everywhere(_FAR_BELOW)
    for i in range(0, num_seen, LANES):
        most = larger(most, load(logits, place + i))
    most = everywhere(highest(most))
    sums = everywhere(np.float32(0))
    for i in range(0, num_seen, LANES):
        weight = exponential(multiply(subtract(load(logits, place + i), most), factor))
        sums = add(sums, weight)
        store(logits, place + i, weight)
    factor = everywhere(1 / total(sums))
    for i in range(0, num_seen, LANES):
        store(logits, place + i, multiply(load(logits, place + i), factor))
    for i in range(num_seen, count):
        logits[place + i] = np.float32(0)


@njit(**OPTIONS)
def _attend(sequence, wanted, heads, shape, scratch, own):
    """Attention within a sequence, of a group of heads, to `Integers`.

    sequence: its first row and the one behind the last; whether they follow another one, and key and value of
    that in all blocks. wanted: how many rows, and where the first one's result goes. heads: the block, the
    first head, and how many. own: a piece of an array.
    """
    (begin, end, follow, _), (block, head, num_heads), attention = sequence, heads, scratch.attention
    (values, mixed), step, count = own, 3 * shape.width, end - begin + follow
    size = shape.width // shape.num_heads
    scale, num_vectors = np.float32(1 / np.sqrt(size)), (count + LANES - 1) // LANES
    of_group, padded = num_heads * size, num_vectors * LANES
    logits = mixed + _AT_ONCE * of_group
    packed, of_head = logits + _AT_ONCE * padded, (padded + count) * size
    for number in range(num_heads):
        _pack(sequence, block, head + number, shape, attention, (values, packed + number * of_head))
    for row in range(0, wanted[0], _AT_ONCE):
        num_rows = min(_AT_ONCE, wanted[0] - row)
        for number in range(num_heads):
            keys = packed + number * of_head
            of_rows = ((begin + row) * step + (head + number) * size, step, num_rows, size)
            of_keys = (num_vectors, keys, LANES * size, np.int64(LANES))
            multiply_matrix(attention, of_rows, values, of_keys, values, (logits, padded))
            for i in range(num_rows):
                num_seen = row + i + 1 + follow if shape.is_causal else count
                _soften(values, logits + i * padded, num_seen, count, scale)
            of_values = (size // LANES, keys + padded * size, np.int64(LANES), size)
            of_mixed = (mixed + number * size, of_group)
            multiply_matrix(values, (logits, padded, num_rows, count), values, of_values, values, of_mixed)
        for i in range(num_rows):
            pair = ((wanted[1] + row + i) * shape.width + head * size) // 2
            to_integers(values, mixed + i * of_group, of_group, scratch.normal, pair)


_group = njit(**OPTIONS)(_heads_at_once)


@njit(**OPTIONS)
def _attend_item(sequences, block, item, shape, scratch, own):
    """Attention within a sequence, of a group of heads. item: both are counted, groups first."""
    starts, first, width, size = sequences.starts, sequences.first, shape.width, _group(shape)
    number, group = item // (shape.num_heads // size), item % (shape.num_heads // size)
    if shape.is_causal and not sequences.follow and item == 0:
        for i in range(width):
            first[2 * block * width + i] = scratch.attention[width + i]
            first[(2 * block + 1) * width + i] = scratch.attention[2 * width + i]
    sequence = (starts[number], starts[number + 1], np.int64(sequences.follow), first)
    wanted = (starts[number + 1] - starts[number], starts[number])
    if _is_short(block, shape):
        wanted = (np.int64(1), number)
        if item == 0:
            for row in range(len(starts) - 1):
                for i in range(0, width, LANES):
                    store(sequences.rows, row * width + i, load(sequences.rows, starts[row] * width + i))
    _attend(sequence, wanted, (block, group * size, size), shape, scratch, own)


@njit(**OPTIONS)
def _is_short(block, shape):
    """Whether, from attention on, a block is computed for the first row of each sequence alone."""
    return shape.of_first and block == shape.num_blocks - 1


# Stages: of each block a normalisation, a product, attention, a product, a normalisation, two products

_STAGES: Final = 7


@njit(**OPTIONS)
def _extent(stage, sequences, shape):
    """Rows of a stage; columns of its product, 0 where it is none; and how many items it has."""
    block, number = stage // _STAGES, stage % _STAGES
    num_sequences = len(sequences.starts) - 1
    count = num_sequences if number > 2 and _is_short(block, shape) else sequences.starts[num_sequences]
    if number == 2:
        return count, 0, num_sequences * (shape.num_heads // _group(shape))
    if number in (0, 4):
        return count, 0, (count + _NORMALIZED_ROWS - 1) // _NORMALIZED_ROWS
    columns = shape.width
    if number == 1:
        columns = shape.dimension if block == shape.num_blocks else 3 * shape.width
    elif number == 5:
        columns = shape.hidden
    return count, columns, (columns + _COLUMNS - 1) // _COLUMNS * ((count + _ROWS - 1) // _ROWS)


@njit(**OPTIONS)
def _work(stage, item, thread, given):
    """An item of a stage: rows to normalise, heads, or a part of a product. given: as for `_encode`."""
    sequences, weights, shape, scratch = given
    width, hidden, own = shape.width, shape.hidden, (scratch.own, thread * scratch.own_size)
    block, number = stage // _STAGES, stage % _STAGES
    if number == 2:
        _attend_item(sequences, block, item, shape, scratch, own)
        return
    count, columns, _ = _extent(stage, sequences, shape)
    of_attention, of_mixed = packed_size(3 * width, width), packed_size(width, width)
    of_hidden, of_activated = packed_size(hidden, width), packed_size(width, hidden)
    at = block * (14 * width + 2 * hidden)
    place = block * (of_attention + of_mixed + of_hidden + of_activated)
    if number in (0, 4):
        scales = (weights.vectors, at + (10 * width if number else 0))
        begin = item * _NORMALIZED_ROWS
        share = (begin, min(count, begin + _NORMALIZED_ROWS))
        _normalize(sequences.rows, share, shape, scales, own, scratch.normal)
        return
    source, target, size = scratch.normal, sequences.rows, width
    if number == 1:
        kind, at = _BIAS, at + 2 * width
        target = sequences.features if block == shape.num_blocks else scratch.attention
    elif number == 3:
        kind, at, place = _RESIDUAL, at + 8 * width, place + of_attention
    elif number == 5:
        kind = _QUICK_GELU if shape.is_quick else _GELU
        at, place = at + 12 * width, place + of_attention + of_mixed
    else:
        kind, source, size = _RESIDUAL, scratch.hidden, hidden
        at, place = at + 12 * width + 2 * hidden, place + of_attention + of_mixed + of_hidden
    # One product at one place in the code, where it is long.
    num_row_items = (count + _ROWS - 1) // _ROWS
    first, begin = item % num_row_items * _ROWS, item // num_row_items * _COLUMNS
    part = (first, min(count, first + _ROWS), begin, min(columns, begin + _COLUMNS), columns)
    product = (size, place, at, np.int64(kind))
    _multiply(source, product, part, weights, own, (target, scratch.hidden))


@njit(**OPTIONS)
def _work_on(team, thread, given):
    """Items of the stage that is open, until there are no more. Returns which stage it was."""
    while True:
        stage, item = take(team)
        if not is_open(stage) or item >= _extent(stage, given[0], given[2])[2]:
            return stage
        _work(stage, item, thread, given)
        finish(team)


@njit(**OPTIONS)
def _encode(team, given):
    """Sequences through the transformer. team: see `new_team`; others may `_help` with the same arguments.
    given: `Sequences`, `Weights`, `Shape` and `Scratch`."""
    sequences, _, shape, _ = given
    num_stages = _STAGES * shape.num_blocks
    if shape.dimension:  # The last normalisation, and the projection.
        num_stages += 2
    for stage in range(num_stages):
        open_stage(team, stage)
        _work_on(team, np.int64(0), given)
        close_stage(team, _extent(stage, sequences, shape)[2])
    dismiss(team)


@njit(**OPTIONS)
def _help(team, given):
    """Take part in what another thread does with `_encode`, until it has ended."""
    thread = join(team)
    while wait_for_stage(team, _work_on(team, thread, given)):
        pass


def _kernel(source):
    """What is called from outside. source: `SOURCE` of `model.kernels.vectors`."""

    def encode(helps, team, sequences, weights, shape, scratch):
        """`_help` or `_encode`."""
        _ = source
        given = (sequences, weights, shape, scratch)
        if helps:
            _help(team, given)
        else:
            _encode(team, given)

    return encode


def _signature():
    floats, pairs, number, flag = types.float32[::1], types.int32[::1], types.int64, types.boolean
    sequences = types.NamedTuple((floats, number[::1], flag, floats, floats), Sequences)
    weights = types.NamedTuple((pairs, floats), Weights)
    shape = types.NamedTuple((*[number] * 5, types.float64, *[flag] * 3), Shape)
    integers = types.NamedTuple((pairs, floats), Integers)
    scratch = types.NamedTuple((integers, integers, floats, floats, number), Scratch)
    return types.void(flag, number[::1], sequences, weights, shape, scratch)


encode: Final = compiled(_kernel(SOURCE), [_signature()])
"""Sequences through the transformer. With True as the first argument and the same ones otherwise a thread
helps another one; see `_encode` and `_help`."""
