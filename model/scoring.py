"""The four scores and attention over the similarity matrix (AOSM), arXiv:2207.07285 section 3.4.

Weights come from a softmax of the similarities at temperature 0.01, are multiplied by a learned matrix from
the right and not normalised again: score = sum_j (sum_i a_i W[i, j]) c_j. That equals sum_i a_i (W c)_i.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.errors import ShapeError
from model.features import Scores, TextFeatures, VideoFeatures

TEMPERATURE = 0.01
"""Softmax temperature of AOSM (official modules/modeling.py)."""

MAX_BLOCK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Similarities [T, W, V, F] held at once outside training, by kind of device; bounds memory. 1 MiB a
temporary stays within a processor's caches (benchmarks/scoring.py); a GPU wants large pieces."""


class ScoreMatrices(nn.Module):
    """The learned matrices of AOSM, identity at first. `[D, D]`: global, local.

    Those of words are `[W, W]`, those of frames `[F, F]`.

    `word_logit`, `frame_logit`: the cross-grained scores. `word`, `frame`: first aggregation of `frame_word`.
    `word_second`, `frame_second`: its second aggregation.
    """

    def __init__(self, dimension: int, num_words: int, num_frames: int) -> None:
        super().__init__()
        self.global_matrix = nn.Parameter(torch.eye(dimension))
        self.local_matrix = nn.Parameter(torch.eye(dimension))
        self.word_logit = nn.Parameter(torch.eye(num_words))
        self.frame_logit = nn.Parameter(torch.eye(num_frames))
        self.word = nn.Parameter(torch.eye(num_words))
        self.frame = nn.Parameter(torch.eye(num_frames))
        self.word_second = nn.Parameter(torch.eye(num_words))
        self.frame_second = nn.Parameter(torch.eye(num_frames))


