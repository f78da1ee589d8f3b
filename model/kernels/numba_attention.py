"""All scores of texts with videos in one pass over the features, on a processor: a kernel in Numba.

Importing this module compiles the kernel, in seconds, or reads what was compiled before from Numba's cache.

A block is as many videos as a vector has lanes. Of each video frames are widened to float32, which stays in
the first cache, and multiplied with a text's words and its sentence there. The products of a block, which
stay there too, lie as [W + 1, F, lanes]: all that follows is arithmetic on whole vectors, one video a lane.
Nothing else is written but scores. A score depends on its text and its video alone, to the last bit: not on
what else is scored, nor on how many threads do it. Only where many texts are evaluated (`Plan.is_packed`)
are products summed in another order: a block's features are packed one video a lane, once for all texts, and
there are no lanes to add up.

Most of the time goes into products of numbers with vectors (`multiply_tile`): of words with packed frames,
and of AOSM matrices with similarities. A tile keeps its sums in registers, and reads few values for each.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from model.kernels.products import multiply_matrix, multiply_rows
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
    load_halves,
    load_integers,
    multiply,
    multiply_add,
    prefetch,
    put_sums,
    store,
    store_lanes,
    subtract,
    where,
)
from model.quantization import SCALE_BYTES

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

    frames: of [N, F, D] float16 or float32, or [N, F, D + 4] int8, the bytes: what a kernel is compiled for
    is one kind of array. pooled: float32 [N * D]. mask: bool [V * F], true where a frame takes part.
    """

    frames: NDArray[np.uint8]
    pooled: NDArray[np.float32]
    mask: NDArray[np.bool_]
    records: NDArray[np.int64]


class Plan(NamedTuple):
    """What to compute, with F frames of D values, D a multiple of LANES.

    value_bytes: of a frame's float16, float32 or int8. most_words: the model's number of words, the size of
    its matrices. scale: of every score. weights: float32 [4], of each score in the total. is_packed: whether
    videos are brought into an order in which several texts are multiplied sooner; their frames are float32.
    The last five say which scores are wanted, and whether `frame_word` has both sides.
    """

    num_frames: int
    dimension: int
    value_bytes: int
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
    """float32, flat, of one thread; sizes by `scratch_sizes`.

    missing: of each frame and lane 0, or a number below all similarities where it takes no part.
    """

    frames: NDArray[np.float32]
    packed: NDArray[np.float32]
    frame_products: NDArray[np.float32]
    video_products: NDArray[np.float32]
    missing: NDArray[np.float32]
    projected: NDArray[np.float32]
    steps: NDArray[np.float32]
    zeros: NDArray[np.float32]


def scratch_sizes(plan: Plan, num_texts: int, num_words: int) -> Scratch:
    """How many values each needs, for texts of at most `num_words`."""
    rows, frames = num_words + 1, plan.num_frames
    held: Any = (
        (LANES if num_texts > 1 and not plan.is_packed else 1) * frames * plan.dimension,
        LANES * (frames + 1) * plan.dimension if plan.is_packed else 0,
        rows * frames * LANES,
        rows * LANES,
        frames * LANES,
        3 * max(rows, frames) * LANES,
        max(rows, frames, 5) * LANES,
        LANES,
    )
    return Scratch(*held)


# Kernels

_FAR_BELOW: Final = -1e30
"""Below all similarities divided by a temperature."""


@njit(**OPTIONS)
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


@njit(**OPTIONS)
def _four_by_one(left, at, right, row, dimension):
    """Products of the vectors of `left` at four places with the row of `right` at `row`."""
    a, b, c, d = at
    a0 = b0 = c0 = d0 = everywhere(np.float32(0))
    for i in range(0, dimension, LANES):
        x = load(right, row + i)
        a0, b0 = multiply_add(load(left, a + i), x, a0), multiply_add(load(left, b + i), x, b0)
        c0, d0 = multiply_add(load(left, c + i), x, c0), multiply_add(load(left, d + i), x, d0)
    return a0, b0, c0, d0


@njit(**OPTIONS)
def _products(left, at, right, rows, found, places):
    """Products of four vectors with rows. rows: the first, how many, and their dimension. places: where the
    first product goes, and the steps to that of the next vector and of the next row."""
    row, num_rows, dimension = rows
    place, step, row_step = places
    number = 0
    while number + 3 <= num_rows:
        first, second, third = _four_by_three(left, at, right, row, dimension)
        put_sums(found, place, step, first)
        put_sums(found, place + row_step, step, second)
        put_sums(found, place + 2 * row_step, step, third)
        number, row, place = number + 3, row + 3 * dimension, place + 3 * row_step
    while number < num_rows:
        put_sums(found, place, step, _four_by_one(left, at, right, row, dimension))
        number, row, place = number + 1, row + dimension, place + row_step


