"""The kernel for processors: the plain scores for texts and videos of any lengths and similarities."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import Scores, TextFeatures, VideoFeatures
from model.features import VideoRecords
from model.kernels import processor
from model.kernels.processor import MIN_TEXTS_PACKED, ROWS_AT_ONCE, CompiledAttention
from model.quantization import quantized
from model.score_names import SCORE_NAMES
from model.scoring import ScoreHead
from tests.model.kernels.test_attention_kernel import SCALE, F, W
from tests.model.kernels.test_attention_kernel import head_of as head_of_dimension

pytest.importorskip("numba")

D = 32
head_of = functools.partial(head_of_dimension, D)
# Sums of a few hundred products of float32, in another order, times the scale and the matrices.
TOLERANCE = {"atol": 1e-4, "rtol": 1e-5}


@functools.cache
def kernel() -> CompiledAttention:
    found = CompiledAttention()
    if not found.prepare():
        pytest.skip("the kernel is not for this processor")
    return found


def features(
    lengths: list[int], masks: list[list[bool]], size: float = 0.4, dtype: torch.dtype = torch.float16
) -> tuple[TextFeatures, VideoFeatures]:
    """size: the length of a feature; 1 is that of a model, and 0.4 keeps similarities near a model's."""
    torch.manual_seed(2)

    def directions(*shape: int) -> torch.Tensor:
        return size * torch.nn.functional.normalize(torch.randn(*shape, D), dim=-1)

    mask = torch.arange(W) < torch.tensor(lengths)[:, None]
    text = TextFeatures(directions(len(lengths)), directions(len(lengths), W), mask)
    frames = directions(len(masks), F).to(dtype)
    return text, VideoFeatures(directions(len(masks)), frames, torch.tensor(masks).view(len(masks), F))


def scores(
    head: ScoreHead,
    text: TextFeatures,
    video: VideoFeatures | VideoRecords,
    wanted: Collection[str] = SCORE_NAMES,
) -> Scores:
    assert kernel().is_for(head.config, text, video)
    found = kernel().scores(head.config, dict(head.named_parameters()), (text, video), SCALE, wanted)
    assert found is not None
    return found


def assert_equal_to_plain(
    head: ScoreHead, text: TextFeatures, video: VideoFeatures, wanted: Collection[str] = SCORE_NAMES
) -> None:
    with torch.no_grad():
        plain = head.unblocked(text, video, torch.tensor(SCALE), wanted)
        found = scores(head, text, video, wanted)
    for name in (*SCORE_NAMES, "total"):
        torch.testing.assert_close(
            getattr(found, name),
            getattr(plain, name),
            equal_nan=True,
            **TOLERANCE,
            msg=lambda m, n=name: n + m,
        )


masks = st.lists(st.lists(st.booleans(), min_size=F, max_size=F), min_size=1, max_size=19)


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, W), min_size=1, max_size=4),
    masks,
    st.booleans(),
    st.sampled_from(["both", "words"]),
    st.sampled_from([0.4, 1.0, 3.0]),
    st.sampled_from([torch.float16, torch.float32]),
)
def test_texts_and_videos_of_any_lengths_get_the_plain_scores(lengths, masks, padding, sides, size, dtype):
    text, video = features(lengths, masks, size, dtype)
    assert_equal_to_plain(head_of(mask_padding=padding, frame_word_sides=sides), text, video)


@settings(max_examples=20)
@given(
    st.lists(st.integers(0, W), min_size=MIN_TEXTS_PACKED, max_size=MIN_TEXTS_PACKED + 2),
    masks,
    st.sampled_from(["both", "words"]),
    st.sets(st.sampled_from(SCORE_NAMES), min_size=1),
)
def test_many_texts_get_the_plain_scores_from_packed_frames(lengths, masks, sides, wanted):
    text, video = features(lengths, masks, dtype=torch.float32)
    assert_equal_to_plain(head_of(mask_padding=True, frame_word_sides=sides), text, video, wanted)


@settings(max_examples=20)
@given(st.sets(st.sampled_from(SCORE_NAMES), min_size=1), st.sets(st.sampled_from(SCORE_NAMES), min_size=1))
def test_only_the_wanted_scores_are_numbers_and_so_is_a_total_of_them(wanted, averaged):
    names = tuple(name for name in SCORE_NAMES if name in averaged)
    text, video = features([3, W, 1], [[True] * F] * 9)
    assert_equal_to_plain(head_of(score_names=names), text, video, wanted)


