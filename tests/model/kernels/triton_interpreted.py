"""The Triton kernel in Triton's interpreter, against the plain scores; run by test_triton_attention.py.

Triton has to be imported with TRITON_INTERPRET=1, so that this is a pytest run of its own.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import XClipConfig, scoring
from model.kernels.gpu import FusedAttention
from model.score_names import SCORE_NAMES
from model.scoring import ScoreHead
from tests.model.kernels.test_attention_kernel import SCALE, F, W, features, first, head_of

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.fail("run with TRITON_INTERPRET=1")

BOUND = {"atol": 1e-4, "rtol": 1e-5}
"""That of the blocks on a processor, for scores up to 100: float32 rounding of D products, and of exponents
up to 100."""

counts = st.integers(0, W), st.integers(0, F)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The head takes the kernel on a processor too, and no failure is taken for the other way's success."""
    fused = FusedAttention("cpu")
    monkeypatch.setattr(scoring, "FUSED", fused)
    yield
    text, video = features([first(1, W)], [first(1, F)])
    assert fused.is_for(head_of().config, text, video), "the kernel failed"


def assert_equal_to_plain(head, text, video, wanted=SCORE_NAMES):
    scale = torch.tensor(SCALE)
    plain, found = head.unblocked(text, video, scale, wanted), head(text, video, scale, wanted)
    for name in (*SCORE_NAMES, "total"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), **BOUND, equal_nan=True)


@settings(max_examples=15)
@given(
    st.lists(counts[0], min_size=1, max_size=3),
    st.lists(counts[1], min_size=1, max_size=6),
    st.booleans(),
    st.sampled_from(["both", "words"]),
    st.sampled_from([0.4, 1.0, 3.0]),
)
def test_texts_and_videos_of_any_lengths_get_the_plain_scores(words, frames, mask_padding, sides, size):
    text, video = features([first(n, W) for n in words], [first(n, F) for n in frames], size)
    assert_equal_to_plain(head_of(mask_padding=mask_padding, frame_word_sides=sides), text, video)


@settings(max_examples=8)
@given(
    st.lists(st.lists(st.booleans(), min_size=W, max_size=W), min_size=1, max_size=2),
    st.lists(st.lists(st.booleans(), min_size=F, max_size=F), min_size=1, max_size=5),
)
def test_padding_may_be_anywhere(word_masks, frame_masks):
    assert_equal_to_plain(head_of(), *features(word_masks, frame_masks))


@settings(max_examples=8)
@given(st.lists(st.integers(0, 6), min_size=0, max_size=9), st.integers(1, 3))
def test_rows_are_gathered_in_their_order(rows, num_texts):
    text, video = features(
        [first(3 + n, W) for n in range(num_texts)], [first(n % F + 1, F) for n in range(7)]
    )
    head, numbers = head_of(), torch.tensor(rows, dtype=torch.int64)
    found = scoring.FUSED.scores(
        head.config, dict(head.named_parameters()), text, video, SCORE_NAMES, numbers
    )
    plain = head.unblocked(text, video, torch.tensor(1.0))
    for name in SCORE_NAMES:
        torch.testing.assert_close(found[name], getattr(plain, name)[:, numbers], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("wanted", [SCORE_NAMES[:1], SCORE_NAMES[:2], SCORE_NAMES[2:3], SCORE_NAMES[3:], ()])
def test_scores_that_are_not_wanted_are_not_a_number(wanted):
    text, video = features([first(4, W)] * 2, [first(3, F)] * 3)
    assert_equal_to_plain(head_of(), text, video, wanted)


@pytest.mark.parametrize("shape", [(33, 17, 80), (16, 16, 64), (3, 1, 8)])
def test_sizes_at_and_beyond_the_edges_of_blocks(shape):
    num_words, num_frames, dimension = shape
    torch.manual_seed(3)
    tiny = XClipConfig.tiny().clip
    clip = {**tiny, "embed_dim": dimension, "text_cfg": {**tiny["text_cfg"], "context_length": 77}}
    head = ScoreHead(XClipConfig.tiny(clip=clip, num_words=num_words, num_frames=num_frames)).eval()
    for matrix in head.parameters():
        matrix.data.add_(0.02 * torch.randn_like(matrix))

    def unit(*shape):
        return torch.nn.functional.normalize(torch.randn(*shape, dimension), dim=-1)

    lengths = torch.tensor([num_words, max(1, num_words - 2)])
    text = scoring.TextFeatures(unit(2), unit(2, num_words), torch.arange(num_words) < lengths[:, None])
    frames = unit(3, num_frames).half()
    video = scoring.VideoFeatures(unit(3), frames, torch.ones(3, num_frames).bool())
    assert_equal_to_plain(head, text, video)


def test_words_far_longer_than_one_fit_into_float16():
    text, video = features([first(W, W)], [first(F, F)] * 2)
    head = ScoreHead(head_of(temperature=1e4).config).eval()
    with torch.no_grad():
        head.local_matrix.mul_(1e6)
    plain = head.unblocked(text, video, torch.tensor(1.0)).frame_word
    torch.testing.assert_close(head(text, video, torch.tensor(1.0)).frame_word, plain, atol=1.0, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-4, 1.0])
def test_other_temperatures_give_the_plain_scores(temperature):
    text, video = features([first(n, W) for n in (2, 7)], [first(n, F) for n in (1, 5)])
    assert_equal_to_plain(head_of(temperature=temperature), text, video)


def test_many_texts_are_prepared_in_parts(monkeypatch):
    from model.kernels import triton_attention

    monkeypatch.setattr(triton_attention, "TEXTS_A_LAUNCH", 2)
    text, video = features([first(n + 1, W) for n in range(5)], [first(F, F)] * 2)
    assert_equal_to_plain(head_of(), text, video)


def test_no_texts_and_no_videos_have_no_scores():
    text, video = features([first(3, W)] * 2, [first(2, F)] * 3)
    head, scale = head_of(), torch.tensor(SCALE)
    assert head(text[:0], video, scale).total.shape == (0, 3)
    assert head(text, video[:0], scale).frame_word.shape == (2, 0)
