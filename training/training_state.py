"""How far a run has come, and everything that it needs to go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from training.bert_adam import BertAdam
from training.config import TrainingConfig
from training.config_files import parse_config
from training.errors import ConfigError, RunError
from training.optimizer import ScheduledAdamW
from training.processes import rank, world_size
from training.random_states import restore_states

FORMAT = "xclip-search-training/1"


@dataclass
class Progress:
    """How far a run has come.

    epoch: the one that is being trained, from 0. step: steps done in it.
    loss_sum: of these steps. num_skipped: steps among them that float16 skipped.
    best_epoch, best_value: of the epochs done, by `training.best_by`, from 0; None before the first.
    rows: of `metrics.jsonl`. epoch_seconds, seconds: by what they went into, of this epoch and of the run.
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
        """Go on to the next epoch."""
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
    """What `training_state.pt` holds: tensors, numbers and texts. random_states: by rank."""
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
    """Raise RunError where a run cannot go on with this config and these data.

    Returns what a person should know, None where the run goes on bit for bit.
    """
    if state.get("format") != FORMAT:
        raise RunError(f"the checkpoint is of another format than {FORMAT}")
    try:
        former = parse_config(state["config"], source="the run's config")
    except ConfigError as error:
        raise RunError(f"the run was begun by another version: {error}") from None
    if changed := _changes(former.what_counts(), config.what_counts()):
        raise RunError("a run goes on with the config that it was begun with, but " + "; ".join(changed))
    if state["data"] != data_digest:
        raise RunError("the data set has other texts or clips than when the run was begun")
    rounding = _changes(former.what_rounds(), config.what_rounds())
    if state["world_size"] != world_size():
        told = f"{state['world_size']} processes before, {world_size()} now"
        if config.training.gather == "official":
            raise RunError(f'with gather = "official" the result depends on the number of processes: {told}')
        rounding.append(told)
    return f"{'; '.join(rounding)}: the result is the same up to rounding" if rounding else None


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
    """Put optimizer, scaler and random generators where the state says. Raises RunError on a damaged one."""
    try:
        optimizer.load_state_dict(state["optimizer"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        restore_states(state["random"][rank() % len(state["random"])], device)
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise RunError(f"the checkpoint's training state is damaged: {error}") from None
