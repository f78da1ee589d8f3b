"""The two towers of an image-text model, built by open_clip, and where their parts lie."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import nn

from model.config import XClipConfig
from model.tokenization import Tokenizer


def clip_towers(config: XClipConfig) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    """Vision tower, text tower, `logit_scale` and perhaps `logit_bias` of a config, with random weights."""
    towers, architecture = config.clip, config.architecture
    text_cfg = {name: value for name, value in towers["text_cfg"].items() if name != "hf_config"}
    if config.vocabulary is not None:
        text_cfg["vocab_size"] = Tokenizer(config.num_tokens, config.vocabulary).size
    with TemporaryDirectory() as directory:
        if architecture.huggingface is not None:
            # open_clip reads the configuration by name; from a directory it takes it without a network.
            Path(directory, "config.json").write_text(json.dumps(architecture.huggingface), encoding="utf-8")
            text_cfg |= {"hf_model_name": directory, "hf_model_pretrained": False}
        kind = open_clip.CustomTextCLIP if architecture.custom_text else open_clip.CLIP
        bias = {"init_logit_bias": towers["init_logit_bias"]} if architecture.has_bias else {}
        return kind(
            embed_dim=architecture.embedding_dim,
            vision_cfg=CLIPVisionCfg(**towers["vision_cfg"]),
            text_cfg=CLIPTextCfg(**text_cfg),
            quick_gelu=bool(towers.get("quick_gelu", False)),
            **bias,
        )


_PLACE = re.compile(
    r"(?:^|\.)(?:"
    # open_clip's ViT, ResNet and text transformer; timm's stems; embeddings of transformers
    r"(?P<below>conv[123]|bn[123]|class_embedding|positional_embedding|ln_pre|token_embedding|cls_emb"
    r"|patch_embed|pos_embed|cls_token|reg_token|norm_pre|stem|embeddings|embed_tokens|embed_positions"
    r"|layernorm_embedding|shared)(?:\.|$)"
    r"|(?:resblocks|blocks|stages|layers?|block)\.(?P<block>\d+)\.|layer(?P<stage>[1-4])\."
    r")"
)
BELOW_BLOCKS = -1


def block_of(name: str) -> int | None:
    """Where a parameter of a tower lies, by its name in `clip_towers`.

    Returns:
        The number of its block, from 0 (of its stage, in towers that have stages: ConvNeXt, FastViT, Swin,
        ResNet); `BELOW_BLOCKS` for stems and embeddings; None for what lies above the blocks.
    """
    if (found := _PLACE.search(name)) is None:
        return None
    if found["below"]:
        return BELOW_BLOCKS
    return int(found["block"]) if found["block"] else int(found["stage"]) - 1


def checkpoint_towers(clip: nn.Module, enabled: bool) -> None:
    """Keep only the input of each block of both towers for the backward pass, and compute the rest again."""
    clip.visual.set_grad_checkpointing(enabled)  # type: ignore[operator, union-attr]
    text = text_tower(clip)
    if hasattr(text, "pooler"):  # open_clip's adapter of transformers knows only how to begin, by an old name
        old = not hasattr(text.transformer, "activation_checkpointing_enable")
        name = "gradient_checkpointing" if old else "activation_checkpointing"
        getattr(text.transformer, f"{name}_{'enable' if enabled else 'disable'}")()
    else:
        text.transformer.grad_checkpointing = enabled


def keep_statistics(clip: nn.Module) -> None:
    """Leave batch normalisation as it was trained: a batch here has few clips, whose frames are alike."""
    for module in clip.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def text_tower(clip: nn.Module) -> Any:
    """The module that holds the parts of the text tower: CLIP keeps them next to its vision tower."""
    return getattr(clip, "text", clip)


def vocabulary_size(clip: nn.Module) -> int:
    """Rows of the text tower's embedding table."""
    return int(clip.vocab_size)  # type: ignore[arg-type]
