"""From a model spec to a model: the demo checkpoint, a directory, an official file, open_clip, the Hub."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from model.atomic_files import write_durably
from model.checkpoints.official import load_official
from model.checkpoints.tensors import fill, place, read_tensors
from model.config import XClipConfig
from model.errors import CheckpointError, SpecError
from model.xclip import XClip

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

FORMS = (
    "a model spec is one of: demo | a directory with config.json and model.safetensors | "
    "an official checkpoint file | openclip:ARCHITECTURE/PRETRAINED | "
    "openclip:ARCHITECTURE/random?seed=0 | hf-hub:OWNER/NAME"
)


def load(spec: str, device: str = "auto") -> XClip:
    """See `XClip.load`."""
    if spec == "demo":
        with resources.as_file(resources.files("model") / "checkpoints" / "demo") as directory:
            return load_directory(directory, device)
    if spec.startswith("openclip:"):
        return _load_openclip(spec.removeprefix("openclip:"), device)
    if spec.startswith("hf-hub:"):
        return load_directory(_downloaded(spec.removeprefix("hf-hub:")), device)
    path = Path(spec).expanduser()
    if path.is_dir():
        return load_directory(path, device)
    if path.is_file():
        return load_official(path, device)
    raise SpecError(f"{spec!r} names no model and no such file exists; {FORMS}")


def save(model: XClip, directory: Path) -> None:
    """See `XClip.save`."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    config_file = directory / CONFIG_FILE
    # Two files cannot change at once. Without a config the directory holds no model, so an interruption never
    # leaves new weights under an old config.
    config_file.unlink(missing_ok=True)
    write_durably(directory / WEIGHTS_FILE, lambda path: save_file(tensors, path))
    write_durably(config_file, lambda path: path.write_text(model.config.to_json(), encoding="utf-8"))


def load_directory(directory: Path, device: str = "auto") -> XClip:
    """A model that `save` wrote. Raises CheckpointError where a file is missing or does not fit."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (directory / name).is_file():
            inside = sorted(file.parent for file in directory.glob(f"*/{CONFIG_FILE}"))
            hint = f"is it {inside[0]}?" if inside else FORMS
            raise CheckpointError(f"{directory} holds no {name}; {hint}")
    model = XClip(XClipConfig.from_json((directory / CONFIG_FILE).read_text(encoding="utf-8")))
    fill(model, read_tensors(directory / WEIGHTS_FILE))
    return place(model, device)


def _downloaded(repository: str) -> Path:
    from model.checkpoints.hub import download  # huggingface_hub is loaded for a Hub's model only

    return download(repository, (CONFIG_FILE, WEIGHTS_FILE))


def _why_not_fetched(error: Exception) -> str:
    from model.checkpoints.hub import explained

    why = explained(error)
    if not why.endswith(("cannot be reached", "not in the cache")):
        return why
    return (
        f"{why}. The weights are fetched once and then kept: run this once with a network, or copy the cache"
        " of huggingface_hub (~/.cache/huggingface, or HF_HOME) from a machine that has them"
    )


def _load_openclip(name: str, device: str) -> XClip:
    architecture, slash, pretrained = name.partition("/")
    clip_config = open_clip.get_model_config(architecture)
    if not slash or not pretrained:
        raise SpecError(f"'openclip:{name}' names no weights; {FORMS}")
    if clip_config is None:
        known = ", ".join(known for known in open_clip.list_models() if known.startswith(architecture[:5]))
        raise SpecError(f"open_clip knows no architecture {architecture!r}; close to it: {known or 'none'}")
    config = zero_shot_config(clip_config)
    if match := re.fullmatch(r"random(?:\?seed=(\d+))?", pretrained):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(match[1] or 0))
            return place(XClip(replace(config, description=f"openclip:{name}")), device)
    return place(_with_pretrained_towers(config, architecture, pretrained), device)


def zero_shot_config(clip_config: dict[str, Any]) -> XClipConfig:
    """Plain CLIP as an X-CLIP: no temporal transformer, AOSM identity, padding masked, two scores of four.

    CLIP's word positions were never trained to match anything by themselves, so only the scores that use the
    sentence are averaged. Raises SpecError where the architecture is not a ViT with CLIP's text tower.
    """
    wanted: dict[str, Any] = {
        name: clip_config[name]
        for name in ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu")
        if name in clip_config
    }
    try:
        return XClipConfig(
            clip=wanted,
            temporal_layers=0,
            mask_padding=True,
            score_names=("video_sentence", "sentence_frame"),
        )
    except CheckpointError as error:
        raise SpecError(str(error)) from None


def _with_pretrained_towers(config: XClipConfig, architecture: str, pretrained: str) -> XClip:
    facts = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not facts and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise SpecError(
            f"open_clip has no weights {pretrained!r} for {architecture}; it has: {tags or 'none'}"
        )
    if facts and bool(facts.get("quick_gelu")) != bool(config.clip.get("quick_gelu")):
        other = (
            architecture.removesuffix("-quickgelu")
            if config.clip.get("quick_gelu")
            else f"{architecture}-quickgelu"
        )
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
            f"openclip:{architecture}/{pretrained} cannot be loaded: {_why_not_fetched(error)}"
        ) from None
    mean, deviation = facts.get("mean"), facts.get("std")
    config = replace(
        config,
        pixel_mean=tuple(mean) if mean else config.pixel_mean,
        pixel_deviation=tuple(deviation) if deviation else config.pixel_deviation,
        description=f"openclip:{architecture}/{pretrained}",
    )
    model = XClip(config)
    model.clip.load_state_dict(towers.state_dict())
    return model
