"""The official checkpoint layout (github.com/xuguohai/X-CLIP), in and out: tensors in, tensors out.

It is one file of tensors and nothing else. Reading infers every size from their shapes; writing refuses a
config whose choices are not the ones that the official code uses by default.
"""

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

from model.atomic_files import write_atomically
from model.checkpoints.foreign import require_xclip, without_wrappings
from model.checkpoints.tensors import Checkpoint, read_tensors
from model.config import XClipConfig
from model.errors import CheckpointError, ConversionError

Precision = Literal["auto", "float32", "float16"]

HEAD_WIDTH = 64
"""Every transformer has width // 64 heads (official modules/modeling_xclip.py, modules/module_clip.py)."""

_MATRICES = {
    "global_mat_weight": "matrices.global_matrix",
    "word_logit_weight": "matrices.word_logit",
    "frame_logit_weight": "matrices.frame_logit",
    "local_mat_weight": "matrices.local_matrix",
    "frame_mat_weight": "matrices.frame",
    "word_mat_weight": "matrices.word",
    "frame_mat_weight2": "matrices.frame_second",
    "word_mat_weight2": "matrices.word_second",
}
_POSITIONS = {"frame_position_embeddings.weight": "temporal.frame_position_embeddings.weight"}
_NAMES = {**_MATRICES, **_POSITIONS}
_PREFIXES = {"transformerClip.resblocks.": "temporal.resblocks.", "clip.": "clip."}

_BLOCK = (
    *("attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"),
    *("ln_1.weight", "ln_1.bias"),
    *("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias"),
)
# Names


def our_name(official: str) -> str | None:
    """Our name of an official tensor, None where there is none."""
    if official in _NAMES:
        return _NAMES[official]
    for theirs, ours in _PREFIXES.items():
        if official.startswith(theirs):
            return ours + official.removeprefix(theirs)
    return None


def official_name(ours: str) -> str:
    """Official name of one of our tensors. Raises CheckpointError where there is none."""
    for theirs, name in _NAMES.items():
        if name == ours:
            return theirs
    for theirs, prefix in _PREFIXES.items():
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    raise CheckpointError(f"{ours} has no counterpart in the official layout")


def official_order(vision_layers: int, text_layers: int, temporal_layers: int) -> list[str]:
    """Every tensor of an official checkpoint, in the order of the official model's `state_dict`.

    Without a temporal transformer (`--sim_header meanP`) there are no frame positions either.
    """

    def blocks(prefix: str, num_layers: int) -> list[str]:
        return [f"{prefix}resblocks.{layer}.{name}" for layer in range(num_layers) for name in _BLOCK]

    vision = "clip.visual."
    return [
        *_MATRICES,
        *("clip.positional_embedding", "clip.text_projection", "clip.logit_scale"),
        *(vision + name for name in ("class_embedding", "positional_embedding", "proj", "conv1.weight")),
        *(vision + name for name in ("ln_pre.weight", "ln_pre.bias")),
        *blocks(f"{vision}transformer.", vision_layers),
        *(vision + name for name in ("ln_post.weight", "ln_post.bias")),
        *blocks("clip.transformer.", text_layers),
        *("clip.token_embedding.weight", "clip.ln_final.weight", "clip.ln_final.bias"),
        *(_POSITIONS if temporal_layers else ()),
        *blocks("transformerClip.", temporal_layers),
    ]


def is_half_in_official(name: str) -> bool:
    """Whether the official model holds the tensor of this official name in float16.

    Its `convert_weights` (modules/module_clip.py) halves CLIP's linear, convolution, attention and projection
    weights; layer norms, embeddings, the temporal transformer and AOSM stay float32.
    """
    return name.startswith("clip.") and (
        ".attn." in name
        or ".mlp." in name
        or name in ("clip.visual.conv1.weight", "clip.visual.proj", "clip.text_projection")
    )


# In


def read_official(path: Path) -> Checkpoint:
    """An official checkpoint file, by our names.

    Args:
        path: `pytorch_model.bin.N`, any other torch archive of tensors, or the same as .safetensors.

    Raises:
        CheckpointError: It is another network, a tensor is none of an X-CLIP, or the sizes make no network.
            The message names the network or the tensor.
    """
    return from_official(read_tensors(path))