@njit(**OPTIONS)
def _weigh(values, at, missing, projected, place_and_step):
    """Vectors of `projected`, weighted by a softmax over similarities: a vector. at: see `_attend`."""
    start, step, count = at
    penalties, penalty_step = missing
    place, projected_step = place_and_step
    largest = everywhere(np.float32(-3e38))
    for i in range(count):
        largest = larger(largest, add(load(values, start + i * step), load(penalties, i * penalty_step)))
    weighted = weights = everywhere(np.float32(0))
    for i in range(count):
        value = add(load(values, start + i * step), load(penalties, i * penalty_step))
        weight = exponential(subtract(value, largest))
        weighted = multiply_add(weight, load(projected, place + i * projected_step), weighted)
        weights = add(weights, weight)
    # A softmax over nothing weighs nothing.
    return divide(weighted, larger(weights, everywhere(np.float32(1e-30))))


@njit(**OPTIONS)
def _attend(values, at, matrix, missing, scratch):
    """AOSM of similarities divided by the temperature, which the result is as well: a vector.

    at: the place of the first similarities in `values`, the step to the next, and their number N, which may
    be 0. matrix: [size, size], of which the corner for N counts, and its size. missing: an array of what is
    added to each in the softmax, and the step from one to the next; similarities are 0 where it is not 0.
    """
    start, step, count = at
    factors, size = matrix
    places = (0, LANES, 0)
    multiply_rows(factors, (0, size, count, count), values, (step, start), scratch.projected, places)
    return _weigh(values, at, missing, scratch.projected, (0, LANES))


@njit(**OPTIONS)
def _attend_each(values, columns, matrix, missing, scratch):
    """`_attend` of several columns of similarities, to `scratch.steps`. columns: the step from one to the
    next, and how many; the step from one similarity to the next, and how many a column has."""
    column_step, num_columns, step, count = columns
    factors, size = matrix
    projected = scratch.projected
    for a in range(0, num_columns, 3):
        # Behind the last column, the last again.
        b, c = min(a + 1, num_columns - 1), min(a + 2, num_columns - 1)
        of = (step, a * column_step, b * column_step, c * column_step)
        places = (0, 3 * LANES, 0, LANES, 2 * LANES)
        multiply_rows(factors, (0, size, count, count), values, of, projected, places)
        for column in range(a, min(a + 3, num_columns)):
            at = (column * column_step, step, count)
            found = _weigh(values, at, missing, projected, ((column - a) * LANES, 3 * LANES))
            store(scratch.steps, column * LANES, found)


@njit(**OPTIONS)
def _frame_word(num_words, matrices, plan, scratch):
    """Divided by the temperature: a vector."""
    frames, steps, products = plan.num_frames, scratch.steps, scratch.frame_products
    of_frames, of_words = (scratch.missing, LANES), (scratch.zeros, 0)
    size = frames * LANES
    _attend_each(products, (size, num_words, LANES, frames), (matrices.frame, frames), of_frames, scratch)
    matrix = (matrices.word_second, plan.most_words)
    by_words = _attend(steps, (0, LANES, num_words), matrix, of_words, scratch)
    if not plan.both_sides:
        return by_words
    matrix = (matrices.word, plan.most_words)
    _attend_each(products, (LANES, frames, size, num_words), matrix, of_words, scratch)
    matrix = (matrices.frame_second, frames)
    by_frames = _attend(steps, (0, LANES, frames), matrix, of_frames, scratch)
    return multiply(add(by_frames, by_words), everywhere(np.float32(0.5)))


