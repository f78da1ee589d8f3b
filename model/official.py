"""The official checkpoint layout (github.com/xuguohai/X-CLIP) and ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from model.config import XClipConfig
from model.errors import CheckpointError
from model.weights import fill, place, read_tensors
from model.xclip import XClip

_NAMES = {
    "global_mat_weight": "matrices.global_matrix",
    "local_mat_weight": "matrices.local_matrix",
    "word_logit_weight": "matrices.word_logit",
    "frame_logit_weight": "matrices.frame_logit",
    "word_mat_weight": "matrices.word",
    "frame_mat_weight": "matrices.frame",
    "word_mat_weight2": "matrices.word_second",
    "frame_mat_weight2": "matrices.frame_second",
    "frame_position_embeddings.weight": "temporal.frame_position_embeddings.weight",
}
_PREFIXES = {"transformerClip.resblocks.": "temporal.resblocks.", "clip.": "clip."}


def our_name(official: str) -> str | None:
    """Our name of an official tensor, None where there is none."""
    if official in _NAMES:
        return _NAMES[official]
    for theirs, ours in _PREFIXES.items():
        if official.startswith(theirs):
            return ours + official.removeprefix(theirs)
    return None


def official_name(ours: str) -> str:
    """Official name of one of our tensors."""
    for theirs, name in _NAMES.items():
        if name == ours:
            return theirs
    for theirs, prefix in _PREFIXES.items():
        if ours.startswith(prefix):
            return theirs + ours.removeprefix(prefix)
    raise CheckpointError(f"{ours} has no place in the official layout")


def load_official(path: Path, device: str = "auto") -> XClip:
    """See `XClip.from_official`."""
    tensors = read_tensors(path)
    config = infer_config(tensors)
    model = XClip(config)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        ours = our_name(name)
        if ours is None:
            raise CheckpointError(f"unexpected tensor {name}")
        renamed[ours] = tensor
    fill(model, renamed, official_name)
    return place(model, device)


def infer_config(tensors: Mapping[str, Tensor]) -> XClipConfig:
    """All sizes of an official checkpoint from its weights; heads are width // 64 in every transformer."""

    def shape(name: str, num_dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise CheckpointError(f"missing tensor {name}")
        found = tuple(tensors[name].shape)
        if len(found) != num_dimensions:
            raise CheckpointError(f"tensor {name} is {list(found)}, expected {num_dimensions} dimensions")
        return found

    def num_layers(prefix: str) -> int:
        indices = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
        return 1 + max((int(index) for index in indices if index.isdecimal()), default=-1)

    vision_width, _, _, patch_size = shape("clip.visual.conv1.weight", 4)
    num_patches = shape("clip.visual.positional_embedding", 2)[0] - 1
    grid = round(num_patches**0.5)
    if grid * grid != num_patches:
        raise CheckpointError(
            f"tensor clip.visual.positional_embedding has {num_patches + 1} rows, expected a square plus one"
        )
    context_length, text_width = shape("clip.positional_embedding", 2)
    embedding_dim = shape("clip.text_projection", 2)[1]
    return XClipConfig(
        clip={
            "embed_dim": embedding_dim,
            "vision_cfg": {
                "image_size": patch_size * grid,
                "patch_size": patch_size,
                "width": vision_width,
                "layers": num_layers("clip.visual.transformer.resblocks."),
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": context_length,
                "vocab_size": shape("clip.token_embedding.weight", 2)[0],
                "width": text_width,
                "heads": text_width // 64,
                "layers": num_layers("clip.transformer.resblocks."),
            },
            "quick_gelu": True,
        },
        num_words=shape("word_mat_weight", 2)[0],
        num_frames=shape("frame_mat_weight", 2)[0],
        temporal_layers=num_layers("transformerClip.resblocks."),
        mask_padding=False,
    )
