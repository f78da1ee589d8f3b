"""From a model spec to config and tensors, and back to a directory: all ways by which a model is found.

A spec is `demo`, a directory of ours, an official checkpoint file, open_clip's weights, or a repository on
the Hub. This module knows both layouts on disk and no network: `XClip.load` and `XClip.save` call it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.architecture import Architecture, without_training
from model.atomic_files import write_atomically
from model.checkpoints.foreign import require_our_config
from model.checkpoints.hub import download
from model.checkpoints.huggingface import TOKENIZER_FOLDER, explained, text_tower_configuration
from model.checkpoints.official import is_official_name, read_official
from model.checkpoints.tensors import Checkpoint, in_float32, read_tensors
from model.config import DEFAULT_NUM_WORDS, XClipConfig
from model.errors import CheckpointError, ConversionError, SpecError
from model.scoring import ScoreHead
from model.tokenization import TextTokenizer
from model.towers import clip_towers

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, f"{TOKENIZER_FOLDER}/*")
"""Of a repository on the Hub that holds a model of ours, as patterns."""

FORMS = (
    "a model spec is one of: demo | a directory with config.json and model.safetensors | "
    "an official checkpoint file | openclip:ARCHITECTURE/PRETRAINED | "
    "openclip:ARCHITECTURE/random?seed=0 | hf-hub:OWNER/NAME; `xclip-search models` lists what open_clip has"
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
        return read_directory(download(spec.removeprefix("hf-hub:"), MODEL_FILES))
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
            if (directory / "open_clip_config.json").is_file():
                hint = f"it is a model of open_clip: name it openclip:local-dir:{directory}"
            raise CheckpointError(f"{directory} holds no {name}; {hint}")
    config = XClipConfig.from_json(config_file.read_text(encoding="utf-8"))
    tokenizer = directory / TOKENIZER_FOLDER
    return Checkpoint(
        config,
        read_tensors(directory / WEIGHTS_FILE),
        tokenizer_directory=tokenizer if tokenizer.is_dir() else None,
    )


def write_directory(
    config: XClipConfig, tensors: Mapping[str, Tensor], tokenizer: TextTokenizer, directory: Path
) -> None:
    """Write `config.json`, `model.safetensors`, float32, and a tokenizer that has files of its own.

    The directory is made if absent.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Towers may share a tensor under two names, which a file of safetensors cannot: each is written.
    single = {name: in_float32(tensor).cpu().clone().contiguous() for name, tensor in tensors.items()}
    config_file = directory / CONFIG_FILE
    # Two files cannot be replaced atomically. Without a config the directory holds no model, so an
    # interruption never leaves new weights under an old config.
    config_file.unlink(missing_ok=True)
    with suppress(SpecError):  # without its files here, the tokenizer's name in the config must do
        tokenizer.save(directory / TOKENIZER_FOLDER)
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
    if name.startswith(_OWN_CONFIG):
        return _read_with_own_config(name)
    architecture, slash, pretrained = name.partition("/")
    if not slash or not pretrained:
        raise SpecError(f"'openclip:{name}' names no weights; {FORMS}")
    description = open_clip.get_model_config(architecture)
    if description is None:
        known = ", ".join(known for known in open_clip.list_models() if known.startswith(architecture[:5]))
        raise SpecError(f"open_clip knows no architecture {architecture!r}; close to it: {known or 'none'}")
    if match := re.fullmatch(r"random(?:\?seed=(\d+))?", pretrained):
        config = zero_shot_config(description, preprocessing_of(architecture), name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(match[1] or 0))
            towers = clip_towers(config)
    else:
        _require_weights(description, architecture, pretrained)
        config = zero_shot_config(description, preprocessing_of(architecture, pretrained), name)
        towers = _pretrained_towers(name, architecture, pretrained)
    return _zero_shot(config, towers)


_OWN_CONFIG = ("hf-hub:", "local-dir:")
"""What open_clip puts before a repository or a directory that holds an `open_clip_config.json`."""


