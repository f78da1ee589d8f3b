"""The four scores of every text with every video (arXiv:2207.07285 sections 3.2 to 3.4).

How similarities become one number, attention (AOSM) or something simpler, is in `model.aggregation`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from model.aggregation import REDUCTIONS, Reduction, attend, average, largest
from model.config import XClipConfig
from model.errors import ShapeError
from model.features import Scores, TextFeatures, VideoFeatures, VideoRecords
from model.kernels.attention import TEMPERATURES, AttentionScorer, Buffers, VideoBlock
from model.kernels.gpu import FusedAttention
from model.kernels.processor import CompiledAttention
from model.score_names import SCORE_NAMES

MAX_BLOCK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 24}
"""Similarities [T, W, V, F] held in memory outside training, by kind of device; bounds memory. 512 KiB a
temporary stays within a processor's caches (benchmarks/scoring.py); a GPU is faster with large blocks."""

MAX_BLOCK_VIDEOS = {"cpu": 256, "cuda": 1 << 16}
"""Videos whose frames are held as float32 outside training, by kind of device; likewise."""

FUSED = FusedAttention()
"""Scores on a GPU."""

COMPILED = CompiledAttention()
"""Scores on a processor."""

_TEXTS_PREPARED = 256
"""Texts whose mapped words are held outside training."""


