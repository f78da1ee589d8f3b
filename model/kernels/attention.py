"""Attention scores (AOSM) in blocks that stay within a processor's caches.

Equal to `ScoreHead.unblocked` within float32 rounding. What makes it fast:

- One product gives all similarities of a block with its frames, the sentence being one more word, and their
  memory is [F, T, W, B] for B videos: every step runs along contiguous videos, and no reduction along the few
  words or frames, where vector instructions have nothing to do.
- Words come divided by the temperature, so that a similarity is an exponent as it is.
- Both softmaxes of `frame_word`, over words and over frames, take one exponential without the customary
  subtraction of a maximum: where each sum of exponentials is an ordinary number, no term that counts has
  vanished or overflowed. Where one is not, which takes similarities near 0.7 at the usual temperature, the
  caller is told and scores the block plainly.
- Frames are widened to float32 and multiplied while in cache, in buffers that are used again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import XClipConfig
from model.features import TextFeatures, VideoFeatures

TEMPERATURES = (1e-4, 1e4)
"""Between these a similarity divided by the temperature is an ordinary float32."""

_SUMS_OF_EXPONENTIALS = (1e-30, 1e30)
"""Within these, terms down to 1e-7 of a sum, the least that float32 adds, are normal numbers, and a sum times
a similarity divided by the temperature does not overflow."""


class Buffers:
    """Memory by name that is used again for every block; of one thread at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flat: dict[str, Tensor] = {}

    @classmethod
    @contextmanager
    def borrowed(cls, device: torch.device) -> Iterator[Buffers]:
        """Buffers that are kept for the next caller.

        A shortlist is scored in less time than the operating system takes to hand out its memory page by
        page. There are as many of them as ever scored at once, each of a few MiB (`MAX_BLOCK_VIDEOS` of
        `model.scoring`). A GPU's memory is kept by PyTorch's allocator already.
        """
        try:
            buffers = _kept.pop() if device.type == "cpu" else cls(device)
        except IndexError:
            buffers = cls(device)
        try:
            yield buffers
        finally:
            if device.type == "cpu":
                _kept.append(buffers)

    def take(self, name: str, *shape: int) -> Tensor:
        """float32 of that shape, with whatever it held."""
        num_elements = torch.Size(shape).numel()
        held = self._flat.get(name)
        if held is None or len(held) < num_elements:
            # Not of inference mode, for the next to use it may be outside.
            with torch.inference_mode(False):
                held = self._flat[name] = torch.empty(num_elements, device=self._device)
        return held[:num_elements].view(shape)


_kept: deque[Buffers] = deque()  # Its operations are atomic.


@dataclass(frozen=True, eq=False)
class VideoBlock:
    """B videos of which at most F frames are real.

    pooled: float32 [B, D]. frames: float32 [B, F, D]. mask: bool [F, B], true where a frame takes part; None
    where all do.
    """

    pooled: Tensor
    frames: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, video: VideoFeatures, mask_padding: bool, buffers: Buffers) -> VideoBlock:
        """Widened to float32; valid until the next one is made with the same buffers."""
        frames, mask = video.frames, None
        if mask_padding and not bool(video.frame_mask.all()):
            # Positions behind the most frames of any video of the block are padding in all.
            real = video.frame_mask.any(dim=0).nonzero()
            num_frames = int(real.max()) + 1 if len(real) else 1
            frames, mask = frames[:, :num_frames], video.frame_mask[:, :num_frames].T
        if frames.dtype != torch.float32:
            frames = buffers.take("frames", *frames.shape).copy_(frames)
        return cls(video.video.float(), frames, mask)

    def features(self) -> VideoFeatures:
        """The same as features."""
        shape = self.frames.shape[:2]
        mask = torch.ones(shape, dtype=torch.bool, device=self.frames.device)
        return VideoFeatures(self.pooled, self.frames, mask if self.mask is None else self.mask.T)