@pytest.mark.parametrize("num_texts", [2, MIN_TEXTS_PACKED])
def test_a_text_without_words_leaves_the_frames_to_those_after_it(num_texts):
    text, video = features([0] + [3] * (num_texts - 1), [[True] * F] * 3, dtype=torch.float32)
    # What was in memory before is of other videos.
    scores(head_of(), text, video[[2, 2, 2]])
    assert_equal_to_plain(head_of(mask_padding=True), text, video, ["frame_word"])


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 1.0, 1e4])
def test_any_temperature_gives_the_plain_scores(temperature):
    text, video = features([2, 7, 7], [[True] * F] * 3)
    assert_equal_to_plain(head_of(temperature=temperature), text, video)


def test_a_score_is_the_same_to_the_bit_whatever_else_is_scored_on_however_many_threads():
    text, video = features([3, 7], [[True] * F] * 203)
    head = head_of()
    together = scores(head, text, video).total
    many = text[[1] * (1 + ROWS_AT_ONCE)]
    assert torch.equal(scores(head, many, video).total[3], together[1])
    for rows in (slice(5, 6), slice(100, 203)):
        assert torch.equal(scores(head, text[1:], video[rows]).total, together[1:, rows])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(scores(head, text, video).total, together)
    finally:
        torch.set_num_threads(before)


def test_records_of_a_table_get_the_scores_of_their_copies_to_the_bit():
    head = head_of(mask_padding=True)
    text, table = features([3, 7], [[True] * F] * 90)
    numbers = np.random.default_rng(0).permutation(90)[:70]
    mask = torch.rand(70, F, generator=torch.Generator().manual_seed(0)) < 0.7
    records = VideoRecords(table.video, table.frames, numbers, mask)
    copies = records.copied()
    assert torch.equal(copies.frames, table.frames[torch.from_numpy(numbers)])
    for found, expected in zip(
        scores(head, text, records).tensors(), scores(head, text, copies).tensors(), strict=True
    ):
        assert torch.equal(found, expected)


def test_records_of_8_bits_get_the_scores_of_their_copies_to_the_bit_and_nearly_those_of_float32():
    head = head_of(mask_padding=True)
    text, table = features([3, 7], [[True] * F] * 90, dtype=torch.float32)
    numbers = np.random.default_rng(0).permutation(90)[:70]
    frames = torch.from_numpy(quantized(table.frames.numpy()))
    records = VideoRecords(table.video, frames, numbers, table.frame_mask[:70])
    found, copied = scores(head, text, records), scores(head, text, records.copied())
    exact = scores(head, text, table).total[:, numbers]
    for one, other in zip(found.tensors(), copied.tensors(), strict=True):
        assert torch.equal(one, other)
    assert 0 < (found.total - exact).abs().max() < 0.01 * exact.abs().max()


def test_without_a_kernel_records_are_copied_and_scored(monkeypatch):
    monkeypatch.setattr("model.scoring.COMPILED", CompiledAttention())
    head, scale = head_of(), torch.tensor(SCALE)
    text, table = features([3, 7], [[True] * F] * 9)
    records = VideoRecords(table.video, table.frames, np.array([4, 0, 4]), table.frame_mask[:3])
    found = head(text, records, scale).total
    torch.testing.assert_close(found, head(text, table, scale).total[:, [4, 0, 4]], **TOLERANCE)


def test_searches_in_several_threads_do_not_share_memory():
    head = head_of()
    cases = [features([length], [[True] * F] * count) for length, count in ((2, 40), (7, 90), (4, 200))]
    expected = [scores(head, *case).total for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(lambda case: scores(head, *case).total, cases * 20)):
            assert torch.equal(found, expected[number % len(cases)])


def test_matrices_that_were_replaced_are_used():
    torch.manual_seed(3)
    head = ScoreHead(head_of().config).eval()
    text, video = features([5], [[True] * F] * 9)
    assert_equal_to_plain(head, text, video)
    for name in ("word", "local_matrix"):
        size = len(getattr(head, name))
        setattr(head, name, torch.nn.Parameter(torch.randn(size, size)))
    assert_equal_to_plain(head, text, video)
    with torch.no_grad():
        head.frame.mul_(2)
    assert_equal_to_plain(head, text, video)


