"""From a model spec to config and tensors, and back to a directory: all ways by which a model is found.

A spec is `demo`, a directory of ours, an official checkpoint file, open_clip's weights, or a repository on
the Hub. This module knows both layouts on disk and no network: `XClip.load` and `XClip.save` call it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.atomic_files import write_atomically
from model.checkpoints.foreign import require_our_config
from model.checkpoints.hub import download, is_unreachable, reason
from model.checkpoints.official import is_official_name, read_official
from model.checkpoints.tensors import Checkpoint, read_tensors
from model.config import XClipConfig
from model.errors import CheckpointError, ConversionError, SpecError
from model.scoring import ScoreHead
from model.towers import clip_towers

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

FORMS = (
    "a model spec is one of: demo | a directory with config.json and model.safetensors | "
    "an official checkpoint file | openclip:ARCHITECTURE/PRETRAINED | "
    "openclip:ARCHITECTURE/random?seed=0 | hf-hub:OWNER/NAME"
)

HOW_TO_FETCH = (
    ". The weights are fetched once and then kept: run this once with a network, or copy the cache"
    " of huggingface_hub (~/.cache/huggingface, or HF_HOME) from a machine that has them"
)

Layout = Literal["official", "ours"]


def read(spec: str) -> Checkpoint:
    """Config and tensors of a model.

    Args:
        spec: See `XClip.load`.

    Raises:
        SpecError: The spec names nothing that can be loaded.
        CheckpointError: What it names is damaged or holds no model.
    """
    if spec == "demo":
        with resources.as_file(resources.files("model") / "checkpoints" / "demo") as directory:
            return read_directory(directory)
    if spec.startswith("openclip:"):
        return _read_openclip(spec.removeprefix("openclip:"))
    if spec.startswith("hf-hub:"):
        return read_directory(download(spec.removeprefix("hf-hub:"), (CONFIG_FILE, WEIGHTS_FILE)))
    path = Path(spec).expanduser()
    if path.is_dir():
        return read_directory(path)
    if path.is_file():
        return read_official(path)
    raise SpecError(f"{spec!r} names no model and no such file exists; {FORMS}")


# Our layout: a directory


def read_directory(directory: Path) -> Checkpoint:
    """What `write_directory` wrote. Raises CheckpointError where a file is missing or damaged."""
    config_file = directory / CONFIG_FILE
    if config_file.is_file():
        require_our_config(config_file.read_bytes())
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            inside = sorted(file.parent for file in directory.glob(f"*/{CONFIG_FILE}"))
            hint = f"is it {inside[0]}?" if inside else FORMS
            raise CheckpointError(f"{directory} holds no {name}; {hint}")
    config = XClipConfig.from_json(config_file.read_text(encoding="utf-8"))
    return Checkpoint(config, read_tensors(directory / WEIGHTS_FILE))


def write_directory(config: XClipConfig, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Write `config.json` and `model.safetensors`, float32. The directory is made if absent."""
    directory.mkdir(parents=True, exist_ok=True)
    single = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    config_file = directory / CONFIG_FILE
    # Two files cannot be replaced atomically. Without a config the directory holds no model, so an
    # interruption never leaves new weights under an old config.
    config_file.unlink(missing_ok=True)
    write_atomically(directory / WEIGHTS_FILE, lambda path: save_file(single, path))
    write_atomically(config_file, lambda path: path.write_text(config.to_json(), encoding="utf-8"))


# Destinations of either layout


def layout_of(destination: Path) -> Layout | None:
    """The layout that a destination's name asks for, None where it asks for neither clearly."""
    if destination.is_dir():
        return "ours"
    if is_official_name(destination.name) or destination.is_file():
        return "official"
    return None if destination.suffix in {".pt", ".pth", ".ckpt", ".json", ".zip"} else "ours"


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


# open_clip


def _read_openclip(name: str) -> Checkpoint:
    architecture, slash, pretrained = name.partition("/")
    clip_config = open_clip.get_model_config(architecture)
    if not slash or not pretrained:
        raise SpecError(f"'openclip:{name}' names no weights; {FORMS}")
    if clip_config is None:
        known = ", ".join(known for known in open_clip.list_models() if known.startswith(architecture[:5]))
        raise SpecError(f"open_clip knows no architecture {architecture!r}; close to it: {known or 'none'}")
    config = replace(_zero_shot_config(clip_config), description=f"openclip:{name}")
    if match := re.fullmatch(r"random(?:\?seed=(\d+))?", pretrained):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(match[1] or 0))
            towers = clip_towers(config)
    else:
        config, towers = _pretrained_towers(config, architecture, pretrained)
    tensors = {f"clip.{name}": tensor for name, tensor in towers.state_dict().items()}
    tensors |= {f"matrices.{name}": tensor for name, tensor in ScoreHead(config).state_dict().items()}
    return Checkpoint(config, tensors)


def _zero_shot_config(clip_config: dict[str, Any]) -> XClipConfig:
    """Plain CLIP as an X-CLIP: no temporal transformer, AOSM identity, padding masked, two scores of four.

    Raises SpecError where the architecture is not a ViT with CLIP's text tower.
    """
    wanted: dict[str, Any] = {
        name: clip_config[name]
        for name in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
        if name in clip_config
    }
    try:
        # CLIP's word positions were never trained to match anything by themselves, so only the scores that
        # use the sentence are averaged.
        names = ("video_sentence", "sentence_frame")
        return XClipConfig(clip=wanted, temporal_layers=0, mask_padding=True, score_names=names)
    except CheckpointError as error:
        raise SpecError(str(error)) from None


def _pretrained_towers(
    config: XClipConfig, architecture: str, pretrained: str
) -> tuple[XClipConfig, open_clip.CLIP]:
    """Towers with open_clip's weights or those of a file, and the config with their pixel statistics."""
    facts = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not facts and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise SpecError(
            f"open_clip has no weights {pretrained!r} for {architecture}; it has: {tags or 'none'}"
        )
    # Loaded with the other activation the weights would run, and score worse without a word.
    quick = bool(config.clip.get("quick_gelu"))
    if facts and bool(facts.get("quick_gelu")) != quick:
        other = architecture.removesuffix("-quickgelu") if quick else f"{architecture}-quickgelu"
        raise SpecError(
            f"the weights {pretrained!r} were trained with the other activation: "
            f"use openclip:{other}/{pretrained}"
        )
    try:
        if facts:
            open_clip.download_pretrained(facts)  # create_model would log a failure too, at length
        towers = open_clip.create_model(architecture, pretrained=pretrained)
    except (OSError, RuntimeError, ValueError) as error:
        raise SpecError(
            f"openclip:{architecture}/{pretrained} cannot be loaded: {reason(error)}"
            + (HOW_TO_FETCH if is_unreachable(error) else "")
        ) from None
    mean, std = facts.get("mean"), facts.get("std")
    config = replace(
        config,
        pixel_mean=tuple(mean) if mean else config.pixel_mean,
        pixel_deviation=tuple(std) if std else config.pixel_deviation,
    )
    return config, towers
