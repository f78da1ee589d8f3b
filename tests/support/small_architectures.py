"""Small instances of open_clip's families, under names of their own, with tokenizers made here.

Each is the description of a published architecture with smaller numbers. What is not in the description is
made smaller where timm builds it; the rest is open_clip's, timm's and transformers' own code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
from open_clip import factory

SENTENCES = """
    a red dog runs on the beach two cats sleep sofa ein hund läuft am strand 犬 が 走る
    square with slow fast bar green blue yellow black purple
"""
WORDS = list(dict.fromkeys(SENTENCES.split()))
VIT = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}

TIMM = {
    **dict.fromkeys(("vit_base_patch16_siglip_224", "vit_base_patch16_siglip_384"), VIT),
    "eva02_base_patch16_clip_224": VIT,
    "vit_pe_core_tiny_patch16_384": VIT,
    "fastvit_mci0": {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64)},
    "convnext_base": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
    "swin_base_patch4_window7_224": {
        "img_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4,
    },
    "vit_relpos_medium_patch16_cls_224": VIT,
}  # fmt: skip
"""What makes timm's architectures small."""

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
TEXT = {"width": 32, "heads": 2, "layers": 2}
OWN_TOKENS = {**TEXT, "vocab_size": 96}

FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "siglip": ("ViT-B-16-SigLIP", {}, {**OWN_TOKENS, "context_length": 16}),
    "siglip2": ("ViT-B-16-SigLIP2", {}, OWN_TOKENS),
    "siglip-i18n": (
        "ViT-SO400M-16-SigLIP-i18n-256", {"timm_model_name": "vit_base_patch16_siglip_224"}, OWN_TOKENS,
    ),
    "mobileclip2": ("MobileCLIP2-S0", {}, TEXT),
    "eva02": ("EVA02-B-16", {}, TEXT),
    "pe-core": ("PE-Core-T-16-384", {}, TEXT),
    "convnext": ("convnext_base", {}, TEXT),
    "swin": ("swin_base_patch4_window7_224", {}, TEXT),
    "vit-of-timm": ("vit_relpos_medium_patch16_cls_224", {}, TEXT),
    "resnet": ("RN50", {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}, TEXT),
    "dfn": ("ViT-H-14-quickgelu", VISION, TEXT),
    "clipa": ("ViT-L-14-CLIPA", VISION, OWN_TOKENS),
    "metaclip2": ("ViT-H-14-worldwide", VISION, OWN_TOKENS),
    "coca": ("coca_ViT-B-32", {**VISION, "attn_pooler_heads": 2}, TEXT),
    "coca-roberta": ("coca_roberta-ViT-B-32", VISION, {"vocab_size": 96}),
    "roberta": ("roberta-ViT-B-32", VISION, {}),
    "xlm-roberta": ("xlm-roberta-base-ViT-B-32", VISION, {}),
    "mt5": ("mt5-base-ViT-B-32", VISION, {}),
    "nllb": ("nllb-clip-base-siglip", {}, {}),
}  # fmt: skip
"""By family: a published architecture, and what is smaller in its vision and its text tower."""

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "max_position_embeddings": 80, **_BERT},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "max_position_embeddings": 80, **_BERT},
    "google/mt5-base": {
        "model_type": "mt5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
        "is_encoder_decoder": True,
    },
    "facebook/nllb-200-distilled-600M": {
        "model_type": "m2m_100", "d_model": 32, "encoder_layers": 2, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 128, "is_encoder_decoder": True,
    },
}  # fmt: skip
"""Small configurations in place of those on the Hub."""


def write_tokenizer(directory: Path, name: str) -> None:
    """A tokenizer of `WORDS`, with the special tokens and the frame of the one of that name on the Hub."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end, pad = "<s>", "</s>", "<pad>"
    special = [start, pad, end, "<unk>"]
    if "SigLIP2" in name or "mt5" in name:
        special, start = ["<pad>", "</s>", "<s>", "<unk>"], ""
    elif "SigLIP" in name:  # pads with its end token
        special, start, pad = ["<unk>", "</s>"], "", "</s>"
    elif "bert-base" in name:
        special, start, end, pad = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[CLS]", "[SEP]", "[PAD]"
    unknown = next(token for token in special if "unk" in token.lower())
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    frame = f"{start} $A {end}".strip()
    named = [(token, vocabulary[token]) for token in (start, end) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=named)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, pad_token=pad, eos_token=end,
        sep_token=end, cls_token=start or None, bos_token=start or None,
    ).save_pretrained(directory)  # fmt: skip


def describe(family: str, directory: Path) -> dict[str, Any]:
    """open_clip's description of a small architecture; its tokenizer and configuration are put below
    `directory`."""
    source, vision, text = FAMILIES[family]
    described: dict[str, Any] = open_clip.get_model_config(source)
    described["embed_dim"] = 32
    described["vision_cfg"] |= vision
    described["text_cfg"] |= text
    if described["vision_cfg"].get("timm_model_name"):
        described["vision_cfg"]["image_size"] = 64 if family == "mobileclip2" else 32
    if "multimodal_cfg" in described:
        described["multimodal_cfg"] |= {**TEXT, "vocab_size": 96, "attn_pooler_heads": 2}
    name = described["text_cfg"].get("hf_tokenizer_name")
    if name:
        folder = directory / f"{family}-files"
        write_tokenizer(folder, name)
        described["text_cfg"]["hf_tokenizer_name"] = str(folder)
        if tower := described["text_cfg"].get("hf_model_name"):
            small = {**_TEXT_TOWERS[tower], "vocab_size": 96, "pad_token_id": 0 if "mt5" in name else 1}
            (folder / "config.json").write_text(json.dumps(small))
            described["text_cfg"]["hf_model_name"] = str(folder)
    return described


@contextmanager
def small_architectures(directory: Path, families: Iterator[str] | list[str]) -> Iterator[None]:
    """While it lasts, open_clip knows `small-FAMILY` for each of `families`."""
    real = timm.create_model

    def create_model(name: str, **options: Any) -> Any:
        return real(name, **{**TIMM.get(name, {}), **options})

    configs = directory / "configs"
    configs.mkdir(parents=True)
    for family in families:
        (configs / f"small-{family}.json").write_text(json.dumps(describe(family, directory)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", create_model)
        patch.setattr(factory, "_MODEL_CONFIG_PATHS", [*factory._MODEL_CONFIG_PATHS])
        patch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
        open_clip.add_model_config(configs)
        yield