def from_official(tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The tensors of an official checkpoint by our names, and the config that their shapes imply.

    Raises:
        CheckpointError: As `read_official`.
    """
    tensors = without_wrappings(tensors)
    require_xclip(tensors)
    config = infer_config(tensors)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = our_name(name)
        if ours is None:
            raise CheckpointError(f"unexpected tensor {name}")
        renamed[ours] = tensor
    return Checkpoint(config, renamed, official_name)


def infer_config(tensors: Mapping[str, Tensor]) -> XClipConfig:
    """All sizes of an official checkpoint from its weights; heads are width // 64 in every transformer.

    The towers are spelled as open_clip spells those of `ViT-B-32-quickgelu`, so that a model which was
    trained from there has the same config and fingerprint after a way through the official layout.

    Raises:
        CheckpointError: The sizes cannot be read or make no network; the message names the tensor.
    """
    vision_width, _, _, patch_size = _shape(tensors, "clip.visual.conv1.weight", 4)
    _require_heads("clip.visual.conv1.weight", vision_width)
    num_patches = _shape(tensors, "clip.visual.positional_embedding", 2)[0] - 1
    grid = round(num_patches**0.5)
    if grid * grid != num_patches:
        raise CheckpointError(
            f"tensor clip.visual.positional_embedding has {num_patches + 1} rows, expected a square plus one"
        )
    context_length, text_width = _shape(tensors, "clip.positional_embedding", 2)
    _require_heads("clip.positional_embedding", text_width)
    return XClipConfig(
        clip={
            "embed_dim": _shape(tensors, "clip.text_projection", 2)[1],
            "vision_cfg": {
                "image_size": patch_size * grid,
                "patch_size": patch_size,
                "width": vision_width,
                "layers": _num_layers(tensors, "clip.visual.transformer.resblocks."),
            },
            "text_cfg": {
                "context_length": context_length,
                "vocab_size": _shape(tensors, "clip.token_embedding.weight", 2)[0],
                "width": text_width,
                "heads": text_width // HEAD_WIDTH,
                "layers": _num_layers(tensors, "clip.transformer.resblocks."),
            },
            "quick_gelu": True,
        },
        num_words=_shape(tensors, "word_mat_weight", 2)[0],
        num_frames=_shape(tensors, "frame_mat_weight", 2)[0],
        temporal_layers=_num_layers(tensors, "transformerClip.resblocks."),
        mask_padding=False,
    )


def _shape(tensors: Mapping[str, Tensor], name: str, num_dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise CheckpointError(f"missing tensor {name}")
    found = tuple(tensors[name].shape)
    if len(found) != num_dimensions:
        raise CheckpointError(f"tensor {name} is {list(found)}, expected {num_dimensions} dimensions")
    return found


def _num_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    indices = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    # Counted, not the highest number plus one: a name with a number far out builds no network of that depth.
    for layer in range(len(indices)):
        if str(layer) not in indices:
            raise CheckpointError(f"missing tensor {prefix}{layer}.{_BLOCK[0]}")
    return len(indices)


def _require_heads(name: str, width: int) -> None:
    if width < HEAD_WIDTH or width % (width // HEAD_WIDTH):
        raise CheckpointError(f"tensor {name} has width {width}, which width // 64 heads cannot share")


# Out

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
    "pixel_deviation": "frames are normalised by other channel standard deviations than CLIP's",
    "quick_gelu": "the towers use GELU, the official code QuickGELU",
    "aggregation": "similarities are aggregated by something else than attention (AOSM)",
    "temperature": "the softmax of AOSM has another temperature than 0.01",
    "word_weighting": "words are weighted, in the official code all count the same",
    "resize_mode": "frames are not cropped to their centre square",
    "interpolation": "frames are not resized bicubically",
    "fill_color": "frames are padded with another colour",
    "frame_word_sides": "frame_word is the side of the words alone, the official code averages both",
}


@dataclass(frozen=True)
class OfficialTensors:
    """A model in the official layout.

    Attributes:
        tensors: By official name, in the order of the official `state_dict`.
        num_half: How many are float16.
        lossy: Official names of those that float16 cannot hold exactly.
    """

    tensors: Mapping[str, Tensor]
    num_half: int
    lossy: tuple[str, ...]


def to_official(
    config: XClipConfig, tensors: Mapping[str, Tensor], precision: Precision = "auto"
) -> OfficialTensors:
    """The tensors of an official checkpoint that scores as this model does.

    Args:
        config: The model's.
        tensors: Its weights, by our names.
        precision: `float16`: what the official code keeps in float16 is rounded to it; `float32`: nothing is;
            `auto`: as `float16` if that loses nothing, otherwise `float32`.

    Raises:
        ConversionError: The official code would score differently; the message holds every reason.
        CheckpointError: A tensor has no counterpart in the official layout.
    """
    if found := differences(config):
        raise ConversionError("the official layout cannot represent this model: " + "; ".join(found))
    named = {official_name(name): tensor.detach().cpu() for name, tensor in tensors.items()}
    vision, text = config.clip["vision_cfg"], CLIPTextCfg(**config.clip["text_cfg"])
    order = official_order(vision["layers"], text.layers, config.temporal_layers)
    if unequal := sorted(named.keys() ^ set(order)):
        raise ConversionError(
            f"the official layout cannot represent this model: tensor {unequal[0]} is not in both"
        )
    single = {name: named[name].float().contiguous().clone() for name in order}
    halves = {name: tensor.half() for name, tensor in single.items() if is_half_in_official(name)}
    lossy = tuple(name for name, half in halves.items() if not torch.equal(half.float(), single[name]))
    if precision == "float16":
        for name in lossy:
            if not bool(halves[name].isfinite().all()):
                raise ConversionError(f"tensor {name} has values beyond the range of float16; write float32")
    if precision == "float16" or (precision == "auto" and not lossy):
        return OfficialTensors({**single, **halves}, len(halves), lossy)
    return OfficialTensors(single, 0, lossy)


def write_official(tensors: Mapping[str, Tensor], destination: Path) -> None:
    """Write a checkpoint file: safetensors by that suffix, else a torch archive of a plain dictionary.

    The torch archive keeps the order of the tensors; safetensors has an order of its own.

    Raises:
        ConversionError: The file cannot be written; nothing is left then.
    """
    write = save_file if destination.suffix == ".safetensors" else torch.save
    try:
        write_atomically(destination, lambda path: write(dict(tensors), path))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConversionError(f"{destination} cannot be written: {reason}") from None


def is_official_name(name: str) -> bool:
    """Whether official checkpoints have such names: `*.bin`, `pytorch_model.bin.4`, or `*.safetensors`."""
    return re.fullmatch(r".+\.(bin(\.[\w-]+)*|safetensors)", name) is not None


def official_options(config: XClipConfig) -> str:
    """The options with which the official `main_xclip.py` builds a network that such a checkpoint fits."""
    temporal = (
        f"--sim_header seqTransf --cross_num_hidden_layers {config.temporal_layers}"
        if config.temporal_layers
        else "--sim_header meanP"
    )
    lengths = f"--max_words {config.num_words} --max_frames {config.num_frames}"
    return f"{lengths} {temporal} --loose_type --linear_patch 2d"


def differences(config: XClipConfig) -> list[str]:
    """Why the official code would score differently than this network, or not load it; empty if it would not.

    The official layout holds tensors and nothing else, so every choice of a config must be the one that the
    official code uses by default. A field that this function does not know is a difference when it is not at
    its default.
    """
    if found := list(_architecture_differences(config)):
        return found
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


def _architecture_differences(config: XClipConfig) -> Iterator[str]:
    """Why the towers are not CLIP's at all; further differences then do not matter."""
    architecture, vision = config.architecture, config.clip["vision_cfg"]
    if vision.get("timm_model_name") or not isinstance(vision.get("layers", 12), int):
        name = vision.get("timm_model_name") or "ResNet"
        yield f"the vision tower is a {name}, in the official code CLIP's ViT"
    if architecture.custom_text:
        yield "the text tower is not CLIP's, which the official code needs"
    if architecture.tokenizer is not None:
        yield f"texts are read by the tokenizer {architecture.tokenizer}, in the official code by CLIP's"
    if architecture.has_bias:
        yield "scores have a learned bias (logit_bias), in the official code none"


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
