"""The two towers of an image-text model, built by open_clip, and where their parts lie."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from model.architecture import Architecture
from model.config import XClipConfig
from model.quick_start import complete_import
from model.tokenization import Tokenizer


def clip_towers(config: XClipConfig) -> open_clip.CLIP | open_clip.CustomTextCLIP:
    """Vision tower, text tower, `logit_scale` and perhaps `logit_bias` of a config, with random weights."""
    towers, architecture = config.clip, config.architecture
    if architecture.huggingface is not None or "timm_model_name" in towers["vision_cfg"]:
        complete_import()
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


def encode_positions(text: Any, architecture: Architecture, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the text tower makes of texts, as open_clip's `encode_text` computes it, for each position too.

    Args:
        text: From `text_tower`.
        architecture: Of the same config.
        input_ids: int64 [T, L]; where `architecture.reads_padding` of the full length.

    Returns:
        Sentence, float [T, D], and positions, float [T, L, D], projected and not normalised. The positions of
        a tower of transformers are its last hidden states.
    """
    if architecture.sentence_at == "pooled":
        mask = (input_ids != text.config.pad_token_id).long()
        out = text.transformer(input_ids=input_ids, attention_mask=mask)
        return text.proj(text.pooler(out, mask)), text.proj(out.last_hidden_state)
    x = text.token_embedding(input_ids)  # [T, L, text width]
    length = input_ids.shape[1]
    mask = None
    if architecture.sentence_at == "appended":  # a learned position after the last, and a mask of padding
        x = torch.cat([x, text.cls_emb.expand(x.shape[0], 1, -1)], dim=1)
        length = length + 1
        mask = text._build_additive_mask(input_ids, length, x.dtype)
    if text.attn_mask is not None:
        causal = text.attn_mask[:length, :length]
        mask = causal if mask is None else causal + mask
    x = text.transformer(x + text.positional_embedding[:length], attn_mask=mask)
    x = _project(text, text.ln_final(x))  # [T, L, D]
    return _sentence(architecture, input_ids, x), x[:, : input_ids.shape[1]]


def _sentence(architecture: Architecture, input_ids: Tensor, x: Tensor) -> Tensor:
    """Of positions, float [T, L, D], the one at which the sentence is read, float [T, D].

    Written without Python's `len`: conversions for other runtimes trace it for any T and L.
    """
    if architecture.sentence_at in ("argmax", "eos"):
        position = sentence_position(architecture, input_ids)
        return x.gather(1, position[:, None, None].expand(-1, 1, x.shape[2]))[:, 0]
    return x[:, 0] if architecture.sentence_at == "first" else x[:, -1]


def sentence_position(architecture: Architecture, input_ids: Tensor) -> Tensor:
    """Of token ids, int64 [T, L], the token at which the sentence is read, int64 [T]: the one of the highest
    id ("argmax"), or the first end token ("eos")."""
    if architecture.sentence_at == "argmax":
        return input_ids.argmax(dim=1)
    return (input_ids == architecture.end_id).int().argmax(dim=1)


def _project(text: Any, x: Tensor) -> Tensor:
    projection = text.text_projection
    if projection is None:
        return x
    projected: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return projected
