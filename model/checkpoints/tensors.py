"""Tensors from files, into a network, onto a device: what every way of loading a model shares."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.checkpoints.foreign import find_weights
from model.config import XClipConfig
from model.errors import CheckpointError, SpecError

EXACT_IN_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)
"""What becomes float32 without rounding."""


@dataclass(frozen=True)
class Checkpoint:
    """What a model is made of, read from wherever it was.

    Attributes:
        config: Sizes and choices.
        tensors: All weights, by our names.
        name_in_file: From our name of a tensor to the one that an error message shows.
        tokenizer_directory: Where the tokenizer's files are, if it has any and they came with the model.
    """

    config: XClipConfig
    tensors: Mapping[str, Tensor]
    name_in_file: Callable[[str], str] = str
    tokenizer_directory: Path | None = None


def fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors into a network of its config.

    Raises:
        CheckpointError: A tensor is missing, left over, misshapen, not finite, or of a type that float32
            cannot hold exactly; the message names it.
    """
    expected, found = model.state_dict(), checkpoint.tensors
    if missing := sorted(expected.keys() - found.keys()):
        first = checkpoint.name_in_file(missing[0])
        raise CheckpointError(f"missing tensor {first} ({len(missing)} missing in all)")
    for ours, tensor in found.items():
        name = checkpoint.name_in_file(ours)
        if ours not in expected:
            raise CheckpointError(f"unexpected tensor {name}")
        if tensor.shape != expected[ours].shape:
            raise CheckpointError(
                f"tensor {name} is {list(tensor.shape)}, expected {list(expected[ours].shape)}"
            )
        if not expected[ours].is_floating_point():  # counters of batch normalisation
            if tensor.is_floating_point() or tensor.is_complex():
                raise CheckpointError(f"tensor {name} is {tensor.dtype}, expected {expected[ours].dtype}")
            continue
        if tensor.dtype not in EXACT_IN_FLOAT32:
            raise CheckpointError(f"tensor {name} is {tensor.dtype}, expected float32, float16 or bfloat16")
        if not all_finite(tensor):
            raise CheckpointError(f"tensor {name} holds values that are not finite")
    model.load_state_dict({name: in_float32(tensor) for name, tensor in found.items()})


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN.

    One pass without a temporary in nearly every case: a sum is finite only if all that it adds is. Only a sum
    that is not, which large finite values give too, has to be looked into.
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


class WithoutRandomWeights(TorchFunctionMode):
    """While it lasts, weights keep what their memory holds instead of being drawn.

    For a network whose every tensor `fill` replaces: drawing 151 million numbers takes longer than reading
    them. `fill` refuses a checkpoint that lacks one.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return torch.empty(*args, **kwargs)
        if func in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_DRAWING = {
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.trunc_normal_,
    nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
    nn.init.xavier_uniform_,
    nn.init.xavier_normal_,
    Tensor.normal_,
    Tensor.uniform_,
}
"""Functions that fill their first argument, called `tensor`, with random numbers."""


def in_float32(tensor: Tensor) -> Tensor:
    """A weight as float32, detached; a counter as it is."""
    return tensor.detach().float() if tensor.is_floating_point() else tensor.detach()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file or a torch archive, which is read without running pickle code.

    Args:
        path: The file; one that ends in .safetensors is read as such. Of a training checkpoint the weights
            are taken, see `foreign.KEYS_OF_WEIGHTS`.

    Raises:
        CheckpointError: The file is neither, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Trainers put the options that they were called with next to the weights. It only sets attributes.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # What it warns of is an error to us.
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
    loaded = find_weights(loaded)
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
    if "TorchScript" in str(error):
        return (
            "it is a TorchScript archive, as OpenAI's own files of CLIP are; its CLIP is"
            " openclip:ARCHITECTURE/openai, for example openclip:ViT-B-32-quickgelu/openai"
        )
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            return "it is not an archive of tensors"
        return (
            f"it holds {found[1]}, which is no tensor; save the weights alone, as"
            " torch.save(network.state_dict(), FILE) does"
        )
    return next(iter(str(error).splitlines()), type(error).__name__)


def place(model: nn.Module, device: str) -> None:
    """Move a network to `device` (`auto`: a GPU where there is one) and set it to evaluation mode.

    Raises:
        SpecError: There is no such device.
    """
    model.to(usable_device(device)).eval()


def usable_device(device: str) -> torch.device:
    """The device of this name, on which something was made to see that it is there.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto`: a GPU where there is one.

    Raises:
        SpecError: There is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
