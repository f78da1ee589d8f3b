"""From our layout to the official one (github.com/xuguohai/X-CLIP), which `model.checkpoints.official`
reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.atomic_files import write_durably
from model.checkpoints.loading import CONFIG_FILE, WEIGHTS_FILE
from model.checkpoints.official import HEAD_WIDTH, is_half_in_official, official_name, official_order
from model.config import XClipConfig
from model.errors import ConversionError
from model.xclip import XClip

Layout = Literal["official", "ours"]
Precision = Literal["auto", "float32", "float16"]

MAX_POSITIONS = 128
"""The official code stops where max_words + max_frames is more (modules/cross-base/cross_config.json)."""

_SIZES = {
    "width",
    "heads",
    "head_width",
    "layers",
    "patch_size",
    "image_size",
    "context_length",
    "vocab_size",
}
_WITHOUT_EFFECT = {
    *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads"),
    *("hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
    *("tokenizer_mode", "tokenizer_kwargs", "pad_id", "eos_id"),
    *("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
}
"""Fields of open_clip's towers that change no score of ours: for training, or for other kinds of tower."""

_REASONS = {
    "mask_padding": "padding takes no part in the scores, in the official code it does",
    "score_names": "only some of the four scores are averaged, the official code averages all",
    "vocabulary": "it has a vocabulary of its own, the official tokenizer has all of CLIP's tokens",
    "pixel_mean": "frames are normalised by other channel means than CLIP's",
    "pixel_deviation": "frames are normalised by other channel deviations than CLIP's",
    "quick_gelu": "the towers use GELU, the official code QuickGELU",
    "aggregation": "similarities are aggregated otherwise than by attention (AOSM)",
    "temperature": "the softmax of AOSM has another temperature than 0.01",
    "word_weighting": "words are weighted, the official code counts all alike",
    "frame_word_sides": "frame_word is the side of the words alone, the official code averages both",
}


@dataclass(frozen=True)
class OfficialTensors:
    """A model in the official layout.

    tensors: by official name, in the order of the official `state_dict`.
    num_half: how many are float16. lossy: official names of those that float16 cannot hold exactly.
    """

    tensors: Mapping[str, Tensor]
    num_half: int
    lossy: tuple[str, ...]


def differences(config: XClipConfig) -> list[str]:
    """Why the official code would score otherwise than this network, or not load it; empty if it would not.

    The official layout holds tensors and nothing else, so every choice of a config must be the one that the
    official code takes by itself. A field that this function does not know is a difference when it is not at
    its default.
    """
    official = type(config)(
        clip={**config.clip, "quick_gelu": True},
        num_words=config.num_words,
        num_frames=config.num_frames,
        temporal_layers=config.temporal_layers,
        mask_padding=False,
    )
    return [
        *_size_differences(config),
        *_choice_differences(_choices(config), _choices(official)),
        *_tower_differences("vision tower", config.clip["vision_cfg"], CLIPVisionCfg),
        *_tower_differences("text tower", config.clip["text_cfg"], CLIPTextCfg),
    ]


def _choices(config: XClipConfig) -> dict[str, Any]:
    values = {one.name: getattr(config, one.name) for one in fields(config) if one.name != "description"}
    towers = values.pop("clip")
    # The order of the scores changes nothing.
    return {**values, "score_names": sorted(config.score_names), "quick_gelu": bool(towers.get("quick_gelu"))}


def _choice_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for name, value in ours.items():
        if value != theirs[name]:
            yield _REASONS.get(name, f"{name} is {value!r}, in the official code {theirs[name]!r}")


def _tower_differences(
    tower: str, ours: Mapping[str, Any], kind: type[CLIPVisionCfg] | type[CLIPTextCfg]
) -> Iterator[str]:
    values, standard = asdict(kind(**ours)), asdict(kind())
    for name in sorted(values.keys() - _SIZES - _WITHOUT_EFFECT):
        if (values[name] or None) != (standard[name] or None):  # None, {} and False say the same
            yield f"the {tower} has {name} {values[name]!r}, in the official code {standard[name]!r}"


