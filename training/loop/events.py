"""What a training run tells while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preparing:
    """Before a run starts, again and again. what: such as `reading clips`, num_done of num_total."""

    what: str
    num_done: int
    num_total: int


@dataclass(frozen=True)
class RunStarted:
    """Before the first step.

    num_pairs, num_clips: of the training split. num_steps: of the whole run, of which num_steps_done before.
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

    step: steps done in the run, from 1. epoch: from 1. loss: of the global batch, before the step.
    gradient_norm: before clipping; not finite where float16 skipped the step.
    learning_rates: of this step, by parameter group. logit_scale: exp(logit_scale), after it.
    seconds: of the step with the wait for its data, of which data_wait_seconds.
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
    """Before the model is judged on the validation split."""

    epoch: int
    num_clips: int
    num_texts: int


@dataclass(frozen=True)
class EpochDone:
    """After an epoch and its validation. row: what `metrics.jsonl` gets, see
    `training.loop.run_directory`."""

    step: int
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """Something that a person should know."""

    text: str


TrainingEvent = Preparing | RunStarted | StepDone | ValidationStarted | EpochDone | Note
OnEvent = Callable[[TrainingEvent], None]
