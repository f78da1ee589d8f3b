"""The Triton kernel of the attention scores (AOSM): gather, multiply, aggregate in one pass over features.

A program has BLOCK_V videos and goes through the texts, one after the other. For each it multiplies the
text's mapped words with all frames of its videos, and keeps that tile of similarities in registers until the
text's four scores of these videos are written: of what is made for a pair nothing but scores goes to memory.
The frames of a program, 48 KiB at 12 x 512, come from memory for the first text; the others find them in the
caches.

Words keep float32's precision in the product with float16 frames on tensor cores: a word is the sum of two
float16 parts, both products are exact in float32 and so are summed (`prepare_texts`).

Importing this needs Triton, which PyTorch brings for GPUs; `model.kernels.gpu` does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.config import XClipConfig
from model.features import TextFeatures, VideoFeatures
from model.score_names import SCORE_NAMES

MAX_TILE_ELEMENTS = 4096
"""Similarities of a program that its registers hold together with what is made of them."""

MAX_WORDS, MAX_FRAMES = 128, 64
"""The kernel is not for more, and both, rounded up to powers of two, are MAX_TILE_ELEMENTS at most."""

TEXTS_A_LAUNCH = 256
"""Texts whose mapped words are in memory together."""

LAUNCH_OPTIONS = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
"""With these the compiler spills no register at up to 32 words and 12 frames, and a block takes less than
99 KiB of shared memory at any size, which GPUs from 8.0 on have."""


class Matrices(NamedTuple):
    """Of the `ScoreHead`, float32, with zeros up to [BLOCK_W, BLOCK_W] and [BLOCK_F, BLOCK_F]."""

    word_logit: Tensor
    frame_logit: Tensor
    word: Tensor
    frame: Tensor
    word_second: Tensor
    frame_second: Tensor


class Texts(NamedTuple):
    """T texts, prepared, with masked words up to BLOCK_W, and the matrices.

    high, low: float16 [T, W, D]; the mapped words are `unit` times their sum. unit: float32 [1]. words:
    float32 [T, W, D]. sentence, mapped_sentence: float32 [T, D]. mask: bool [T, W], true where a word takes
    part.
    """

    high: Tensor
    low: Tensor
    unit: Tensor
    words: Tensor
    sentence: Tensor
    mapped_sentence: Tensor
    mask: Tensor
    matrices: Matrices


class Videos(NamedTuple):
    """A table of N videos, and which of them to score.

    frames: float16 [N, F, D]. pooled: float32 [N, D]. mask: bool [N, F], true where a frame takes part. rows:
    int64 [K], numbers of videos in the table; None for all.
    """

    frames: Tensor
    pooled: Tensor
    mask: Tensor
    rows: Tensor | None


class Variant(NamedTuple):
    """What the kernel is compiled for; each field a `tl.constexpr`.

    BLOCK_*: powers of two, at least 16 but for V. The others: which scores to compute, and whether
    `frame_word` has both its sides.
    """

    NUM_FRAMES: Any
    DIMENSION: Any
    TEMPERATURE: Any
    BLOCK_W: Any
    BLOCK_F: Any
    BLOCK_V: Any
    BLOCK_D: Any
    VIDEO_SENTENCE: Any
    VIDEO_WORD: Any
    SENTENCE_FRAME: Any
    FRAME_WORD: Any
    BOTH_SIDES: Any


def variant_of(
    num_words: int, frames_shape: tuple[int, int], wanted: Collection[str], config: XClipConfig
) -> Variant | None:
    """For texts of at most so many words and frames [F, D]; None: more than the kernel is for."""
    num_frames, dimension = frames_shape
    block_w = max(16, triton.next_power_of_2(num_words))
    block_f = max(16, triton.next_power_of_2(num_frames))
    if block_w > MAX_WORDS or block_f > MAX_FRAMES or block_w * block_f > MAX_TILE_ELEMENTS:
        return None
    # A product of a [W, W] matrix with [W, V] goes through W x W x V numbers.
    largest = max(1, 2 * MAX_TILE_ELEMENTS // block_w**2)
    block_v = min(4, MAX_TILE_ELEMENTS // (block_w * block_f), largest)
    block_d = min(64, max(16, triton.next_power_of_2(dimension)))
    sizes = (num_frames, dimension, config.temperature, block_w, block_f, block_v, block_d)
    is_wanted = [name in wanted for name in SCORE_NAMES]
    return Variant(*map(tl.constexpr, (*sizes, *is_wanted, config.frame_word_sides == "both")))


def attention_scores(
    config: XClipConfig,
    matrices: Mapping[str, Tensor],
    text: TextFeatures,
    video: VideoFeatures,
    wanted: Collection[str],
    rows: Tensor | None = None,
) -> dict[str, Tensor] | None:
    """See `FusedAttention.scores` in `model.kernels.gpu`. Raises whatever Triton raises."""
    variant = variant_of(
        _num_words(text, config), (video.frames.shape[1], video.frames.shape[2]), wanted, config
    )
    if variant is None:
        return None
    frame_mask = video.frame_mask if config.mask_padding else torch.ones_like(video.frame_mask)
    videos = Videos(
        video.frames.contiguous(), video.video.float().contiguous(), frame_mask.contiguous(), rows
    )
    parts = [
        launch(
            prepare_texts(config, matrices, text[first : first + TEXTS_A_LAUNCH], variant), videos, variant
        )
        for first in range(0, max(1, len(text)), TEXTS_A_LAUNCH)
    ]
    scores = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return {name: part for name, part in zip(SCORE_NAMES, scores, strict=True) if name in wanted}


def launch(texts: Texts, videos: Videos, variant: Variant) -> Tensor:
    """float32 [4, T, K] in the order of SCORE_NAMES, not scaled, undefined for what the variant leaves out.

    All tensors are contiguous and on one device.
    """
    num_texts, num_videos = len(texts.words), len(videos.frames if videos.rows is None else videos.rows)
    scores = torch.empty(len(SCORE_NAMES), num_texts, num_videos, device=texts.words.device)
    if scores.numel():
        grid = (triton.cdiv(num_videos, variant.BLOCK_V.value),)
        with torch.cuda.device_of(scores):  # Triton launches on the current device.
            score_kernel[grid](texts, videos, scores, num_texts, num_videos, variant, **LAUNCH_OPTIONS)
    return scores


def prepare_texts(
    config: XClipConfig, matrices: Mapping[str, Tensor], text: TextFeatures, variant: Variant
) -> Texts:
    """With the matrices' corners for as many words as the variant has."""
    block_w, block_f = variant.BLOCK_W.value, variant.BLOCK_F.value
    words, sentence = _fitted(text.words.float(), block_w, 1), text.sentence.float().contiguous()
    mask = text.word_mask if config.mask_padding else torch.ones_like(text.word_mask)
    mapped = words @ matrices["local_matrix"].float()
    # Scaled so that the larger half of a word is below 2^14 and the smaller one, where it counts, is a normal
    # number of float16. By a power of two, which rounds nothing, and on the device, which is not waited for.
    largest = mapped.abs().amax().clamp_min(1e-30) if mapped.numel() else mapped.new_ones(())
    unit = torch.exp2(torch.frexp(largest).exponent.float() - 14).reshape(1)
    mapped = mapped / unit
    high = mapped.half()
    corners = {}
    for name in Matrices._fields:
        size = block_w if name.startswith("word") else block_f
        corners[name] = _fitted(_fitted(matrices[name].float(), size, 0), size, 1)
    return Texts(
        high,
        (mapped - high).half(),
        unit,
        words,
        sentence,
        sentence @ matrices["global_matrix"].float(),
        _fitted(mask, block_w, 1),
        Matrices(**corners),
    )


