"""Weights of the true ViT-B/32 sizes, drawn by `tests/goldens/b32_weights.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from model.checkpoints.official import is_half_in_official, official_order

GOLDENS = Path(__file__).parents[2] / "goldens"


def b32_weights() -> ModuleType:
    """The module that draws them; it lies among the arrays, not in a package."""
    spec = importlib.util.spec_from_file_location("b32_weights", GOLDENS / "b32_weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def b32_tensors(num_words: int, num_frames: int) -> dict[str, Tensor]:
    """A checkpoint as the official code saves it: its order, float16 where it has float16."""
    drawing = b32_weights()
    config = {**drawing.load_config(GOLDENS / "b32.json"), "max_words": num_words, "max_frames": num_frames}
    arrays = drawing.state_dict(config)
    order = official_order(config["vision_layers"], config["text_layers"], config["temporal_layers"])
    tensors = {name: torch.from_numpy(np.array(arrays[name])) for name in order}
    return {name: tensor.half() if is_half_in_official(name) else tensor for name, tensor in tensors.items()}
