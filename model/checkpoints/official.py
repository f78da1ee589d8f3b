"""The official checkpoint layout (github.com/xuguohai/X-CLIP), read; `model.checkpoints.conversion` writes
it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.checkpoints.tensors import fill, place, read_tensors
from model.config import XClipConfig
from model.errors import CheckpointError
from model.xclip import XClip

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
_WRAPPERS = ("model_state_dict", "state_dict")
_PARALLEL_PREFIX = "module."


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
    raise CheckpointError(f"{ours} has no place in the official layout")


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


def load_official(path: Path, device: str = "auto") -> XClip:
    """See `XClip.from_official`."""
    tensors = without_parallel_prefix(read_tensors(path, wrapped_as=_WRAPPERS))
    model = XClip(infer_config(tensors))
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = our_name(name)
        if ours is None:
            raise CheckpointError(f"unexpected tensor {name}")
        renamed[ours] = tensor
    fill(model, renamed, official_name)
    return place(model, device)


def without_parallel_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the `module.` that torch's DistributedDataParallel puts before every name.

    Where only some names have it they stay as they are, and loading names the first that does not belong.
    """
    if tensors and all(name.startswith(_PARALLEL_PREFIX) for name in tensors):
        return {name.removeprefix(_PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def infer_config(tensors: Mapping[str, Tensor]) -> XClipConfig:
    """All sizes of an official checkpoint from its weights; heads are width // 64 in every transformer.

    The towers are spelled as open_clip spells those of `ViT-B-32-quickgelu`, so that a model which was
    trained from there has the same config and fingerprint after a way through the official layout.
    Raises CheckpointError, naming the tensor, where the sizes cannot be read or make no network.
    """

    def shape(name: str, num_dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"missing tensor {name}")
        found = tuple(tensors[name].shape)
        if len(found) != num_dimensions:
            raise CheckpointError(f"tensor {name} is {list(found)}, expected {num_dimensions} dimensions")
        return found

    def num_layers(prefix: str) -> int:
        indices = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
        for layer in range(len(indices)):
            if str(layer) not in indices:
                raise CheckpointError(f"missing tensor {prefix}{layer}.{_BLOCK[0]}")
        return len(indices)

    def divisible(name: str, width: int) -> int:
        if width < HEAD_WIDTH or width % (width // HEAD_WIDTH):
            raise CheckpointError(f"tensor {name} has width {width}, which width // 64 heads cannot share")
        return width

    vision_width, _, _, patch_size = shape("clip.visual.conv1.weight", 4)
    divisible("clip.visual.conv1.weight", vision_width)
    num_patches = shape("clip.visual.positional_embedding", 2)[0] - 1
    grid = round(num_patches**0.5)
    if grid * grid != num_patches:
        raise CheckpointError(
            f"tensor clip.visual.positional_embedding has {num_patches + 1} rows, expected a square plus one"
        )
    context_length, text_width = shape("clip.positional_embedding", 2)
    divisible("clip.positional_embedding", text_width)
    return XClipConfig(
        clip={
            "embed_dim": shape("clip.text_projection", 2)[1],
            "vision_cfg": {
                "image_size": patch_size * grid,
                "patch_size": patch_size,
                "width": vision_width,
                "layers": num_layers("clip.visual.transformer.resblocks."),
            },
            "text_cfg": {
                "context_length": context_length,
                "vocab_size": shape("clip.token_embedding.weight", 2)[0],
                "width": text_width,
                "heads": text_width // HEAD_WIDTH,
                "layers": num_layers("clip.transformer.resblocks."),
            },
            "quick_gelu": True,
        },
        num_words=shape("word_mat_weight", 2)[0],
        num_frames=shape("frame_mat_weight", 2)[0],
        temporal_layers=num_layers("transformerClip.resblocks."),
        mask_padding=False,
    )