def _fitted(tensor: Tensor, size: int, dim: int) -> Tensor:
    """Cut, or continued with zeros, to that size; contiguous."""
    tensor = tensor.narrow(dim, 0, min(size, tensor.shape[dim]))
    missing = size - tensor.shape[dim]
    if missing:
        shape = [*tensor.shape]
        shape[dim] = missing
        tensor = torch.cat([tensor, tensor.new_zeros(shape)], dim)
    return tensor.contiguous()


def _num_words(text: TextFeatures, config: XClipConfig) -> int:
    """Positions up to the last that takes part in any text."""
    if not config.mask_padding:
        return text.word_mask.shape[1]
    real = text.word_mask.any(dim=0).nonzero()
    return int(real.max()) + 1 if len(real) else 1


@triton.jit(do_not_specialize=["num_texts", "num_videos"])
def score_kernel(texts, videos, scores, num_texts, num_videos, variant):
    """The scores [4, T, K] of all texts with BLOCK_V videos."""
    column = tl.program_id(0).to(tl.int64) * variant.BLOCK_V + tl.arange(0, variant.BLOCK_V)
    is_video = column < num_videos
    record = column
    if videos.rows is not None:
        record = tl.load(videos.rows + column, mask=is_video, other=0)
    frame = tl.arange(0, variant.BLOCK_F)
    number = record[:, None] * variant.NUM_FRAMES + frame[None, :]  # [V, F]
    is_frame = is_video[:, None] & (frame < variant.NUM_FRAMES)[None, :]
    is_frame = tl.load(videos.mask + number, mask=is_frame, other=0) != 0
    num_videos = num_videos.to(tl.int64)
    for text in range(num_texts):
        is_word = tl.load(texts.mask + (tl.arange(0, variant.BLOCK_W) + text * variant.BLOCK_W)) != 0
        place = (record, is_video, number, is_frame)
        word_frame, sentence_frame, word_video, sentence_video = _similarities(
            texts, videos, text, place, variant
        )
        score = scores + (column + num_videos * text)
        step = num_videos * num_texts
        if variant.VIDEO_SENTENCE:
            tl.store(score, sentence_video, mask=is_video)
        if variant.VIDEO_WORD:
            matrix = _matrix(texts.matrices.word_logit, variant.BLOCK_W)
            found = _attend_words(word_video, is_word, matrix, variant.TEMPERATURE)
            tl.store(score + step, found, mask=is_video)
        if variant.SENTENCE_FRAME:
            matrix = _matrix(texts.matrices.frame_logit, variant.BLOCK_F)
            found = _attend_frames(sentence_frame, is_frame, matrix, variant.TEMPERATURE)
            tl.store(score + 2 * step, found, mask=is_video)
        if variant.FRAME_WORD:
            found = _frame_word(word_frame, (is_word, is_frame), texts.matrices, variant)
            tl.store(score + 3 * step, found, mask=is_video)


