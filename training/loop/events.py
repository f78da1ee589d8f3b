"""What a training run reports while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preparing:
    """Before a run starts, repeatedly.

    Attributes:
        what: Such as `reading clips`.
    """

    what: str
    num_done: int
    num_total: int


@dataclass(frozen=True)
class RunStarted:
    """Before the first step.

    Attributes:
        num_pairs, num_clips: Of the training split.
        num_steps: Of the whole run.
        num_steps_done: Of them, before this start.
    """

    num_pairs: int
    num_clips: int
    num_epochs: int
    num_steps: int
    num_steps_done: int
    batch_size: int
    world_size: int
    device: str


@dataclass(frozen=True)
class StepDone:
    """After each step.

    Attributes:
        step: Steps done in the run, from 1.
        epoch: From 1.
        loss: Of the global batch, before the step.
        gradient_norm: Before clipping; not finite where float16 skipped the step.
        learning_rates: Of this step, by parameter group.
        logit_scale: exp(logit_scale), after it.
        seconds: Of the step with the wait for its data, of which data_wait_seconds.
    """

    step: int
    epoch: int
    loss: float
    gradient_norm: float
    learning_rates: Mapping[str, float]
    logit_scale: float
    num_pairs: int
    seconds: float
    data_wait_seconds: float


@dataclass(frozen=True)
class ValidationStarted:
    """Before the model is evaluated on the validation split."""

    epoch: int
    num_clips: int
    num_texts: int


@dataclass(frozen=True)
class EpochDone:
    """After an epoch and its validation.

    Attributes:
        row: What `metrics.jsonl` gets, see `training.loop.run_directory`.
    """

    step: int
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """Something that the user should know."""

    text: str


TrainingEvent = Preparing | RunStarted | StepDone | ValidationStarted | EpochDone | Note
OnEvent = Callable[[TrainingEvent], None]