@pytest.mark.parametrize("sides", ["both", "words"])
def test_features_are_compared_as_they_are_where_the_matrices_are_the_identity(sides, monkeypatch):
    monkeypatch.setattr("model.scoring.COMPILED", kernel())
    head = ScoreHead(head_of(frame_word_sides=sides).config).eval()
    text, video = features([5, W], [[True] * F] * 9)

    def assert_equal() -> None:
        with torch.no_grad():
            plain = head.unblocked(text, video, torch.tensor(SCALE))
            found = head(text, video, torch.tensor(SCALE))
            mapped = text.sentence @ head.global_matrix
        for name in (*SCORE_NAMES, "total"):
            torch.testing.assert_close(getattr(found, name), getattr(plain, name), **TOLERANCE)
        torch.testing.assert_close(head.map_sentences(text.sentence), mapped)

    mapped_rows = []
    map_rows = kernel()._map
    monkeypatch.setattr(kernel(), "_map", lambda *of: (mapped_rows.append(len(of[0])), map_rows(*of)))
    assert_equal()
    assert head.map_sentences(text.sentence) is text.sentence and not mapped_rows
    # Changed in place, as an optimizer does and as weights are loaded, it counts.
    with torch.no_grad():
        head.local_matrix[0, 1] = 0.5
        assert_equal()
        assert mapped_rows == [5 + 1 + W]
        head.global_matrix.mul_(2)
    assert_equal()
    head.load_state_dict(ScoreHead(head.config).state_dict())
    assert_equal()
    assert head.map_sentences(text.sentence) is text.sentence


def test_padding_between_words_is_not_for_the_kernel():
    text, video = features([3], [[True] * F])
    text.word_mask[0] = torch.tensor([True, False, True] + [False] * (W - 3))
    head = head_of()
    found = kernel().scores(head.config, dict(head.named_parameters()), (text, video), SCALE, SCORE_NAMES)
    assert found is None


def test_no_texts_and_no_videos_have_no_scores():
    text, video = features([3, 3], [[True] * F] * 3)
    assert scores(head_of(), text[:0], video).total.shape == (0, 3)
    assert scores(head_of(), text, video[:0]).frame_word.shape == (2, 0)
    scale = torch.tensor(SCALE)
    assert head_of().unblocked(text, video[:0], scale).total.shape == (2, 0)
    assert head_of().match_frames(text[:0], video, scale).shape == (0, 3, F)
    assert head_of().match_frames(text, video[:0], scale).shape == (2, 0, F)


@pytest.mark.parametrize(
    "reason", ["no Numba", "a processor without float16", "a compiler that fails"], ids=lambda r: r
)
def test_without_the_kernel_nothing_is_asked_of_it(reason, monkeypatch, caplog):
    if reason == "no Numba":
        monkeypatch.setattr(processor, "find_spec", lambda name: None)
    elif reason == "a processor without float16":
        monkeypatch.setattr(processor, "has_instructions", lambda: False)
    else:
        monkeypatch.setitem(__import__("sys").modules, "model.kernels.numba_attention", None)
        monkeypatch.delattr("model.kernels.numba_attention", raising=False)
    without = CompiledAttention()
    assert not without.prepare()
    assert not without.prepare()
    assert not without.is_for(head_of().config, *features([3], [[True] * F]))
    assert len(caplog.records) == (reason == "a compiler that fails")


_ON_AVX2 = """
import sys

import llvmlite.binding
import pytest

features = llvmlite.binding.get_host_cpu_features()
features["avx512f"] = False
llvmlite.binding.get_host_cpu_features = lambda: features

from model.kernels.numba_attention import LANES

assert LANES == 8
sys.exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_vectors_of_half_the_length_give_the_same_scores(tmp_path):
    """All tests of this file, compiled for a processor without AVX-512."""
    environment = {**os.environ, "NUMBA_CPU_NAME": "haswell", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _ON_AVX2, __file__, "-m", "not slow"],
        cwd=Path(__file__).parents[3],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "[100%]" in done.stdout, done.stdout + done.stderr
