"""CLIP's two towers, built by open_clip."""

from __future__ import annotations

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg

from model.config import XClipConfig
from model.tokenization import Tokenizer


def clip_towers(config: XClipConfig) -> open_clip.CLIP:
    """Vision tower, text tower and `logit_scale` of a config, with random weights."""
    text_cfg = dict(config.clip["text_cfg"])
    if config.vocabulary is not None:
        text_cfg["vocab_size"] = Tokenizer(config.num_words, config.vocabulary).size
    return open_clip.CLIP(
        embed_dim=config.embedding_dim,
        vision_cfg=CLIPVisionCfg(**config.clip["vision_cfg"]),
        text_cfg=CLIPTextCfg(**text_cfg),
        quick_gelu=bool(config.clip.get("quick_gelu", False)),
    )
