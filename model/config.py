"""What a model is, apart from its weights: `config.json` in a saved directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Self, get_args

from model.architecture import Architecture
from model.errors import CheckpointError
from model.preprocessing import PIXEL_MEAN, PIXEL_STD, Interpolation, ResizeMode, Resizing
from model.score_names import DEFAULT_TEMPERATURE, SCORE_NAMES, Aggregation

FORMAT = "xclip-search/1"

DEFAULT_NUM_WORDS = 32
"""The official `--max_words`; of plain towers too, so that their scores cost as much."""

WordWeighting = Literal["uniform", "inverse-document-frequency"]
FrameWordSides = Literal["both", "words"]

_WRITTEN_IF_CHANGED = (
    *("aggregation", "temperature", "word_weighting", "frame_word_sides"),
    *("resize_mode", "interpolation", "fill_color"),
)
"""Fields that came after checkpoints had been published: at their default they are not written, so that the
text, and with it every fingerprint, stays what it was."""


@dataclass(frozen=True)
class XClipConfig:
    """Sizes and choices of one X-CLIP network.

    Attributes:
        clip: The towers as open_clip describes them: `embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`,
            `custom_text`, `init_logit_bias`; a text tower of transformers has its configuration in
            `text_cfg.hf_config`. What that means is in `architecture`.
        num_words: W, how many positions of a text are scored; AOSM matrices of words are of this size.
        num_frames: F, the length of every video; AOSM matrices of frames are of this size.
        temporal_layers: Blocks of the temporal transformer; 0 leaves the frames as they are (mean pooling).
        mask_padding: Leave padding words and frames out of AOSM. Official checkpoints were trained without.
        score_names: Which of the four scores are averaged into the total.
        aggregation: How similarities become a score: by attention (AOSM), or by one of the aggregations that
            the paper compares with it (see `model.aggregation`); the AOSM matrices are then not used.
        temperature: Of the softmax of attention, above 0.
        word_weighting: What a word counts where words are averaged: all the same, or by the inverse document
            frequency of its token in the training captions, which the model stores
            (`XClip.set_word_weights`). Only for aggregations that average.
        frame_word_sides: `frame_word` is the mean of two sides, words that were each reduced over the frames
            and frames that were each reduced over the words; or the side of the words alone.
        vocabulary: CLIP token ids that the embedding table holds (see `model.tokenization`), None for all.
        pixel_mean: Per channel, RGB, of pixels in 0..1.
        pixel_deviation: Standard deviation per channel, RGB, of pixels in 0..1; named as in every
            `config.json` that was written.
        resize_mode: How a picture becomes a square, see `model.preprocessing.Resizing`.
        interpolation: Likewise.
        fill_color: Likewise.
        description: Where the weights came from; no part of the fingerprint.

    Raises:
        CheckpointError: The values make no X-CLIP; the message names every reason.

    >>> XClipConfig.from_json(XClipConfig.tiny(num_frames=4).to_json()).num_frames
    4
    """

    clip: Mapping[str, Any]
    num_words: int = DEFAULT_NUM_WORDS
    num_frames: int = 12
    temporal_layers: int = 4
    mask_padding: bool = True
    score_names: tuple[str, ...] = SCORE_NAMES
    aggregation: Aggregation = "attention"
    temperature: float = DEFAULT_TEMPERATURE
    word_weighting: WordWeighting = "uniform"
    frame_word_sides: FrameWordSides = "both"
    vocabulary: tuple[int, ...] | None = None
    pixel_mean: tuple[float, float, float] = PIXEL_MEAN
    pixel_deviation: tuple[float, float, float] = PIXEL_STD
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill_color: int = 0
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        problems = self.architecture.problems(self.clip)
        if unknown := set(self.score_names) - set(SCORE_NAMES):
            problems.append(f"unknown scores {sorted(unknown)}")
        if not self.score_names:
            problems.append("no score to average")
        problems.extend(self._scoring_problems())
        for name, least in (("num_words", 3), ("num_frames", 1)):
            if name == "num_frames" and not self.temporal_layers:
                continue
            if not least <= getattr(self, name) <= self.context_length:
                problems.append(f"{name} {getattr(self, name)} is not within {least}..{self.context_length}")
        if self.temporal_layers < 0:
            problems.append("temporal_layers is negative")
        if problems:
            raise CheckpointError("this configuration cannot be an X-CLIP model: " + "; ".join(problems))
        # 1 and 1.0 must not give two texts, hence two fingerprints.
        object.__setattr__(self, "temperature", float(self.temperature))

    def _scoring_problems(self) -> list[str]:
        choices: dict[str, tuple[str, ...]] = {
            "aggregation": get_args(Aggregation),
            "word_weighting": get_args(WordWeighting),
            "frame_word_sides": get_args(FrameWordSides),
            "resize_mode": get_args(ResizeMode),
            "interpolation": get_args(Interpolation),
        }
        problems = [
            f"{name} {getattr(self, name)!r} is not one of {', '.join(known)}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            problems.append(f"temperature {self.temperature!r} is not a number above 0")
        if not problems and self.word_weighting != "uniform" and "mean" not in self.aggregation:
            problems.append(f"aggregation {self.aggregation} averages no words that could be weighted")
        return problems

    @cached_property
    def architecture(self) -> Architecture:
        """What `clip` means.

        Raises:
            CheckpointError: It is no description of towers.
        """
        try:
            return Architecture.of(self.clip)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"config.json does not describe towers: {error}") from None

    @cached_property
    def embedding_dim(self) -> int:
        """D, the length of every feature."""
        return self.architecture.embedding_dim

    @cached_property
    def image_size(self) -> int:
        """R, side of the square input in pixels."""
        return self.architecture.image_size

    @cached_property
    def context_length(self) -> int:
        """The most positions that the text tower reads, at least `num_words`."""
        return self.architecture.context_length

    @cached_property
    def num_tokens(self) -> int:
        """Length of a row of token ids, at least `num_words`."""
        return self.architecture.num_tokens(self.num_words)

    @cached_property
    def resizing(self) -> Resizing:
        """How a picture becomes the square that the model sees."""
        return Resizing(self.image_size, self.resize_mode, self.interpolation, self.fill_color)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """A network of a few thousand weights for tests: D 32, 32-pixel frames, W 32, F 8, every token."""
        clip = {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
            "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
            "quick_gelu": True,
        }
        return cls(**{"clip": clip, "num_frames": 8, "temporal_layers": 1, **changes})

    def to_json(self) -> str:
        """Stable text: the same config gives the same bytes."""
        values = asdict(self)
        for one in fields(self):
            if one.name in _WRITTEN_IF_CHANGED and values[one.name] == one.default:
                del values[one.name]
        return json.dumps({"format": FORMAT, **values}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`.

        Raises:
            CheckpointError: The text is anything else.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise CheckpointError(f"config.json is not JSON: {error}") from None
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise CheckpointError(f'config.json is not of the format "{FORMAT}"')
        names = {field.name for field in fields(cls)}
        if unknown := values.keys() - names:
            raise CheckpointError(f"config.json has unknown fields {sorted(unknown)}")
        for name in ("score_names", "vocabulary", "pixel_mean", "pixel_deviation"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        try:
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"config.json is incomplete: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
