"""Frames of 8 bits: as near as half a step, and zeros stay zeros."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from model.quantization import SCALE_BYTES, dequantized, quantized

values = st.floats(-1, 1, width=16)


@given(arrays(np.float16, array_shapes(min_dims=2, max_dims=3, max_side=9), elements=values))
def test_a_value_is_kept_within_half_a_step_of_its_frame(frames):
    kept = quantized(frames)
    assert kept.dtype == np.int8
    assert kept.shape == (*frames.shape[:-1], frames.shape[-1] + SCALE_BYTES)
    step = np.abs(frames.astype(np.float64)).max(axis=-1, keepdims=True) / 127
    found = dequantized(kept)
    assert found.dtype == np.float16
    # float16 rounds what is read: by 2^-11 of it, or, near zero, by the least number that it has.
    bound = 0.5001 * step + np.abs(frames) * 2.0**-10 + 2.0**-24
    assert np.all(np.abs(found.astype(np.float64) - frames) <= bound)


@given(arrays(np.float16, (3, 8), elements=values))
def test_rounding_twice_changes_nothing(frames):
    once = dequantized(quantized(frames))
    largest = np.abs(once).max(axis=-1, keepdims=True)
    assert np.abs(dequantized(quantized(once)) - once).max() <= largest.max() * 2.0**-10 + 2.0**-23