def _size_differences(config: XClipConfig) -> Iterator[str]:
    vision = CLIPVisionCfg(**config.clip["vision_cfg"])
    text = CLIPTextCfg(**config.clip["text_cfg"])
    for tower, width, heads in (
        ("vision", vision.width, vision.width // vision.head_width),
        ("text", text.width, text.heads),
    ):
        if heads != width // HEAD_WIDTH:
            official = f"width // 64 = {width // HEAD_WIDTH}"
            yield f"the {tower} tower has {heads} heads, in the official code {official}"
    if config.temporal_layers and text.width != config.embedding_dim:
        yield (
            f"the temporal transformer has width {config.embedding_dim}, "
            f"in the official code that of the text tower, {text.width}"
        )
    side, patch = vision.image_size, vision.patch_size
    if not isinstance(side, int) or not isinstance(patch, int) or side % patch:
        yield f"frames of {side} pixels in patches of {patch} are no square of whole patches"
    if config.num_words + config.num_frames > MAX_POSITIONS:
        yield (
            f"{config.num_words} words and {config.num_frames} frames are more than {MAX_POSITIONS} in all, "
            "where the official code stops"
        )


def to_official(model: XClip, precision: Precision = "auto") -> OfficialTensors:
    """The tensors of an official checkpoint that scores as `model` does.

    precision: `float16`: what the official code keeps in float16 is rounded to it; `float32`: nothing is;
        `auto`: as `float16` if that loses nothing, otherwise `float32`.
    Raises ConversionError with every reason where the official code would score otherwise.
    """
    if found := differences(model.config):
        raise ConversionError("the official layout cannot say this model: " + "; ".join(found))
    named = {official_name(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    vision, text = model.config.clip["vision_cfg"], model.config.clip["text_cfg"]
    order = official_order(vision["layers"], CLIPTextCfg(**text).layers, model.config.temporal_layers)
    if unequal := sorted(named.keys() ^ set(order)):
        raise ConversionError(
            f"the official layout cannot say this model: tensor {unequal[0]} is not in both"
        )
    tensors = {name: named[name].float().contiguous().clone() for name in order}
    halves = {name: tensor.half() for name, tensor in tensors.items() if is_half_in_official(name)}
    lossy = tuple(name for name, half in halves.items() if not torch.equal(half.float(), tensors[name]))
    if precision == "float16":
        for name in lossy:
            if not bool(halves[name].isfinite().all()):
                raise ConversionError(f"tensor {name} has values beyond the range of float16; write float32")
    if precision == "float16" or (precision == "auto" and not lossy):
        tensors |= halves
    else:
        halves = {}
    return OfficialTensors(tensors, len(halves), lossy)


def official_options(config: XClipConfig) -> str:
    """The options with which the official `main_xclip.py` builds a network that such a checkpoint fits."""
    temporal = (
        f"--sim_header seqTransf --cross_num_hidden_layers {config.temporal_layers}"
        if config.temporal_layers
        else "--sim_header meanP"
    )
    lengths = f"--max_words {config.num_words} --max_frames {config.num_frames}"
    return f"{lengths} {temporal} --loose_type --linear_patch 2d"


def layout_of(destination: Path) -> Layout | None:
    """The layout that a destination's name asks for, None where it asks for neither clearly."""
    if destination.is_dir():
        return "ours"
    if is_official_name(destination.name) or destination.is_file():
        return "official"
    return None if destination.suffix in {".pt", ".pth", ".ckpt", ".json", ".zip"} else "ours"


def is_official_name(name: str) -> bool:
    """Whether official checkpoints have such names: `*.bin`, `pytorch_model.bin.4`, or `*.safetensors`."""
    return re.fullmatch(r".+\.(bin(\.[\w-]+)*|safetensors)", name) is not None


def require_free(destination: Path, layout: Layout, overwrite: bool) -> None:
    """Raise ConversionError where writing would lose something, or cannot be done."""
    if layout == "official":
        if destination.is_dir():
            raise ConversionError(
                f"{destination} is a directory; name a file in it, like pytorch_model.bin.0"
            )
        if not is_official_name(destination.name):
            raise ConversionError(f"{destination} must be named *.bin, *.bin.N or *.safetensors")
        taken = [destination] if destination.exists() else []
    else:
        if destination.exists() and not destination.is_dir():
            raise ConversionError(f"{destination} is a file; our layout is a directory")
        taken = [path for name in (CONFIG_FILE, WEIGHTS_FILE) if (path := destination / name).exists()]
    if taken and not overwrite:
        raise ConversionError(f"{taken[0]} exists; --overwrite replaces it")
    if layout == "official" and not destination.absolute().parent.is_dir():
        raise ConversionError(f"there is no directory {destination.parent}")


def write_official(tensors: Mapping[str, Tensor], destination: Path) -> None:
    """Write a checkpoint file: safetensors by that suffix, else a torch archive of a plain dictionary.

    The torch archive keeps the order of the tensors; safetensors has an order of its own.
    Raises ConversionError where the file cannot be written; nothing is left behind then.
    """
    write = save_file if destination.suffix == ".safetensors" else torch.save
    try:
        write_durably(destination, lambda path: write(dict(tensors), path))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConversionError(f"{destination} cannot be written: {reason}") from None
