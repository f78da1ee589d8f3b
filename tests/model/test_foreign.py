"""Checkpoints of other networks are called by their name, with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import CheckpointError, XClip
from tests.model.test_convert import convert, official_checkpoint


def clip4clip(*kept: str) -> dict[str, Tensor]:
    """What CLIP4Clip saves: X-CLIP's names without its matrices. kept: beginnings."""
    tensors = official_checkpoint()
    return {name: tensor for name, tensor in tensors.items() if name.startswith(kept)}


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.zeros(2) for name in names}


def plain_clip() -> dict[str, Tensor]:
    tensors = official_checkpoint()
    return {name.removeprefix("clip."): one for name, one in tensors.items() if name.startswith("clip.")}


CLIP4CLIP = "a checkpoint of CLIP4Clip .* none of the matrices .* xclip-search train"
MICROSOFT = r"Microsoft's X-CLIP \(arXiv:2208\.02816.* another network of the same name"
CLIP = "CLIP.* searches without training as openclip:"

FOREIGN = {
    "CLIP4Clip, meanP": (lambda: clip4clip("clip."), CLIP4CLIP),
    "CLIP4Clip, parallel": (
        lambda: {f"module.{name}": one for name, one in clip4clip("clip.").items()},
        CLIP4CLIP,
    ),
    "CLIP4Clip, seqTransf": (lambda: clip4clip("clip.", "transformerClip.", "frame_position"), CLIP4CLIP),
    "CLIP4Clip, tightTransf": (
        lambda: {**clip4clip("clip."), **named("similarity_dense.weight", "cross.pooler.dense.weight")},
        CLIP4CLIP,
    ),
    # Names from transformers, models/x_clip/modeling_x_clip.py.
    "transformers' XCLIPModel": (
        lambda: named(
            "logit_scale",
            "prompts_visual_projection",
            "text_model.embeddings.token_embedding.weight",
            "vision_model.encoder.layers.0.message_fc.weight",
            "visual_projection.weight",
            "mit.position_embedding",
            "prompts_generator.alpha",
        ),
        MICROSOFT,
    ),
    # Names from github.com/microsoft/VideoX, X-CLIP/models/xclip.py.
    "Microsoft's own X-CLIP": (
        lambda: {"model": named("visual.conv1.weight", "mit.positional_embedding", "prompts_visual_proj")},
        MICROSOFT,
    ),
    "transformers' CLIPModel": (
        lambda: named("text_model.final_layer_norm.bias", "vision_model.post_layernorm.bias"),
        CLIP,
    ),
    "OpenAI's names": (plain_clip, CLIP),
    "Lightning around a CLIP": (
        lambda: {"state_dict": {f"model.{name}": one for name, one in plain_clip().items()}},
        CLIP,
    ),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_another_network_is_called_by_its_name_and_the_message_says_what_to_do(kind, tmp_path):
    make, message = FOREIGN[kind]
    torch.save(make(), tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=message):
        XClip.load(tmp_path / "model.bin", device="cpu")
    status, output = convert(tmp_path / "model.bin", tmp_path / "ours")
    assert status == 1 and output.startswith("error: ") and output.count("\n") == 1


def test_the_names_of_a_plain_clip_are_those_that_open_clip_loads(tmp_path, model_directory):
    """The advice holds: openclip:ARCHITECTURE/FILE reads such a file."""
    config = XClip.load(model_directory, device="cpu").config.clip
    towers = open_clip.CLIP(**{key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")})
    path = tmp_path / "clip.bin"
    torch.save(towers.state_dict(), path)
    with pytest.raises(CheckpointError, match=CLIP):
        XClip.load(path, device="cpu")
    again = open_clip.CLIP(**{key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg")})
    assert not open_clip.load_checkpoint(again, str(path)).missing_keys


def test_a_file_of_our_layout_is_named_by_its_directory(model_directory):
    with pytest.raises(CheckpointError, match="name the directory that holds both, not the file"):
        XClip.load(model_directory / "model.safetensors", device="cpu")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_archive_is_called_one(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(CheckpointError, match=r"TorchScript archive, as OpenAI.*openclip:"):
        XClip.load(tmp_path / "ViT-B-32.pt", device="cpu")


@pytest.mark.parametrize(
    ("kind", "message"), [("xclip", MICROSOFT), ("clip", CLIP), ("bert", "of the type 'bert', no X-CLIP")]
)
@pytest.mark.parametrize("has_weights", [True, False])
def test_a_directory_of_transformers_is_called_by_its_model(
    kind: str, message: str, has_weights: bool, tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": ["A"]}))
    if has_weights:
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        XClip.load(tmp_path, device="cpu")
