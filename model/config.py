"""What a model is, apart from its weights: `config.json` in a saved directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from model.errors import CheckpointError
from model.preprocessing import PIXEL_MEAN, PIXEL_STD
from model.score_names import DEFAULT_TEMPERATURE, SCORE_NAMES, Aggregation

FORMAT = "xclip-search/1"

WordWeighting = Literal["uniform", "inverse-document-frequency"]
FrameWordSides = Literal["both", "words"]

_WRITTEN_IF_CHANGED = ("aggregation", "temperature", "word_weighting", "frame_word_sides")
"""Fields that came after checkpoints had been published: at their default they are not written, so that the
text, and with it every fingerprint, stays what it was."""


@dataclass(frozen=True)
class XClipConfig:
    """Sizes and choices of one X-CLIP network.

    Attributes:
        clip: The towers as open_clip describes them: `embed_dim`, `vision_cfg`, `text_cfg`, `quick_gelu`.
        num_words: W, the length of every text; AOSM matrices of words are of this size.
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
        description: Where the weights came from; no part of the fingerprint.

    Raises:
        CheckpointError: The values make no X-CLIP; the message names every reason.

    >>> XClipConfig.from_json(XClipConfig.tiny(num_frames=4).to_json()).num_frames
    4
    """

    clip: Mapping[str, Any]
    num_words: int = 32
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
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        text, vision = self.clip.get("text_cfg", {}), self.clip.get("vision_cfg", {})
        problems = []
        if unknown := set(self.score_names) - set(SCORE_NAMES):
            problems.append(f"unknown scores {sorted(unknown)}")
        if not self.score_names:
            problems.append("no score to average")
        problems.extend(self._scoring_problems())
        if vision.get("timm_model_name") or not isinstance(vision.get("layers"), int):
            problems.append("the vision tower is not a ViT of open_clip's own")
        if (
            text.get("hf_model_name")
            or text.get("pool_type", "argmax") != "argmax"
            or text.get("no_causal_mask")
        ):
            problems.append("the text tower is not CLIP's (causal, read at the end token)")
        if not 3 <= self.num_words <= text.get("context_length", 77):
            problems.append(f"num_words {self.num_words} is not within 3..{text.get('context_length', 77)}")
        if not 1 <= self.num_frames <= text.get("context_length", 77) and self.temporal_layers:
            problems.append(f"num_frames {self.num_frames} is not within 1..{text.get('context_length', 77)}")
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

    @property
    def embedding_dim(self) -> int:
        """D, the length of every feature."""
        return int(self.clip["embed_dim"])

    @property
    def image_size(self) -> int:
        """R, side of the square input in pixels."""
        size = self.clip["vision_cfg"]["image_size"]
        return int(size if isinstance(size, int) else size[0])

    @property
    def context_length(self) -> int:
        """Rows of the text tower's position table, at least `num_words`."""
        return int(self.clip["text_cfg"].get("context_length", 77))

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