@triton.jit
def _similarities(texts, videos, text, place, variant):
    """Of one text: words with frames [W, V * F], sentence with frames [V, F], words [W, V] and sentence [V]
    with videos. Zero for what does not take part, and for what no wanted score needs."""
    record, is_video, number, is_frame = place
    columns: tl.constexpr = variant.BLOCK_V * variant.BLOCK_F
    number, is_real = tl.reshape(number, [columns]), tl.reshape(is_frame, [columns])
    word = tl.arange(0, variant.BLOCK_W)
    word_frame = tl.zeros([variant.BLOCK_W, columns], tl.float32)
    sentence_frame = tl.zeros([columns], tl.float32)
    word_video = tl.zeros([variant.BLOCK_W, variant.BLOCK_V], tl.float32)
    sentence_video = tl.zeros([variant.BLOCK_V], tl.float32)
    for first in range(0, variant.DIMENSION, variant.BLOCK_D):
        d = first + tl.arange(0, variant.BLOCK_D)
        inside = d < variant.DIMENSION
        of_word = (word + text * variant.BLOCK_W)[:, None] * variant.DIMENSION + d[None, :]
        of_sentence = d + text * variant.DIMENSION
        if variant.SENTENCE_FRAME or variant.FRAME_WORD:
            address = videos.frames + number[:, None] * variant.DIMENSION + d[None, :]
            frames = tl.load(address, mask=is_real[:, None] & inside[None, :], other=0.0)
        if variant.FRAME_WORD:
            high = tl.load(texts.high + of_word, mask=inside[None, :], other=0.0)
            low = tl.load(texts.low + of_word, mask=inside[None, :], other=0.0)
            word_frame = tl.dot(low, tl.trans(frames), word_frame)
            word_frame = tl.dot(high, tl.trans(frames), word_frame)
        if variant.SENTENCE_FRAME:
            sentence = tl.load(texts.sentence + of_sentence, mask=inside, other=0.0)
            sentence_frame += tl.sum(frames.to(tl.float32) * sentence[None, :], 1)
        if variant.VIDEO_WORD or variant.VIDEO_SENTENCE:
            address = videos.pooled + record[:, None] * variant.DIMENSION + d[None, :]
            pooled = tl.load(address, mask=is_video[:, None] & inside[None, :], other=0.0)
        if variant.VIDEO_WORD:
            words = tl.load(texts.words + of_word, mask=inside[None, :], other=0.0)
            word_video += tl.sum(words[:, None, :] * pooled[None, :, :], 2)
        if variant.VIDEO_SENTENCE:
            sentence = tl.load(texts.mapped_sentence + of_sentence, mask=inside, other=0.0)
            sentence_video += tl.sum(pooled * sentence[None, :], 1)
    sentence_frame = tl.reshape(sentence_frame, [variant.BLOCK_V, variant.BLOCK_F])
    return word_frame * tl.load(texts.unit), sentence_frame, word_video, sentence_video