@njit(**OPTIONS)
def _scores_of_block(num_words, matrices, plan, scratch):
    """Put the four scores and the total of a block, from its products, as vectors into `scratch.steps`."""
    frames, most_words = plan.num_frames, plan.most_words
    scale = everywhere(np.float32(plan.scale))
    per_similarity = everywhere(np.float32(plan.scale * plan.temperature))
    of_frames, of_words = (scratch.missing, LANES), (scratch.zeros, 0)
    video_sentence = video_word = sentence_frame = frame_word = everywhere(np.float32(np.nan))
    if plan.video_sentence:
        place = num_words * LANES if plan.video_word else 0
        video_sentence = multiply(load(scratch.video_products, place), scale)
    if plan.video_word:
        at = (0, LANES, num_words)
        matrix = (matrices.word_logit, most_words)
        found = _attend(scratch.video_products, at, matrix, of_words, scratch)
        video_word = multiply(found, per_similarity)
    if plan.sentence_frame:
        at = (num_words * frames * LANES if plan.frame_word else 0, LANES, frames)
        matrix = (matrices.frame_logit, frames)
        found = _attend(scratch.frame_products, at, matrix, of_frames, scratch)
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


@njit(**OPTIONS)
def _divide_products(num_rows, num_video_words, plan, scratch):
    """By the temperature; those of a frame that takes no part become zero."""
    zero, factor = everywhere(np.float32(0)), everywhere(np.float32(1 / plan.temperature))
    for row in range(num_rows):
        for frame in range(plan.num_frames):
            place = (row * plan.num_frames + frame) * LANES
            product = multiply(load(scratch.frame_products, place), factor)
            store(scratch.frame_products, place, where(load(scratch.missing, frame * LANES), zero, product))
    for row in range(num_video_words):
        product = load(scratch.video_products, row * LANES)
        store(scratch.video_products, row * LANES, multiply(product, factor))


@njit(**OPTIONS)
def _mark_missing(videos, block, plan, scratch):
    """Which frames take no part. block: the first video, and the one behind the last."""
    first, end = block
    frames = plan.num_frames
    for lane in range(LANES):
        begin = min(first + lane, end - 1) * frames
        for frame in range(frames):
            is_real = videos.mask[begin + frame]
            scratch.missing[frame * LANES + lane] = np.float32(0 if is_real else _FAR_BELOW)


@njit(**OPTIONS)
def _widen(videos, video, following, place, plan, scratch):
    """Frames of a video to scratch.frames[place] as float32. following: the video whose turn is next: the
    processor has time to fetch its frames while those of this one are multiplied."""
    dimension, size = plan.dimension, plan.value_bytes
    step = dimension * size + (SCALE_BYTES if size == 1 else 0)
    begin = videos.records[video] * plan.num_frames * step
    ahead = videos.records[following] * plan.num_frames * step - begin
    for _ in range(plan.num_frames):
        for i in range(0, dimension, LANES):
            prefetch(videos.frames, begin + ahead + i * size)
            if size == 2:
                value = load_halves(videos.frames, begin + i * size)
            elif size == 4:
                value = load(videos.frames, begin + i * size)
            else:
                value = load_integers(videos.frames, begin + i, begin + dimension)
            store(scratch.frames, place + i, value)
        begin, place = begin + step, place + dimension


@njit(**OPTIONS)
def _pack(features, records, block, size, packed, place):
    """`size` values float32 of each video of a block to packed[place], [size, LANES]. block: the first video,
    and the one behind the last. `features` are float32, or the bytes of them."""
    first, end = block
    unit = 4 // features.itemsize
    for i in range(0, size, LANES):
        for lane in range(LANES):
            begin = records[min(first + lane, end - 1)] * size + i
            store_lanes(packed, place + i * LANES + lane, load(features, begin * unit))


@njit(**OPTIONS)
def _pack_videos(videos, block, plan, scratch):
    """Frames and pooled features to scratch.packed, [F + 1, D, LANES]."""
    size = plan.num_frames * plan.dimension
    if plan.frame_word or plan.sentence_frame:
        _pack(videos.frames, videos.records, block, size, scratch.packed, 0)
    if plan.video_word or plan.video_sentence:
        _pack(videos.pooled, videos.records, block, plan.dimension, scratch.packed, size * LANES)


@njit(**OPTIONS)
def _multiply_packed(texts, frame_rows, video_rows, plan, scratch):
    """Products of scratch.packed with rows of a text. frame_rows: the first of those for frames, how many,
    and their dimension; video_rows: likewise for pooled features."""
    row, num_rows, dimension = frame_rows
    frames, size = plan.num_frames, dimension * LANES
    of = (row, dimension, num_rows, dimension)
    for a in range(0, frames, 3):
        b, c = min(a + 1, frames - 1), min(a + 2, frames - 1)  # Behind the last, the last again.
        columns = (LANES, a * size, b * size, c * size)
        places = (0, frames * LANES, a * LANES, b * LANES, c * LANES)
        multiply_rows(texts.with_frames, of, scratch.packed, columns, scratch.frame_products, places)
    row, num_rows, dimension = video_rows
    of = (row, dimension, num_rows, dimension)
    of_pooled = (LANES, frames * size)
    multiply_rows(texts.with_videos, of, scratch.packed, of_pooled, scratch.video_products, (0, LANES, 0))