class ScoreHead(nn.Module):
    """From features to scores: the learned matrices, and the config's choices of how to aggregate.

    The matrices are those of the official code (modules/modeling_xclip.py), the identity at first:
    `global_matrix` and `local_matrix` [D, D] map sentences and words; `word_logit` [W, W] and `frame_logit`
    [F, F] are the AOSM matrices of `video_word` and `sentence_frame`; `word` and `frame` those of the first
    aggregation of `frame_word`, `word_second` and `frame_second` those of its second.

    Calling it scores: `head(text, video, scale)`. In evaluation mode the work is done in blocks, so that
    memory does not grow with T x V.

    >>> import torch
    >>> from model import TextFeatures, VideoFeatures, XClipConfig
    >>> head = ScoreHead(XClipConfig.tiny(num_words=3, num_frames=2)).eval()
    >>> text = TextFeatures(torch.eye(32)[:1], torch.eye(32)[None, :3], torch.ones(1, 3).bool())
    >>> video = VideoFeatures(torch.eye(32)[:1], torch.eye(32)[None, :2], torch.ones(1, 2).bool())
    >>> head(text, video, torch.tensor(100.0)).video_sentence.tolist()
    [[100.0]]
    """

    def __init__(self, config: XClipConfig) -> None:
        super().__init__()
        self.config = config
        self.global_matrix = _identity(config.embedding_dim)
        self.local_matrix = _identity(config.embedding_dim)
        self.word_logit = _identity(config.num_words)
        self.frame_logit = _identity(config.num_frames)
        self.word = _identity(config.num_words)
        self.frame = _identity(config.num_frames)
        self.word_second = _identity(config.num_words)
        self.frame_second = _identity(config.num_frames)
        self._known_identities: dict[str, tuple[tuple[int, int], bool]] = {}

    def matrices_in_use(self) -> frozenset[str]:
        """Names of the matrices that the total depends on; the others get no gradient."""
        config = self.config
        attention = config.aggregation == "attention"
        found = set()
        if "video_sentence" in config.score_names:
            found.add("global_matrix")
        if "video_word" in config.score_names and attention:
            found.add("word_logit")
        if "sentence_frame" in config.score_names and attention:
            found.add("frame_logit")
        if "frame_word" in config.score_names:
            found.add("local_matrix")
            if attention:
                found |= {"frame", "word_second"}
                if config.frame_word_sides == "both":
                    found |= {"word", "frame_second"}
        return frozenset(found)

    def forward(
        self,
        text: TextFeatures,
        video: VideoFeatures | VideoRecords,
        scale: Tensor,
        wanted: Collection[str] | None = None,
    ) -> Scores:
        """Every text with every video.

        Args:
            text: T texts, encoded by a model of this config.
            video: V videos, likewise; records of a table in evaluation mode alone.
            scale: float [], the factor of every score, exp(logit_scale).
            wanted: The scores to compute; by default all four, in training mode those of the total.

        Returns:
            float32 [T, V] each: NaN for a score that is not wanted, and for a total that averages one.

        Raises:
            ShapeError: Features of other lengths, or word weights where the config has none, or none where it
                has such.
            ValueError: A wanted score that there is not.
        """
        if wanted is None:
            wanted = self.config.score_names if self.training else SCORE_NAMES
        if unknown := set(wanted) - set(SCORE_NAMES):
            raise ValueError(f"no such scores: {sorted(unknown)}; there are {', '.join(SCORE_NAMES)}")
        if self.training:
            assert isinstance(video, VideoFeatures), "records have no gradient"
            return self.unblocked(text, video, scale, wanted)
        return self.in_blocks(text, video, scale, wanted=wanted)

    @torch.no_grad()
    def in_blocks(
        self,
        text: TextFeatures,
        video: VideoFeatures | VideoRecords,
        scale: Tensor,
        max_elements: int | None = None,
        wanted: Collection[str] = SCORE_NAMES,
    ) -> Scores:
        """`unblocked` in blocks of texts and videos, so that memory does not grow with T x V.

        Equal to it within float32 rounding, and without gradients. Where padding is masked, texts of the same
        number of words are scored together, and of the AOSM matrices what these words need. Attention is one
        kernel where it can be had: on a processor after `XClip.prepare("scores")`, on a GPU with float16
        frames.

        Args:
            text: T texts.
            video: V videos.
            scale: float [].
            max_elements: Similarities held in memory, without a kernel; None for a kernel, or
                `MAX_BLOCK_ELEMENTS` of the device.
            wanted: As for `unblocked`.
        """
        self._require_fitting(text, video)
        matrices = dict(self.named_parameters())
        if max_elements is None and COMPILED.is_for(self.config, text, video):
            identities = {name for name in ("global_matrix", "local_matrix") if self._is_identity(name)}
            compiled = COMPILED.scores(
                self.config,
                {name: matrix for name, matrix in matrices.items() if name not in identities},
                (text, video),
                float(scale),
                wanted,
            )
            if compiled is not None:
                return compiled
        if isinstance(video, VideoRecords):
            video = video.copied()
        if max_elements is None and FUSED.is_for(self.config, text, video):
            fused = FUSED.scores(self.config, matrices, text, video, wanted)
            if fused is not None:
                return self._scores(fused, scale, len(text), len(video))
        device, mask_padding = video.video.device, self.config.mask_padding
        kind = "cpu" if device.type == "cpu" else "cuda"
        per_pair = self.config.num_words * self.config.num_frames
        num_elements = max_elements or MAX_BLOCK_ELEMENTS[kind]
        # As many videos as fit, and as many texts as then still fit: one text with many videos, the case of a
        # search, is one block or few.
        num_videos = max(1, min(len(video), MAX_BLOCK_VIDEOS[kind], num_elements // per_pair))
        num_texts = max(1, num_elements // (per_pair * num_videos))
        groups = _texts_of_one_length(text, num_texts, mask_padding)
        num_groups = max(1, _TEXTS_PREPARED // num_texts)
        found = {name: torch.empty(len(text), len(video), device=device) for name in wanted}
        with Buffers.borrowed(device) as buffers:
            for some_groups in (groups[rows] for rows in _slices(len(groups), num_groups)):
                scorers = [self._scorer(text[rows], wanted, buffers) for rows in some_groups]
                for columns in _slices(len(video), num_videos):
                    block = VideoBlock.of(video[columns], mask_padding, buffers)
                    for rows, score in zip(some_groups, scorers, strict=True):
                        for name, values in score(block).items():
                            found[name][rows, columns] = values
        return self._scores(found, scale, len(text), len(video))

    def _scorer(
        self, text: TextFeatures, wanted: Collection[str], buffers: Buffers
    ) -> Callable[[VideoBlock], dict[str, Tensor]]:
        """From a block of videos to the wanted scores, float32 [T, B], not scaled."""
        lowest, highest = TEMPERATURES
        if self.config.mask_padding:
            text = _without_common_padding(text)
        has_padding = self.config.mask_padding and not bool(text.word_mask.all())
        quick = None
        if (
            self.config.aggregation == "attention"
            and lowest <= self.config.temperature <= highest
            and not has_padding
        ):
            matrices = dict(self.named_parameters())
            quick = AttentionScorer(self.config, matrices, text, wanted, buffers)

        def score(block: VideoBlock) -> dict[str, Tensor]:
            found = None if quick is None else quick.score(block)
            return self._parts(text, block.features(), wanted) if found is None else found

        return score

    def unblocked(
        self,
        text: TextFeatures,
        video: VideoFeatures,
        scale: Tensor,
        wanted: Collection[str] = SCORE_NAMES,
    ) -> Scores:
        """Every text with every video in one block, which holds T x W x V x F similarities.

        Where padding is masked, W is the number of words of the longest text.

        Args:
            text: T texts.
            video: V videos.
            scale: float [].
            wanted: The scores to compute. The others come back as NaN, and so does the total where it
                averages one of them.
        """
        self._require_fitting(text, video)
        if self.config.mask_padding:
            text = _without_common_padding(text)
        return self._scores(self._parts(text, video, wanted), scale, len(text), len(video))

    def _scores(self, parts: Mapping[str, Tensor], scale: Tensor, num_texts: int, num_videos: int) -> Scores:
        """With the scale, the total, and NaN for what was not computed."""
        parts = {name: part * scale for name, part in parts.items()}
        missing = torch.full((), float("nan"), device=scale.device).expand(num_texts, num_videos)
        total = missing
        if parts.keys() >= set(self.config.score_names):
            total = torch.stack([parts[name] for name in self.config.score_names]).mean(0)
        return Scores(**{name: parts.get(name, missing) for name in SCORE_NAMES}, total=total)

    def _parts(self, text: TextFeatures, video: VideoFeatures, wanted: Collection[str]) -> dict[str, Tensor]:
        """The wanted scores, [T, V] each, not scaled.

        Words and frames may be fewer than the model's, where what is missing behind them is masked padding.
        """
        _, outer = REDUCTIONS[self.config.aggregation]
        sentence, pooled = text.sentence.float(), video.video.float()
        scores: dict[str, Tensor] = {}
        if "video_sentence" in wanted:
            scores["video_sentence"] = sentence @ self.global_matrix @ pooled.T  # [T, V]
        if "video_word" in wanted:
            similarity = text.words.float() @ pooled.T  # [T, W, V]
            scores["video_word"] = self._over_words(outer, similarity, self.word_logit, text)
        if "sentence_frame" in wanted:
            similarity = _sentence_with_frames(text, video)  # [T, V, F]
            scores["sentence_frame"] = self._over_frames(outer, similarity, self.frame_logit, video)
        if "frame_word" in wanted:
            scores["frame_word"] = self._frame_word(text, video)
        return scores

    def map_sentences(self, sentence: Tensor) -> Tensor:
        """Sentences as `video_sentence` compares them with videos, float32 [T, D]."""
        sentence = sentence.float()
        return sentence if self._is_identity("global_matrix") else sentence @ self.global_matrix

    def _is_identity(self, name: str) -> bool:
        """Whether a matrix is the identity outside training, as in every model that was not trained for
        videos: a product with it reads a megabyte for nothing."""
        matrix: nn.Parameter = getattr(self, name)
        if self.training or matrix.is_inference():  # The latter do not tell of changes.
            return False
        state = (matrix.data_ptr(), matrix._version)
        known = self._known_identities.get(name)
        if known is None or known[0] != state:
            eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
            known = self._known_identities[name] = state, torch.equal(matrix, eye)
        return known[1]

    def match_frames(self, text: TextFeatures, video: VideoFeatures, scale: Tensor) -> Tensor:
        """How well each frame matches each text: float32 [T, V, F], scaled; `-inf` for padding frames.

        The mean of the per-frame terms of the scores in the total: sentence with frame, and the words of the
        text aggregated for that frame, which is the inner step of `frame_word`; where that score has the side
        of the words alone, which has no such step, what it would be if the video were this frame. The
        sentence alone where neither score is in the total.
        """
        self._require_fitting(text, video)
        names = self.config.score_names
        terms = []
        if "sentence_frame" in names or "frame_word" not in names:
            terms.append(_sentence_with_frames(text, video))
        if "frame_word" in names:
            inner, outer = REDUCTIONS[self.config.aggregation]
            similarity = self.word_frame_similarity(text, video)
            if self.config.frame_word_sides == "words":
                terms.append(self._over_words(outer, similarity, self.word_second, text))
            else:
                terms.append(self._over_words(inner, similarity, self.word, text))
        matches = torch.stack(terms).mean(0) * scale
        return matches.masked_fill(~video.frame_mask, float("-inf"))

    def word_frame_similarity(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """Inner product of each mapped word with each frame, float32 [T, W, V, F], not scaled."""
        return torch.einsum("twd,vfd->twvf", text.words.float() @ self.local_matrix, video.frames.float())

    def _frame_word(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        # Section 3.4: the matrix of similarities is reduced in both orders, frames first and words first,
        # each time to one number, and the two numbers are averaged.
        inner, outer = REDUCTIONS[self.config.aggregation]
        similarity = self.word_frame_similarity(text, video)
        per_word = self._over_frames(inner, similarity, self.frame, video)  # [T, W, V]
        by_words = self._over_words(outer, per_word, self.word_second, text)  # [T, V]
        if self.config.frame_word_sides == "words":
            return by_words
        per_frame = self._over_words(inner, similarity, self.word, text)  # [T, V, F]
        by_frames = self._over_frames(outer, per_frame, self.frame_second, video)  # [T, V]
        return (by_frames + by_words) / 2

    def _over_words(self, how: Reduction, similarity: Tensor, matrix: Tensor, text: TextFeatures) -> Tensor:
        """Reduce dimension 1, the words, of [T, W, V] or [T, W, V, F]."""
        shape = (*text.word_mask.shape, *[1] * (similarity.ndim - 2))
        mask = text.word_mask.reshape(shape) if self.config.mask_padding else None
        matrix = matrix[: shape[1], : shape[1]]
        weights = None if text.word_weights is None else text.word_weights.reshape(shape)
        return self._reduce(how, similarity, matrix, mask, 1, weights)

    def _over_frames(
        self, how: Reduction, similarity: Tensor, matrix: Tensor, video: VideoFeatures
    ) -> Tensor:
        """Reduce the last dimension, the frames, of [T, V, F] or [T, W, V, F]."""
        mask = video.frame_mask if self.config.mask_padding else None
        matrix = matrix[: similarity.shape[-1], : similarity.shape[-1]]
        return self._reduce(how, similarity, matrix, mask, similarity.ndim - 1)

    def _reduce(
        self,
        how: Reduction,
        similarity: Tensor,
        matrix: Tensor,
        mask: Tensor | None,
        dim: int,
        weights: Tensor | None = None,
    ) -> Tensor:
        # The matrix is attention's alone, the weights are the mean's alone.
        if how == "attention":
            return attend(similarity, matrix, mask, dim, self.config.temperature)
        if how == "max":
            return largest(similarity, mask, dim)
        return average(similarity, mask, dim, weights)

    def _require_fitting(self, text: TextFeatures, video: VideoFeatures | VideoRecords) -> None:
        expected = (self.config.num_words, self.config.num_frames)
        found = (text.words.shape[1], video.frames.shape[1])
        if found != expected:
            raise ShapeError(
                f"this model scores {expected[0]} words with {expected[1]} frames, "
                f"not {found[0]} with {found[1]}"
            )
        weighting = self.config.word_weighting
        if (text.word_weights is None) != (weighting == "uniform"):
            raise ShapeError(f"{text!r} was not encoded by a model whose word weighting is {weighting}")


def _slices(size: int, step: int) -> list[slice]:
    return [slice(first, first + step) for first in range(0, size, step)]


def _texts_of_one_length(text: TextFeatures, at_most: int, mask_padding: bool) -> list[slice | Tensor]:
    """Rows of texts in groups whose words end at the same position; all do where padding counts as words."""
    if len(text) == 1:  # A search: quicker than what follows, and without copies.
        return [slice(0, 1)]
    positions = torch.arange(1, text.word_mask.shape[1] + 1)
    mask = text.word_mask.cpu() if mask_padding else torch.ones(text.word_mask.shape)
    lengths = (mask * positions).amax(dim=1)
    groups = [torch.nonzero(lengths == length)[:, 0] for length in sorted(set(lengths.tolist()))]
    return [group[rows] for group in groups for rows in _slices(len(group), at_most)]


def _without_common_padding(text: TextFeatures) -> TextFeatures:
    """Without the positions behind the last real word of any text."""
    real = text.word_mask.any(dim=0).nonzero()
    length = int(real.max()) + 1 if len(real) else 1
    weights = None if text.word_weights is None else text.word_weights[:, :length]
    return TextFeatures(text.sentence, text.words[:, :length], text.word_mask[:, :length], weights)


def _identity(size: int) -> nn.Parameter:
    return nn.Parameter(torch.eye(size))


def _sentence_with_frames(text: TextFeatures, video: VideoFeatures) -> Tensor:
    """Inner products, float32 [T, V, F], not scaled."""
    similarity = text.sentence.float() @ video.frames.float().flatten(0, 1).T
    return similarity.view(len(text), *video.frames.shape[:2])
