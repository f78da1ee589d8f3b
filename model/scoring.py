"""The four scores of every text with every video (arXiv:2207.07285 sections 3.2 to 3.4).

How similarities become one number, attention (AOSM) or something simpler, is in `model.aggregation`.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from model.aggregation import DEFAULT_TEMPERATURE, Aggregator
from model.aggregation import attend as attend
from model.errors import ShapeError
from model.features import SCORE_NAMES, Scores, TextFeatures, VideoFeatures

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


def matrices_in_use(
    score_names: Collection[str], aggregation: str = "attention", frame_word_sides: str = "both"
) -> frozenset[str]:
    """Which of `ScoreMatrices` the mean of these scores depends on; arguments as in `XClipConfig`."""
    found = set()
    if "video_sentence" in score_names:
        found.add("global_matrix")
    if "frame_word" in score_names:
        found.add("local_matrix")
    if aggregation == "attention":
        if "video_word" in score_names:
            found.add("word_logit")
        if "sentence_frame" in score_names:
            found.add("frame_logit")
        if "frame_word" in score_names:
            found |= {"frame", "word_second"}
        if "frame_word" in score_names and frame_word_sides == "both":
            found |= {"word", "frame_second"}
    return frozenset(found)


def score_features(
    text: TextFeatures,
    video: VideoFeatures,
    matrices: ScoreMatrices,
    scale: Tensor,
    *,
    mask_padding: bool,
    score_names: tuple[str, ...],
    aggregation: str = "attention",
    temperature: float = DEFAULT_TEMPERATURE,
    frame_word_sides: str = "both",
    only_named: bool = False,
) -> Scores:
    """Every text with every video, in one piece (see `score_in_blocks`).

    Shapes: text T x W x D, video V x F x D; scale: [] float, exp(logit_scale). Returns float32 [T, V] each.
    mask_padding to frame_word_sides: as in `XClipConfig`.
    only_named: leave out the work for scores that `score_names` does not hold; they come back as NaN.
    """
    num_words, num_frames = matrices.word.shape[0], matrices.frame.shape[0]
    if text.words.shape[1] != num_words or video.frames.shape[1] != num_frames:
        raise ShapeError(
            f"this model scores {num_words} words with {num_frames} frames, "
            f"not {text.words.shape[1]} with {video.frames.shape[1]}"
        )
    aggregator = Aggregator.named(aggregation, temperature)
    words, sentence = text.words.float(), text.sentence.float()
    frames, pooled = video.frames.float(), video.video.float()
    word_mask = text.word_mask[:, :, None] if mask_padding else None  # [T, W, 1]
    frame_mask = video.frame_mask if mask_padding else None  # [V, F]
    weights = None if text.word_weights is None else text.word_weights[:, :, None]  # [T, W, 1]

    wanted = score_names if only_named else SCORE_NAMES
    scores: dict[str, Tensor] = {}
    if "video_sentence" in wanted:
        scores["video_sentence"] = sentence @ matrices.global_matrix @ pooled.T  # [T, V]
    if "video_word" in wanted:
        similarity = words @ pooled.T  # [T, W, V]
        scores["video_word"] = aggregator.last(similarity, matrices.word_logit, word_mask, 1, weights)
    if "sentence_frame" in wanted:
        similarity = torch.einsum("td,vfd->tvf", sentence, frames)
        scores["sentence_frame"] = aggregator.last(similarity, matrices.frame_logit, frame_mask, 2)
    if "frame_word" in wanted:
        similarity = torch.einsum("twd,vfd->twvf", words @ matrices.local_matrix, frames)
        scores["frame_word"] = _frame_word(
            similarity, word_mask, frame_mask, weights, matrices, aggregator, frame_word_sides
        )
    scores = {name: score * scale for name, score in scores.items()}
    total = torch.stack([scores[name] for name in score_names]).mean(0)
    missing = total.detach().new_full((), float("nan")).expand(total.shape)
    return Scores(**{name: scores.get(name, missing) for name in SCORE_NAMES}, total=total)


def _frame_word(
    similarity: Tensor,
    word_mask: Tensor | None,
    frame_mask: Tensor | None,
    weights: Tensor | None,
    matrices: ScoreMatrices,
    aggregator: Aggregator,
    sides: str,
) -> Tensor:
    """similarity: [T, W, V, F]; word_mask and weights: [T, W, 1]; frame_mask: [V, F]. Returns [T, V]."""
    per_word = aggregator.first(similarity, matrices.frame, frame_mask, 3)  # [T, W, V]
    by_words = aggregator.last(per_word, matrices.word_second, word_mask, 1, weights)
    if sides == "words":
        return by_words
    per_frame = aggregator.first(  # [T, V, F]
        similarity, matrices.word, _one_more(word_mask), 1, _one_more(weights)
    )
    by_frames = aggregator.last(per_frame, matrices.frame_second, frame_mask, 2)
    return (by_frames + by_words) / 2


def _one_more(tensor: Tensor | None) -> Tensor | None:
    """With one more dimension at the end."""
    return None if tensor is None else tensor[..., None]


def match_frames(
    text: TextFeatures,
    video: VideoFeatures,
    matrices: ScoreMatrices,
    scale: Tensor,
    *,
    mask_padding: bool,
    score_names: tuple[str, ...],
    aggregation: str = "attention",
    temperature: float = DEFAULT_TEMPERATURE,
    frame_word_sides: str = "both",
) -> Tensor:
    """How well each frame matches each text: float32 [T, V, F], scaled; `-inf` for padding frames.

    The mean of the per-frame terms of the scores in use: sentence with frame, and the words of the text
    aggregated for that frame, which is the inner step of `frame_word`; where that score has the side of the
    words alone, which has no such step, what it would be if the video were this frame. The sentence alone
    where neither score is in use. Keyword arguments as in `XClipConfig`.
    """
    words, sentence = text.words.float(), text.sentence.float()
    frames = video.frames.float()
    terms = []
    if "sentence_frame" in score_names or "frame_word" not in score_names:
        terms.append(torch.einsum("td,vfd->tvf", sentence, frames))
    if "frame_word" in score_names:
        aggregator = Aggregator.named(aggregation, temperature)
        word_mask = text.word_mask[:, :, None, None] if mask_padding else None
        weights = None if text.word_weights is None else text.word_weights[:, :, None, None]
        similarity = torch.einsum("twd,vfd->twvf", words @ matrices.local_matrix, frames)
        if frame_word_sides == "words":
            terms.append(aggregator.last(similarity, matrices.word_second, word_mask, 1, weights))
        else:
            terms.append(aggregator.first(similarity, matrices.word, word_mask, 1, weights))
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
    aggregation: str = "attention",
    temperature: float = DEFAULT_TEMPERATURE,
    frame_word_sides: str = "both",
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
                aggregation=aggregation,
                temperature=temperature,
                frame_word_sides=frame_word_sides,
            )
            for first_video in range(0, len(video), videos_at_once)
        ]
        rows.append(
            Scores(*(torch.cat(columns, dim=1) for columns in zip(*map(_columns, blocks), strict=True)))
        )
    return Scores.cat(rows)


def _columns(scores: Scores) -> tuple[Tensor, ...]:
    return scores.video_sentence, scores.video_word, scores.sentence_frame, scores.frame_word, scores.total