@njit(**OPTIONS)
def _multiply_frames(texts, rows, videos, block, plan, scratch):
    """Products of a block's frames with rows of a text. rows: the first, how many, and their dimension.
    block: the first video, and the one behind the last; whether it is the first text, and the only one."""
    first, end, is_first, is_only = block
    frames, dimension = plan.num_frames, plan.dimension
    for lane in range(LANES if plan.frame_word or plan.sentence_frame else 0):
        place = 0 if is_only else lane * frames * dimension
        if is_first:
            video = min(first + lane, end - 1)
            _widen(videos, video, min(video + 1, len(videos.records) - 1), place, plan, scratch)
        for frame in range(0, frames, 4):
            number = min(frame, frames - 4)  # Where four do not divide their number, some are done twice.
            a = place + number * dimension
            at = (a, a + dimension, a + 2 * dimension, a + 3 * dimension)
            places = (number * LANES + lane, LANES, frames * LANES)
            _products(scratch.frames, at, texts.with_frames, rows, scratch.frame_products, places)


@njit(**OPTIONS)
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


@njit(**OPTIONS)
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
        _mark_missing(videos, (first, end), plan, scratch)
        if plan.is_packed:
            _pack_videos(videos, (first, end), plan, scratch)
        for text in range(num_texts):
            num_words = texts.num_words[text]
            num_rows, num_video_words = num_words * plan.frame_word, num_words * plan.video_word
            frame_rows = (frame_row, num_rows + plan.sentence_frame, dimension)
            video_rows = (video_row, num_video_words + plan.video_sentence, dimension)
            if plan.is_packed:
                _multiply_packed(texts, frame_rows, video_rows, plan, scratch)
            else:
                block = (first, end, text == 0, num_texts == 1)
                _multiply_frames(texts, frame_rows, videos, block, plan, scratch)
                _multiply_videos(texts, video_rows, videos, (first, end), plan, scratch)
            frame_row += frame_rows[1] * dimension
            video_row += video_rows[1] * dimension
            _divide_products(frame_rows[1], num_video_words, plan, scratch)
            _scores_of_block(num_words, matrices, plan, scratch)
            for number in range(5):
                place = (number * num_texts + text) * num_videos + first
                for lane in range(num_lanes):
                    found[place + lane] = scratch.steps[number * LANES + lane]


def _kernels(source):
    """What is called from outside. source: `SOURCE` of `model.kernels.vectors`."""

    def score(texts, videos, matrices, plan, scratch, target):
        """See `_score`."""
        _ = source
        _score(texts, videos, matrices, plan, scratch, target)

    def map_rows(rows, count, matrix, dimension, found):
        """`count` rows times a matrix [D, D], all flat, on one thread: several would wait for each other, on
        a busy machine longer than the few rows of a text take."""
        _ = source
        of_rows, of_matrix = (0, dimension, count, dimension), (dimension // LANES, 0, LANES, dimension)
        multiply_matrix(rows, of_rows, matrix, of_matrix, found, (0, dimension))

    return score, map_rows


def _signature() -> Any:
    """Of `_score`."""
    floats, numbers, flag = types.float32[::1], types.int64[::1], types.boolean
    matrices, scratch = (types.NamedUniTuple(floats, len(kind._fields), kind) for kind in (Matrices, Scratch))
    plan = types.NamedTuple((*[types.int64] * 4, *[types.float64] * 2, floats, *[flag] * 6), Plan)
    texts = types.NamedTuple((floats, floats, numbers), Texts)
    videos = types.NamedTuple((types.uint8[::1], floats, types.boolean[::1], numbers), Videos)
    target = types.Tuple((floats, *[types.int64] * 3))
    return types.void(texts, videos, matrices, plan, scratch, target)


_functions = _kernels(SOURCE)

score: Final = compiled(_functions[0], [_signature()])
"""All texts with some videos, see `_score`."""

map_rows: Final = compiled(
    _functions[1], [types.void(*[types.float32[::1], types.int64] * 2, types.float32[::1])]
)
"""Rows times a matrix."""
