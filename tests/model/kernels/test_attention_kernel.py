"""Attention in blocks: the plain scores for texts and videos of any lengths and similarities."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import TextFeatures, VideoFeatures, XClipConfig
from model.kernels.attention import AttentionScorer, Buffers, VideoBlock
from model.score_names import SCORE_NAMES
from model.scoring import ScoreHead

W, F, D, SCALE = 7, 5, 16, 100.0


@functools.cache
def head_of(dimension: int = D, **choices: Any) -> ScoreHead:
    """Away from the identity, or some mistakes would not show."""
    torch.manual_seed(1)
    clip = {**XClipConfig.tiny().clip, "embed_dim": dimension}
    head = ScoreHead(XClipConfig.tiny(clip=clip, num_words=W, num_frames=F, **choices)).eval()
    with torch.no_grad():
        for matrix in head.parameters():
            matrix.add_(0.05 * torch.randn_like(matrix))
    return head


def features(word_masks: list[list[bool]], frame_masks: list[list[bool]], size: float = 0.4) -> Any:
    """size: the length of a feature; 1 is that of a model, and 0.4 keeps similarities near a model's."""
    torch.manual_seed(2)

    def directions(*shape: int) -> torch.Tensor:
        return size * torch.nn.functional.normalize(torch.randn(*shape, D), dim=-1)

    text = TextFeatures(directions(len(word_masks)), directions(len(word_masks), W), torch.tensor(word_masks))
    frames = directions(len(frame_masks), F).half()
    return text, VideoFeatures(directions(len(frame_masks)), frames, torch.tensor(frame_masks))


def first(count: int, size: int) -> list[bool]:
    return [position < count for position in range(size)]


def assert_equal_to_plain(head: ScoreHead, text: TextFeatures, video: VideoFeatures, budget: int) -> None:
    scale = torch.tensor(SCALE)
    plain = head.unblocked(text, video, scale)
    in_blocks = head.in_blocks(text, video, scale, budget)
    for name in (*SCORE_NAMES, "total"):
        torch.testing.assert_close(getattr(in_blocks, name), getattr(plain, name), atol=1e-4, rtol=1e-5)


lengths = st.tuples(
    st.lists(st.integers(0, W), min_size=1, max_size=9), st.lists(st.integers(0, F), min_size=1, max_size=9)
)


@settings(max_examples=40)
@given(
    lengths,
    st.booleans(),
    st.sampled_from(["both", "words"]),
    st.sampled_from([1, 2 * W * F, 1 << 20]),
    st.sampled_from([0.4, 1.0, 3.0]),
)
def test_texts_and_videos_of_any_lengths_get_the_plain_scores(pair, mask_padding, sides, budget, size):
    words, frames = pair
    text, video = features([first(n, W) for n in words], [first(n, F) for n in frames], size)
    assert_equal_to_plain(head_of(mask_padding=mask_padding, frame_word_sides=sides), text, video, budget)


@settings(max_examples=20)
@given(
    st.lists(st.lists(st.booleans(), min_size=W, max_size=W), min_size=1, max_size=4),
    st.lists(st.lists(st.booleans(), min_size=F, max_size=F), min_size=1, max_size=4),
)
def test_padding_may_be_anywhere(word_masks, frame_masks):
    text, video = features(word_masks, frame_masks)
    assert_equal_to_plain(head_of(), text, video, 1 << 20)


@pytest.mark.parametrize("temperature", [1e-6, 1e-4, 0.01, 1.0, 1e4, 1e6])
def test_any_temperature_gives_the_plain_scores(temperature):
    text, video = features([first(n, W) for n in (2, 7, 7)], [first(n, F) for n in (1, 5, 5)])
    assert_equal_to_plain(head_of(temperature=temperature), text, video, 1 << 20)


@pytest.mark.parametrize(("size", "is_quick"), [(0.4, True), (3.0, False)])
def test_exponentials_that_do_not_fit_into_float32_are_noticed(size, is_quick):
    text, video = features([first(W, W)], [first(F, F)] * 3, size)
    head = head_of()
    buffers = Buffers(torch.device("cpu"))
    scorer = AttentionScorer(head.config, dict(head.named_parameters()), text, SCORE_NAMES, buffers)
    with torch.no_grad():
        found = scorer.score(VideoBlock.of(video, True, buffers))
    assert (found is not None) == is_quick


def test_searches_in_several_threads_do_not_share_buffers():
    text, video = features([first(n, W) for n in (2, 7)], [first(n, F) for n in (1, 5, 5, 3)] * 20)
    head = head_of()
    expected = head.unblocked(text, video, torch.tensor(SCALE)).total

    def score(inference: bool) -> torch.Tensor:
        with torch.inference_mode(inference):
            return head(text, video, torch.tensor(SCALE)).total.clone()

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(score, [True, False] * 20):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_no_texts_and_no_videos_have_no_scores():
    text, video = features([first(3, W)] * 2, [first(2, F)] * 3)
    head = head_of()
    scale = torch.tensor(SCALE)
    assert head(text[:0], video, scale).total.shape == (0, 3)
    assert head(text, video[:0], scale).frame_word.shape == (2, 0)
