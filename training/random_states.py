"""The states of the random generators that training may draw from, as tensors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, distributed

from training.errors import RunError
from training.processes import world_size

_VERSION = 3
"""Of Python's own Mersenne Twister state (random.getstate)."""


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators, the GPUs' too."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_states(device: torch.device) -> dict[str, Tensor]:
    """The states now: `torch`, `cuda` (empty without a GPU) uint8; `numpy`, `python` float64; all on the CPU.

    Every number of the states fits a float64 exactly; the last of `python` and the last two of `numpy` are
    the normal deviate that is kept for the next call (NaN: none).
    """
    _, numbers, drawn = random.getstate()
    generator = np.random.get_state(legacy=False)
    assert isinstance(generator, dict) and generator["bit_generator"] == "MT19937"
    inner = generator["state"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device)
        if device.type == "cuda"
        else torch.empty(0, dtype=torch.uint8),
        "python": torch.tensor([*numbers, float("nan") if drawn is None else drawn], dtype=torch.float64),
        "numpy": torch.tensor(
            [*map(int, inner["key"]), inner["pos"], generator["has_gauss"], generator["gauss"]],
            dtype=torch.float64,
        ),
    }


def restore_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Inverse of `capture_states`. Raises RunError on anything else."""
    try:
        *numbers, drawn = states["python"].tolist()
        random.setstate((_VERSION, tuple(map(int, numbers)), None if drawn != drawn else drawn))
        *key, position, has_gauss, gauss = states["numpy"].tolist()
        np.random.set_state(
            {
                "bit_generator": "MT19937",
                "state": {"key": np.array(key, np.uint32), "pos": int(position)},
                "has_gauss": int(has_gauss),
                "gauss": gauss,
            }
        )
        torch.set_rng_state(states["torch"])
        if device.type == "cuda" and states["cuda"].numel():
            torch.cuda.set_rng_state(states["cuda"], device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"the checkpoint's random states are damaged: {error}") from None


def gather_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The states of every process, by rank, on each of them."""
    own = capture_states(device)
    if world_size() == 1:
        return [own]
    everyone: list[dict[str, Tensor]] = [{} for _ in range(world_size())]
    for name, state in own.items():
        sent = state.to(device)
        received = [torch.empty_like(sent) for _ in everyone]
        distributed.all_gather(received, sent)
        for states, one in zip(everyone, received, strict=True):
            states[name] = one.cpu()
    return everyone


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What is done inside draws from the generators without moving them: starting a loader's workers does."""
    before = capture_states(device)
    try:
        yield
    finally:
        restore_states(before, device)
