"""Every choice of the demo model's training, in one frozen record that is saved beside the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from model import XClipConfig
from model.tokenization import vocabulary_of


@dataclass(frozen=True)
class Stage:
    """One stage of training: AdamW, linear warm-up, cosine to a tenth.

    num_steps: optimizer steps. batch_size: pictures in the first stage, videos in the second.
    """

    num_steps: int
    batch_size: int
    learning_rate: float
    warmup_share: float = 0.05

    def scaled(self, factor: float) -> Stage:
        """The same stage with `factor` times the steps, at least one."""
        return replace(self, num_steps=max(1, round(self.num_steps * factor)))


@dataclass(frozen=True)
class Recipe:
    """The demo model and how it is trained.

    pictures: single frames with captions of their own; only the towers learn.
    videos: whole videos on cached frame features; everything but the vision tower learns.
    group_size: a scene and its siblings, all in the same batch in the second stage.
    captions_per_video, captions_per_frame: paraphrases drawn once.
    brief_captions_per_video: of the former, those that say little, as people who search do.
    unknown_word_share: of the captions, those with a word put in that the vocabulary lacks, to be ignored.
    matrix_identity: AOSM matrices [W, W] and [F, F] start at this much identity, the rest spread evenly.
    single_score_weight: of the mean of the four scores' own losses, beside the loss of the total.
    """

    seed: int = 1
    image_size: int = 64
    patch_size: int = 16
    width: int = 128
    vision_layers: int = 4
    text_layers: int = 3
    temporal_layers: int = 2
    num_words: int = 32
    num_frames: int = 8
    num_groups: int = 5000
    group_size: int = 4
    captions_per_video: int = 8
    brief_captions_per_video: int = 2
    captions_per_frame: int = 2
    unknown_word_share: float = 0.15
    matrix_identity: float = 0.3
    single_score_weight: float = 0.5
    weight_decay: float = 0.05
    pictures: Stage = Stage(num_steps=2200, batch_size=512, learning_rate=1e-3)
    videos: Stage = Stage(num_steps=1200, batch_size=192, learning_rate=1e-3)

    def to_json(self) -> str:
        """Stable text for `recipe.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def model_config(self, words: Sequence[str]) -> XClipConfig:
        """The network for a corpus whose captions are made of `words`."""
        return XClipConfig(
            clip={
                "embed_dim": self.width,
                "vision_cfg": {
                    "image_size": self.image_size,
                    "patch_size": self.patch_size,
                    "width": self.width,
                    "layers": self.vision_layers,
                    "head_width": 32,
                },
                "text_cfg": {
                    "context_length": self.num_words,
                    "vocab_size": 49408,
                    "width": self.width,
                    "heads": self.width // 32,
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
