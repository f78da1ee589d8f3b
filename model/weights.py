"""Tensors from files, into a network, onto a device: what every way of loading a model shares."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    from model.xclip import XClip


def fill(model: XClip, tensors: Mapping[str, Tensor], spelling: Callable[[str], str] = str) -> None:
    """Put `tensors`, by our names, into `model`; every one must fit and none be left over.

    spelling: from our names to those that an error message shows.
    Raises CheckpointError naming the tensor.
    """
    expected = model.state_dict()
    if missing := sorted(expected.keys() - tensors.keys()):
        raise CheckpointError(f"missing tensor {spelling(missing[0])} ({len(missing)} missing in all)")
    for name, tensor in tensors.items():
        if name not in expected:
            raise CheckpointError(f"unexpected tensor {spelling(name)}")
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"tensor {spelling(name)} is {list(tensor.shape)}, expected {list(expected[name].shape)}"
            )
        if not tensor.dtype.is_floating_point:
            raise CheckpointError(f"tensor {spelling(name)} is {tensor.dtype}, expected floating point")
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"tensor {spelling(name)} holds values that are not finite")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a torch archive, which is read without running pickle code.

    Raises CheckpointError where the file is neither, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        SafetensorError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        ValueError,
        KeyError,
    ) as error:
        raise CheckpointError(f"{path.name} is not a checkpoint that can be read safely: {error}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path.name} is not a dictionary of tensors")
    return loaded


def place(model: XClip, device: str) -> XClip:
    """Move `model` to `device` (`auto`: a GPU where there is one), in evaluation mode."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(torch.device(device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