def attend(similarity: Tensor, matrix: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """AOSM: reduce dimension `dim` of `similarity` to one value.

    similarity: float, any shape. matrix: float [N, N] with N the size of `dim`, which is 1 or the last.
    mask: bool, broadcastable to `similarity`, or None. Masked entries take no part; where all are masked the
    result is 0.
    """
    if mask is None:
        attention = (similarity / TEMPERATURE).softmax(dim)
    else:
        attention = (similarity / TEMPERATURE).masked_fill(~mask, float("-inf")).softmax(dim)
        # A softmax over nothing is NaN; nothing is what it weighs.
        attention = attention.masked_fill(~mask, 0.0)
        similarity = similarity.masked_fill(~mask, 0.0)
    # The matrix goes to the similarities, not to the attention: the same sum without a transposed copy.
    if dim == similarity.ndim - 1:
        projected = similarity @ matrix.T
    else:
        projected = (matrix @ similarity.flatten(2)).view_as(similarity)
    return (attention * projected).sum(dim)


def score_features(
    text: TextFeatures,
    video: VideoFeatures,
    matrices: ScoreMatrices,
    scale: Tensor,
    *,
    mask_padding: bool,
    score_names: tuple[str, ...],
) -> Scores:
    """Every text with every video, in one piece (see `score_in_blocks`).

    Shapes: text T x W x D, video V x F x D; scale: [] float, exp(logit_scale). Returns float32 [T, V] each.
    """
    num_words, num_frames = matrices.word.shape[0], matrices.frame.shape[0]
    if text.words.shape[1] != num_words or video.frames.shape[1] != num_frames:
        raise ShapeError(
            f"this model scores {num_words} words with {num_frames} frames, "
            f"not {text.words.shape[1]} with {video.frames.shape[1]}"
        )
    words, sentence = text.words.float(), text.sentence.float()
    frames, pooled = video.frames.float(), video.video.float()
    word_mask = text.word_mask[:, :, None] if mask_padding else None  # [T, W, 1]
    frame_mask = video.frame_mask if mask_padding else None  # [V, F]

    video_sentence = sentence @ matrices.global_matrix @ pooled.T  # [T, V]
    video_word = attend(words @ pooled.T, matrices.word_logit, word_mask, dim=1)  # [T, W, V] -> [T, V]
    sentence_frame = attend(  # [T, V, F] -> [T, V]
        torch.einsum("td,vfd->tvf", sentence, frames), matrices.frame_logit, frame_mask, dim=2
    )
    frame_word = _frame_word(words @ matrices.local_matrix, frames, word_mask, frame_mask, matrices)
    scores = {
        "video_sentence": video_sentence * scale,
        "video_word": video_word * scale,
        "sentence_frame": sentence_frame * scale,
        "frame_word": frame_word * scale,
    }
    total = torch.stack([scores[name] for name in score_names]).mean(0)
    return Scores(**scores, total=total)


def _frame_word(
    words: Tensor,
    frames: Tensor,
    word_mask: Tensor | None,
    frame_mask: Tensor | None,
    matrices: ScoreMatrices,
) -> Tensor:
    similarity = torch.einsum("twd,vfd->twvf", words, frames)  # [T, W, V, F]
    per_frame = attend(similarity, matrices.word, None if word_mask is None else word_mask[..., None], dim=1)
    per_word = attend(similarity, matrices.frame, frame_mask, dim=3)
    by_frames = attend(per_frame, matrices.frame_second, frame_mask, dim=2)  # [T, V, F] -> [T, V]
    by_words = attend(per_word, matrices.word_second, word_mask, dim=1)  # [T, W, V] -> [T, V]
    return (by_frames + by_words) / 2


def match_frames(
    text: TextFeatures,
    video: VideoFeatures,
    matrices: ScoreMatrices,
    scale: Tensor,
    *,
    mask_padding: bool,
    score_names: tuple[str, ...],
) -> Tensor:
    """How well each frame matches each text: float32 [T, V, F], scaled; `-inf` for padding frames.

    The mean of the per-frame terms of the scores in use: sentence with frame, and the words of the text
    aggregated for that frame (the inner step of `frame_word`). The sentence alone where neither is in use.
    """
    words, sentence = text.words.float(), text.sentence.float()
    frames = video.frames.float()
    terms = []
    if "sentence_frame" in score_names or "frame_word" not in score_names:
        terms.append(torch.einsum("td,vfd->tvf", sentence, frames))
    if "frame_word" in score_names:
        word_mask = text.word_mask[:, :, None, None] if mask_padding else None
        similarity = torch.einsum("twd,vfd->twvf", words @ matrices.local_matrix, frames)
        terms.append(attend(similarity, matrices.word, word_mask, dim=1))
    matches = torch.stack(terms).mean(0) * scale
    return matches.masked_fill(~video.frame_mask, float("-inf"))


def score_in_blocks(
    text: TextFeatures,
    video: VideoFeatures,
    matrices: ScoreMatrices,
    scale: Tensor,
    *,
    mask_padding: bool,
    score_names: tuple[str, ...],
    max_elements: int | None = None,
) -> Scores:
    """`score_features` in blocks of texts and videos, so that memory does not grow with T x V.

    max_elements: similarities held at once; None for `MAX_BLOCK_ELEMENTS` of the device.
    """
    if max_elements is None:
        max_elements = MAX_BLOCK_ELEMENTS.get(video.video.device.type, MAX_BLOCK_ELEMENTS["cuda"])
    per_pair = matrices.word.shape[0] * matrices.frame.shape[0]
    videos_at_once = max(1, min(len(video), max_elements // per_pair))
    texts_at_once = max(1, max_elements // (per_pair * videos_at_once))
    rows = []
    for first_text in range(0, len(text), texts_at_once):
        some_texts = text[first_text : first_text + texts_at_once]
        blocks = [
            score_features(
                some_texts,
                video[first_video : first_video + videos_at_once],
                matrices,
                scale,
                mask_padding=mask_padding,
                score_names=score_names,
            )
            for first_video in range(0, len(video), videos_at_once)
        ]
        rows.append(
            Scores(*(torch.cat(columns, dim=1) for columns in zip(*map(_columns, blocks), strict=True)))
        )
    return Scores.cat(rows)


def _columns(scores: Scores) -> tuple[Tensor, ...]:
    return scores.video_sentence, scores.video_word, scores.sentence_frame, scores.frame_word, scores.total