class AttentionScorer:
    """T texts of the same number of words, prepared once, with block after block of videos."""

    def __init__(
        self,
        config: XClipConfig,
        matrices: Mapping[str, Tensor],
        text: TextFeatures,
        wanted: Collection[str],
        buffers: Buffers,
    ) -> None:
        """Prepare.

        Args:
            config: Of the model; its aggregation is attention, its temperature within TEMPERATURES.
            matrices: Of the `ScoreHead`, by name.
            text: T texts, all of whose W words take part; W may be below the model's.
            wanted: The scores to compute.
            buffers: For this and other scorers of one thread.
        """
        self._temperature = config.temperature
        self._both_sides = config.frame_word_sides == "both"
        self._wanted = wanted
        self._buffers = buffers
        self._num_texts, num_words = text.words.shape[:2]
        self._num_words = num_words
        self._matrices = {
            name: matrix[:num_words, :num_words] if name.startswith("word") else matrix
            for name, matrix in matrices.items()
        }
        sentence = text.sentence.float() / config.temperature
        words = text.words.float() / config.temperature
        self._sentence = text.sentence.float() @ matrices["global_matrix"]
        self._words = words.flatten(0, 1)
        # What is compared with frames, a text after the other: its mapped words, and then its sentence.
        rows = [words @ matrices["local_matrix"]] if "frame_word" in wanted else []
        if "sentence_frame" in wanted:
            rows.append(sentence[:, None])
        self._rows = torch.cat(rows, dim=1).contiguous() if rows else None  # [T, R, D]
        # The sentence's row goes through the product with the words' matrix, and is left out of the sums.
        size = num_words + ("sentence_frame" in wanted)
        self._word_matrix = torch.zeros(size, size, device=words.device)
        self._word_matrix[:num_words, :num_words] = self._matrices["word"]

    def score(self, video: VideoBlock) -> dict[str, Tensor] | None:
        """The wanted scores, float32 [T, B] each, not scaled; None: the block has to be scored plainly."""
        found = {}
        if "video_sentence" in self._wanted:
            found["video_sentence"] = self._sentence @ video.pooled.T
        if "video_word" in self._wanted:
            similarity = (self._words @ video.pooled.T).view(self._num_texts, -1, len(video.pooled))
            found["video_word"] = _attend(similarity, self._matrices["word_logit"])
        if self._rows is not None:
            num_frames, num_videos = video.frames.shape[1], len(video.frames)
            num_texts, num_rows, _ = self._rows.shape
            flat = self._buffers.take("similarity", num_frames, num_texts * num_rows, num_videos)
            rows = self._rows.flatten(0, 1).expand(num_frames, -1, -1)
            torch.bmm(rows, video.frames.permute(1, 2, 0), out=flat)
            if video.mask is not None:
                flat.masked_fill_(~video.mask[:, None], 0.0)
            similarity = flat.view(num_frames, num_texts, num_rows, num_videos)
            if "sentence_frame" in self._wanted:
                sentence = similarity[:, :, -1]  # [F, T, B]
                found["sentence_frame"] = self._over_frames(sentence, "frame_logit", video)
            if "frame_word" in self._wanted:
                score = self._frame_word(similarity, video)
                if score is None:
                    return None
                found["frame_word"] = score
        for name in found.keys() - {"video_sentence"}:
            found[name] *= self._temperature
        return found

    def _over_frames(self, similarity: Tensor, name: str, video: VideoBlock) -> Tensor:
        """[F, T, B] to [T, B]."""
        num_frames, num_texts, num_videos = similarity.shape
        mask = video.mask
        if mask is not None:
            mask = mask[:, None].expand(similarity.shape).flatten(1)
        matrix = self._matrices[name][:num_frames, :num_frames]
        return _attend(similarity.flatten(1), matrix, mask).view(num_texts, num_videos)

    def _frame_word(self, similarity: Tensor, video: VideoBlock) -> Tensor | None:
        num_frames, num_texts = similarity.shape[:2]
        words = slice(self._num_words)
        exponentials = torch.exp(similarity, out=self._buffers.take("exponentials", *similarity.shape))
        if video.mask is not None:
            exponentials.masked_fill_(~video.mask[:, None, None], 0.0)
        over_frames = exponentials[:, :, words].sum(0)  # [T, W, B]
        over_words = exponentials[:, :, words].sum(2)  # [F, T, B]
        if video.mask is not None:
            over_words.masked_fill_(~video.mask[:, None], 1.0)
        bounds = [torch.stack(one.aminmax()) for one in (over_frames, over_words)]
        (lowest, highest), (low, high) = torch.stack(bounds).tolist()
        least, most = _SUMS_OF_EXPONENTIALS
        # Written so that what is not a number fails.
        if not (min(lowest, low) > least and max(highest, high) < most):
            return None
        projected = self._buffers.take("projected", *similarity.shape)
        frame_matrix = self._matrices["frame"][:num_frames, :num_frames]
        torch.mm(frame_matrix, similarity.flatten(1), out=projected.flatten(1))
        per_word = projected.mul_(exponentials)[:, :, words].sum(0).div_(over_frames)  # [T, W, B]
        by_words = _attend(per_word, self._matrices["word_second"])
        if not self._both_sides:
            return by_words
        word_matrix = self._word_matrix.expand(num_frames * num_texts, -1, -1)
        torch.bmm(word_matrix, similarity.flatten(0, 1), out=projected.flatten(0, 1))
        per_frame = projected.mul_(exponentials)[:, :, words].sum(2).div_(over_words)  # [F, T, B]
        by_frames = self._over_frames(per_frame, "frame_second", video)
        return (by_frames + by_words) / 2


def _attend(similarity: Tensor, matrix: Tensor, mask: Tensor | None = None) -> Tensor:
    """AOSM over dimension -2 of similarities divided by the temperature, which the result is as well.

    similarity: float32 [..., N, B], zero where the mask is false. mask: bool [N, B].
    """
    if mask is None:
        attention = similarity.softmax(-2)
    else:
        # A softmax over nothing is NaN; nothing is what it weighs.
        attention = similarity.masked_fill(~mask, float("-inf")).softmax(-2).masked_fill_(~mask, 0.0)
    return attention.mul_(matrix @ similarity).sum(-2)
