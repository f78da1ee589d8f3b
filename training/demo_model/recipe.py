"""How the demo model is trained: every choice in one frozen record.

Pictures come first, then videos on frozen frame features: learning from videos from the start stays at chance
on a corpus this small, because a frame must mean something before its order in time can. All scores are
computed in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from model import XClipConfig
from model.tokenization import vocabulary_of


@dataclass(frozen=True)
class Stage:
    """One stage of training: AdamW, linear warm-up, cosine to a tenth.

    Attributes:
        num_steps: Optimizer steps.
        batch_size: Pictures in the first stage, videos in the second.
        num_captioned: Of these, those that come with a full caption.
        num_kinds: Of things that the first events of a step's videos show; None for any. Few make a step
            of videos that differ in what happens.
    """

    num_steps: int
    batch_size: int
    num_captioned: int
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    num_kinds: int | None = None

    def scaled(self, factor: float) -> Stage:
        """The same stage with `factor` times the steps, at least one."""
        return replace(self, num_steps=max(1, round(self.num_steps * factor)))


def _residual_tower() -> dict[str, Any]:
    """A vision tower that sees edges at once; a transformer of the same cost told few kinds apart."""
    return {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 64}


@dataclass(frozen=True)
class Recipe:
    """The demo model and how it is trained.

    Attributes:
        vision: The vision tower as open_clip describes it (`vision_cfg`).
        pictures: Single frames, with captions of their own and the names of what they show; only the towers
            learn.
        videos: Whole videos on cached frame features; everything but the vision tower learns. Each comes
            with a brief caption, and the captioned ones with a full one too.
        alike: The same with videos of few kinds at a time.
        group_size: A scene and its siblings, all in the same batch in the second stage.
        captions_per_video, brief_captions_per_video, captions_per_frame: Paraphrases drawn once; brief ones
            are like search queries.
        unknown_word_share: Of the captions, those with a word put in that the vocabulary lacks, to be
            ignored.
        names_weight: Of the loss of naming pictures, added to that of their captions; 0: not computed.
        matrix_identity: AOSM matrices [W, W] and [F, F] start at this much identity, the rest spread evenly.
        single_score_weight: Of the mean of the four scores' own losses, added to the loss of the total.
    """

    seed: int = 1
    vision: Mapping[str, Any] = field(default_factory=_residual_tower)
    embedding_dim: int = 256
    text_width: int = 128
    text_layers: int = 3
    temporal_layers: int = 2
    num_words: int = 32
    num_frames: int = 8
    num_groups: int = 5000
    group_size: int = 4
    captions_per_video: int = 6
    brief_captions_per_video: int = 8
    captions_per_frame: int = 2
    unknown_word_share: float = 0.15
    names_weight: float = 1.0
    matrix_identity: float = 0.3
    single_score_weight: float = 0.5
    weight_decay: float = 0.05
    pictures: Stage = Stage(num_steps=2000, batch_size=256, num_captioned=64)
    videos: Stage = Stage(num_steps=2000, batch_size=128, num_captioned=96)
    alike: Stage = Stage(num_steps=1500, batch_size=128, num_captioned=64, learning_rate=7e-4, num_kinds=4)

    @property
    def image_size(self) -> int:
        """Height and width of a frame, pixels."""
        return int(self.vision["image_size"])

    def to_json(self) -> str:
        """Stable text for `recipe.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def model_config(self, words: Sequence[str]) -> XClipConfig:
        """The network for a corpus whose captions are made of `words`."""
        return XClipConfig(
            clip={
                "embed_dim": self.embedding_dim,
                "vision_cfg": dict(self.vision),
                "text_cfg": {
                    "context_length": self.num_words,
                    "vocab_size": 49408,
                    "width": self.text_width,
                    "heads": self.text_width // 32,
                    "layers": self.text_layers,
                },
                "quick_gelu": False,
            },
            num_words=self.num_words,
            num_frames=self.num_frames,
            temporal_layers=self.temporal_layers,
            mask_padding=True,
            vocabulary=vocabulary_of([*sorted(words), ","]),
            description="X-CLIP trained from scratch on the drawn demo corpus",
        )
