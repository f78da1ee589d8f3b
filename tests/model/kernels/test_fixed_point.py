"""Products of 16-bit integers: near those of float64, without overflow, each row for itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.kernels.processor import has_instructions

pytest.importorskip("numba")
if not has_instructions():
    pytest.skip("the kernel is not for this processor", allow_module_level=True)

from model.kernels.fixed_point import BLOCK, Integers, multiply_integers, packed, to_integers
from model.kernels.vectors import LANES

MOST_CHANGE = np.sqrt(BLOCK) / 2 / 32767
"""Of a block of integers by rounding, in lengths of it: where one number is as long as the whole block."""


def products(rows: NDArray[np.float32], matrix: NDArray[np.float32], begin: int = 0) -> NDArray[np.float32]:
    """float32 [M, N - begin LANES]."""
    (count, dimension), size = rows.shape, len(matrix)
    integers = Integers(
        np.empty(count * dimension // 2, np.int32), np.empty(count * dimension // BLOCK, np.float32)
    )
    to_integers(rows.reshape(-1), 0, rows.size, integers, 0)
    packed_matrix, scales = packed(torch.from_numpy(matrix))
    width = size - begin * LANES
    found = np.empty(count * width, np.float32)
    of_matrix = (0, begin, size // LANES)
    multiply_integers(integers, (0, count, dimension), packed_matrix, of_matrix, found, (0, width))
    return found.reshape(count, width) * scales[begin * LANES :]


def most_error(rows: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Of products [M, N], by lengths of blocks; a row of the matrix has one factor, that of its longest."""

    def lengths(values: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.linalg.norm(values.astype(np.float64).reshape(len(values), -1, BLOCK), axis=2)

    # Sums are float32: they are rounded for each block.
    rounding = MOST_CHANGE * (2 + MOST_CHANGE) + rows.shape[1] // BLOCK * 2.0**-23
    return rounding * np.outer(lengths(rows).sum(axis=1), lengths(matrix).max(axis=1))


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 30),
    num_vectors=st.integers(1, 8),
    num_blocks=st.integers(1, 6),
    begin=st.integers(0, 7),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_float64_within_what_rounding_allows(
    num_rows, num_vectors, num_blocks, begin, spread, seed
):
    draw = np.random.default_rng(seed)

    def drawn(count: int) -> NDArray[np.float32]:
        values = draw.standard_normal((count, num_blocks * BLOCK))
        return (values * np.exp(spread * draw.standard_normal(values.shape))).astype(np.float32)

    begin = min(begin, num_vectors - 1)
    rows, matrix = drawn(num_rows), drawn(num_vectors * LANES)
    exact = rows.astype(np.float64) @ matrix.T.astype(np.float64)
    error = np.abs(products(rows, matrix, begin) - exact[:, begin * LANES :])
    assert (error <= most_error(rows, matrix)[:, begin * LANES :]).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("num_equal", [1, 2, 3, BLOCK])
def test_the_largest_sums_do_not_overflow(num_equal, sign):
    rows = np.zeros((2, 2 * BLOCK), np.float32)
    rows[0, :num_equal], rows[1, BLOCK : BLOCK + num_equal] = 3e7, 3e-7
    matrix = np.repeat(np.sign(rows[:1] + rows[1:]), LANES, axis=0) * sign
    exact = rows.astype(np.float64) @ matrix.T.astype(np.float64)
    assert np.allclose(products(rows, matrix), exact, rtol=2 * MOST_CHANGE, atol=0)
    assert (np.sign(products(rows, matrix)) == sign).all()


def test_zeros_stay_zeros_and_no_number_spoils_another_row():
    rows = np.ones((4, 2 * BLOCK), np.float32)
    rows[0], rows[1, 3], rows[2, BLOCK] = 0, np.nan, np.inf
    found = products(rows, np.ones((LANES, 2 * BLOCK), np.float32))
    assert (found[0] == 0).all()
    assert np.isnan(found[1:3]).all()
    assert np.allclose(found[3], 2 * BLOCK, rtol=2 * MOST_CHANGE)
    matrix = np.ones((LANES, 2 * BLOCK), np.float32)
    matrix[2, 5] = np.nan
    found = products(rows[3:], matrix)[0]
    assert np.isnan(found[2]) and np.isfinite(np.delete(found, 2)).all()


def test_a_product_is_the_same_to_the_bit_beside_any_others():
    draw = np.random.default_rng(0)
    rows = draw.standard_normal((25, 3 * BLOCK), np.float32)
    matrix = draw.standard_normal((7 * LANES, 3 * BLOCK), np.float32)
    together = products(rows, matrix)
    for row in (0, 7, 24):
        for begin in (0, 1, 5, 6):
            alone = products(rows[row : row + 1], matrix, begin)
            assert np.array_equal(alone[0], together[row, begin * LANES :])
