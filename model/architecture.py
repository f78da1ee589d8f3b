"""What open_clip's description of an image-text model means for us: one record, read where models differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

SentenceAt = Literal["argmax", "eos", "first", "last", "appended", "pooled"]

CONTEXT_LENGTH = 77
"""CLIP's, and open_clip's default (open_clip/model.py `CLIPTextCfg`)."""


@dataclass(frozen=True)
class Architecture:
    """The facts of a pair of towers that code outside them depends on.

    Attributes:
        embedding_dim: D.
        image_size: R, side of the square input in pixels.
        context_length: The most positions that the text tower reads.
        custom_text: The text tower is a module of its own (`open_clip.CustomTextCLIP`), not CLIP's.
        huggingface: The `config.json` of a text tower of transformers; None for open_clip's own transformer.
        sentence_at: Where the sentence is read: at the highest token id (CLIP), at the first end token, at
            the first or last position, at a position that the tower appends (CoCa), or by the pooler of a
            tower of transformers.
        is_causal: A position sees only those before it.
        end_id: The end token where `sentence_at` is "eos".
        tokenizer: The tokenizer's repository on the Hub; None for CLIP's byte pairs.
        tokenizer_options: Of `open_clip.tokenizer.HFTokenizer`.
        has_bias: Trained with a sigmoid (SigLIP): a `logit_bias` next to `logit_scale`, and so probabilities.
    """

    embedding_dim: int
    image_size: int
    context_length: int
    custom_text: bool
    huggingface: Mapping[str, Any] | None
    sentence_at: SentenceAt
    is_causal: bool
    end_id: int
    tokenizer: str | None
    tokenizer_options: Mapping[str, Any]
    has_bias: bool

    @classmethod
    def of(cls, towers: Mapping[str, Any]) -> Architecture:
        """From `XClipConfig.clip`. Raises KeyError or TypeError where that is no description at all."""
        vision, text = towers["vision_cfg"], towers["text_cfg"]
        size = vision.get("image_size", 224)
        huggingface = text.get("hf_config")
        if text.get("hf_model_name"):
            sentence_at: SentenceAt = "pooled"
        else:
            sentence_at = "appended" if text.get("embed_cls") else text.get("pool_type", "argmax")
        return cls(
            embedding_dim=int(towers["embed_dim"]),
            image_size=int(size if isinstance(size, int) else size[0]),
            context_length=int(text.get("context_length", CONTEXT_LENGTH)),
            custom_text=bool(towers.get("custom_text") or text.get("hf_model_name")),
            huggingface=huggingface,
            sentence_at=sentence_at,
            is_causal=not (text.get("hf_model_name") or text.get("no_causal_mask")),
            end_id=int(text.get("eos_id", 2)),
            tokenizer=text.get("hf_tokenizer_name"),
            tokenizer_options={
                "tokenizer_mode": text.get("tokenizer_mode"),
                **(text.get("tokenizer_kwargs") or {}),
            },
            has_bias=towers.get("init_logit_bias") is not None,
        )

    @cached_property
    def reads_padding(self) -> bool:
        """Whether the sentence depends on the padding after the text, so that every text has its full length.

        Not so where a position sees only those before it and the sentence is read within the text, nor where
        padding is masked (towers of transformers).
        """
        if self.sentence_at == "pooled":
            return False
        return not self.is_causal or self.sentence_at in ("last", "appended")

    def num_tokens(self, num_words: int) -> int:
        """Length of a row of token ids: `num_words` by the official rule of CLIP's tokenizer, else all.

        CLIP's rule cuts the text itself, and the words that are scored are all of its positions. Other towers
        read their full length, and the first `num_words` positions are scored.
        """
        if self.tokenizer is None and not self.reads_padding:
            return num_words
        return self.context_length

    def problems(self, towers: Mapping[str, Any]) -> list[str]:
        """Why no model can be built from `towers`, of which this is the record; empty if one can."""
        vision, text = towers["vision_cfg"], towers["text_cfg"]
        found = []
        size = vision.get("image_size", 224)
        if not isinstance(size, int) and len(set(size)) > 1:
            found.append(f"frames of {size[0]} by {size[1]} pixels are not square")
        if self.sentence_at not in ("argmax", "eos", "first", "last", "appended", "pooled"):
            found.append(f"the text tower is pooled by {self.sentence_at!r}, which gives no sentence")
        if text.get("hf_model_name") and self.huggingface is None:
            found.append(
                f"the configuration of the text tower {text['hf_model_name']} is missing (hf_config)"
            )
        return found


def without_training(description: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's description of an architecture, with what our towers are built from and nothing else.

    A captioning decoder (CoCa's `multimodal_cfg`) takes no part in search; towers return what they pool; no
    weights are fetched while a tower is built. What CLIP's own architectures say stays as it is spelled, so
    that their text, and with it every fingerprint, is what it was.
    """
    wanted = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias")
    towers = {name: description[name] for name in wanted if name in description}
    if "multimodal_cfg" in description:
        towers["custom_text"] = True
    for tower in ("vision_cfg", "text_cfg"):
        left_out = ("output_tokens", "timm_model_pretrained", "hf_model_pretrained")
        towers[tower] = {name: value for name, value in towers[tower].items() if name not in left_out}
    return towers