def _read_with_own_config(name: str) -> Checkpoint:
    """A model that brings its own `open_clip_config.json`, and perhaps its tokenizer."""
    towers = _pretrained_towers(name, name)
    config = zero_shot_config(open_clip.get_model_config(name), towers.visual.preprocess_cfg, name)
    # open_clip's own get_tokenizer, too, takes it from a local directory and nowhere else.
    directory = Path(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None
    return replace(_zero_shot(config, towers), tokenizer_directory=directory)


def _zero_shot(config: XClipConfig, towers: nn.Module) -> Checkpoint:
    # What is no search, CoCa's captioning decoder, stays behind.
    tensors = {
        f"clip.{name}": tensor
        for name, tensor in towers.state_dict().items()
        if not name.startswith("text_decoder.")
    }
    tensors |= {f"matrices.{name}": tensor for name, tensor in ScoreHead(config).state_dict().items()}
    return Checkpoint(config, tensors)


def zero_shot_config(description: dict[str, Any], preprocessing: Mapping[str, Any], name: str) -> XClipConfig:
    """Plain towers as an X-CLIP: no temporal transformer, AOSM identity, padding masked, two scores of four.

    Raises SpecError where no model can be built of them.
    """
    towers = without_training(description)
    if hf_model := towers["text_cfg"].get("hf_model_name"):
        towers["text_cfg"]["hf_config"] = text_tower_configuration(hf_model)
    try:
        return XClipConfig(
            clip=towers,
            num_words=min(DEFAULT_NUM_WORDS, Architecture.of(towers).context_length),
            temporal_layers=0,
            mask_padding=True,
            # Word positions were never trained to match anything by themselves, so only the scores that use
            # the sentence are averaged.
            score_names=("video_sentence", "sentence_frame"),
            description=f"openclip:{name}",
            **_preprocessing_fields(preprocessing),
        )
    except CheckpointError as error:
        raise SpecError(f"openclip:{name}: {error}") from None


def preprocessing_of(architecture: str, pretrained: str = "") -> dict[str, Any]:
    """How weights want their pixels; random ones, and those of a file, as the first that were published."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    facts = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not facts and tags:
        facts = open_clip.get_pretrained_cfg(architecture, tags[0])
    return dict(facts)


def _preprocessing_fields(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our config from those of open_clip (open_clip/transform.py `PreprocessCfg`)."""
    names = {
        "mean": "pixel_mean",
        "std": "pixel_deviation",
        "resize_mode": "resize_mode",
        "interpolation": "interpolation",
        "fill_color": "fill_color",
    }
    return {
        names[name]: tuple(value) if isinstance(value, list) else value
        for name, value in facts.items()
        if name in names
    }


def _require_weights(description: dict[str, Any], architecture: str, pretrained: str) -> None:
    """Raise SpecError where there are no such weights, or they belong to the other activation."""
    facts = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not facts and not Path(pretrained).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture))
        raise SpecError(
            f"open_clip has no weights {pretrained!r} for {architecture}; it has: {tags or 'none'}"
        )
    # Loaded with the other activation the weights would run, and score worse without a word.
    quick = bool(description.get("quick_gelu"))
    if facts and bool(facts.get("quick_gelu")) != quick:
        other = architecture.removesuffix("-quickgelu") if quick else f"{architecture}-quickgelu"
        raise SpecError(
            f"the weights {pretrained!r} were trained with the other activation: "
            f"use openclip:{other}/{pretrained}"
        )


def _pretrained_towers(name: str, architecture: str, pretrained: str | None = None) -> Any:
    """open_clip's model with its weights. Raises SpecError where it cannot be loaded."""
    try:
        if facts := open_clip.get_pretrained_cfg(architecture, pretrained or ""):
            open_clip.download_pretrained(facts)  # create_model would log a failure too, at length
        return open_clip.create_model(architecture, pretrained=pretrained, require_pretrained=True)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise explained(f"openclip:{name}")(error) from None
