"""Tensors from files, into a network, onto a device: what every way of loading a model shares."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model.errors import CheckpointError, SpecError

if TYPE_CHECKING:
    from model.xclip import XClip


EXACT_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)
"""What becomes float32 without rounding."""


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
        if tensor.dtype not in EXACT_IN_FLOAT32:
            raise CheckpointError(
                f"tensor {spelling(name)} is {tensor.dtype}, expected float32, float16 or bfloat16"
            )
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"tensor {spelling(name)} holds values that are not finite")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def read_tensors(path: Path, wrapped_as: Sequence[str] = ()) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a torch archive, which is read without running pickle code.

    wrapped_as: keys under which a training checkpoint may hold the tensors beside other things; the first
        that is there is taken.
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
        AttributeError,  # torch's unpickler on some files that are no archive
    ) as error:
        raise CheckpointError(
            f"{path.name} is not a checkpoint that can be read safely: {_reason(error)}"
        ) from None
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in wrapped_as if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path.name} holds {type(loaded).__name__}, not a dictionary of tensors")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path.name} is not a dictionary of tensors: {name!r} holds {type(value).__name__}"
            )
    return loaded


def _reason(error: Exception) -> str:
    """One line. torch's own message on what it will not unpickle advises to unpickle it; ours does not."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        return f"it holds {found[1]}, which is no tensor" if found else "it is no archive of tensors"
    return next(iter(str(error).splitlines()), type(error).__name__)


def place(model: XClip, device: str) -> XClip:
    """Move `model` to `device` (`auto`: a GPU where there is one), in evaluation mode."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(torch.device(device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
