"""The progress of a run, and everything that it needs to resume as if it had never stopped.

That includes the states of all random generators that training may draw from, as tensors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from training.config import TrainingConfig, parse_config
from training.distributed import rank, world_size
from training.errors import ConfigError, RunError
from training.loop.optimizer import BertAdam, ScheduledAdamW

_PYTHON_STATE_VERSION = 3
"""The first value of `random.getstate()`."""


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
    """Inverse of `capture_states`.

    Raises:
        RunError: The states are damaged.
    """
    try:
        *numbers, drawn = states["python"].tolist()
        random.setstate((_PYTHON_STATE_VERSION, tuple(map(int, numbers)), None if drawn != drawn else drawn))
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
    by_rank: list[dict[str, Tensor]] = [{} for _ in range(world_size())]
    for name, state in own.items():
        sent = state.to(device)
        received = [torch.empty_like(sent) for _ in by_rank]
        distributed.all_gather(received, sent)
        for states, one in zip(by_rank, received, strict=True):
            states[name] = one.cpu()
    return by_rank


@contextmanager
def random_states_kept(device: torch.device) -> Iterator[None]:
    """Restore the generators at the end: starting a loader's workers, for one, draws from them."""
    before = capture_states(device)
    try:
        yield
    finally:
        restore_states(before, device)


FORMAT = "xclip-search-training/1"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: The one that is being trained, from 0.
        step: Steps done in it.
        loss_sum: Of these steps.
        num_skipped: Steps among them that float16 skipped.
        best_epoch, best_value: Of the epochs done, by `training.best_by`, from 0; None before the first.
        rows: Of `metrics.jsonl`.
        epoch_seconds, seconds: By what they went into, of this epoch and of the run.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_skipped: int = 0
    best_epoch: int | None = None
    best_value: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    epoch_seconds: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add_seconds(self, phase: str, elapsed: float) -> None:
        """Count time that went into a phase of this epoch."""
        for seconds in (self.epoch_seconds, self.seconds):
            seconds[phase] = seconds.get(phase, 0.0) + elapsed

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Count the epoch as done; the next one begins."""
        self.rows.append(row)
        self.epoch += 1
        self.step, self.loss_sum, self.num_skipped, self.epoch_seconds = 0, 0.0, 0, {}


def pack(
    progress: Progress,
    config: TrainingConfig,
    data_digest: str,
    optimizer: BertAdam | ScheduledAdamW,
    scaler: torch.amp.GradScaler | None,
    random_states: list[dict[str, torch.Tensor]],
) -> dict[str, Any]:
    """What `training_state.pt` holds: tensors, numbers and texts.

    Args:
        random_states: By rank.
    """
    return {
        "format": FORMAT,
        "config": config.to_toml(),
        "data": data_digest,
        "world_size": world_size(),
        "progress": asdict(progress),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": random_states,
    }


def check(state: dict[str, Any], config: TrainingConfig, data_digest: str) -> str | None:
    """Raise RunError where a run cannot resume with this config and these data.

    Returns:
        A note for the user, None where the run resumes bit for bit.
    """
    if state.get("format") != FORMAT:
        raise RunError(f"the checkpoint is of another format than {FORMAT}")
    try:
        former = parse_config(state["config"], source="the run's config")
    except ConfigError as error:
        raise RunError(f"the run was begun by another version: {error}") from None
    if changed := _changes(former.what_counts(), config.what_counts()):
        advice = _MORE_EPOCHS if any(change.startswith("training.epochs:") for change in changed) else ""
        raise RunError(
            f"a run resumes with the config it was started with, but {'; '.join(changed)}; leave that out"
            f" to resume{advice}"
        )
    if state["data"] != data_digest:
        raise RunError("the data set has other texts or clips than when the run was begun")
    rounding = _changes(former.what_rounds(), config.what_rounds())
    if state["world_size"] != world_size():
        processes = f"{state['world_size']} processes before, {world_size()} now"
        if config.training.gather == "official":
            raise RunError(
                f'with gather = "official" the result depends on the number of processes: {processes}'
            )
        rounding.append(processes)
    return f"{'; '.join(rounding)}: the result is the same up to rounding" if rounding else None


_MORE_EPOCHS = (
    ". The learning rates of all steps follow from the number of epochs: for more, start another run"
    " with the weights of this one, xclip-search train CONFIG --output NEW --set model.start=RUN/best"
    " --set training.epochs=N"
)


def _changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [
        f"{name}: {before[name]!r} before, {now[name]!r} now" for name in now if before[name] != now[name]
    ]


def unpack(
    state: dict[str, Any],
    optimizer: BertAdam | ScheduledAdamW,
    scaler: torch.amp.GradScaler | None,
    device: torch.device,
) -> Progress:
    """Put optimizer, scaler and random generators where the state says.

    Raises:
        RunError: The state is damaged.
    """
    try:
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        restore_states(state["random"][rank() % len(state["random"])], device)
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise RunError(f"the checkpoint's training state is damaged: {error}") from None