@triton.jit
def _frame_word(similarity, masks, matrices, variant):
    """[W, V * F] to [V], in both orders. Masked frames have similarity 0 already, masked words not."""
    is_word, is_frame = masks
    shape: tl.constexpr = [variant.BLOCK_W, variant.BLOCK_V, variant.BLOCK_F]
    similarity = tl.where(is_word[:, None], similarity, 0.0)
    # Frames first. A product with the frames' matrix has one row for each word and video.
    matrix = _matrix(matrices.frame, variant.BLOCK_F)
    by_word = tl.reshape(similarity, [variant.BLOCK_W * variant.BLOCK_V, variant.BLOCK_F])
    projected = tl.reshape(tl.dot(by_word, tl.trans(matrix), input_precision="tf32x3"), shape)
    attention = _softmax(tl.reshape(similarity, shape), is_frame[None, :, :], 2, variant.TEMPERATURE)
    per_word = tl.sum(attention * projected, 2)  # [W, V]
    matrix = _matrix(matrices.word_second, variant.BLOCK_W)
    score = _attend_words(per_word, is_word, matrix, variant.TEMPERATURE)
    if variant.BOTH_SIDES:
        matrix = _matrix(matrices.word, variant.BLOCK_W)
        projected = tl.dot(matrix, similarity, input_precision="tf32x3")
        attention = _softmax(similarity, is_word[:, None], 0, variant.TEMPERATURE)
        per_frame = tl.reshape(tl.sum(attention * projected, 0), [variant.BLOCK_V, variant.BLOCK_F])
        matrix = _matrix(matrices.frame_second, variant.BLOCK_F)
        score = (score + _attend_frames(per_frame, is_frame, matrix, variant.TEMPERATURE)) / 2
    return score


@triton.jit
def _attend_words(similarity, is_word, matrix, temperature):
    """[W, V] to [V]."""
    similarity = tl.where(is_word[:, None], similarity, 0.0)
    projected = tl.sum(matrix[:, :, None] * similarity[None, :, :], 1)
    return tl.sum(_softmax(similarity, is_word[:, None], 0, temperature) * projected, 0)


@triton.jit
def _attend_frames(similarity, is_frame, matrix, temperature):
    """[V, F], zero where masked, to [V]."""
    projected = tl.sum(matrix[None, :, :] * similarity[:, None, :], 2)
    return tl.sum(_softmax(similarity, is_frame, 1, temperature) * projected, 1)


@triton.jit
def _softmax(similarity, is_real, axis: tl.constexpr, temperature):
    """Of similarities divided by the temperature; zero where masked, also where all are."""
    exponent = tl.where(is_real, similarity / temperature, float("-inf"))
    largest = tl.max(exponent, axis, keep_dims=True)
    exponentials = tl.exp(exponent - tl.where(largest == float("-inf"), 0.0, largest))
    total = tl.sum(exponentials, axis, keep_dims=True)
    return exponentials / tl.where(total == 0.0, 1.0, total)


@triton.jit
def _matrix(address, BLOCK: tl.constexpr):  # noqa: N803
    i = tl.arange(0, BLOCK)
    return tl.load(address + i[:, None] * BLOCK + i[None, :])
