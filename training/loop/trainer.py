"""The training loop: `train` runs a config from its first step, or from its last checkpoint, to its end."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.config import TrainingConfig
from training.data.batches import Batch
from training.data.splits import TrainingSplits
from training.distributed import process_group, rank, wait_for_others, world_size
from training.errors import DatasetError, RunError, explained_if_full
from training.evaluation.encoding import EncodingOptions
from training.evaluation.evaluation import evaluate_split
from training.loop.checkpoint import gather_states, pack, random_states_kept
from training.loop.events import (
    EpochDone,
    Note,
    OnEvent,
    RunStarted,
    StepDone,
    TrainingEvent,
    ValidationStarted,
)
from training.loop.loss import loss_and_gradients
from training.loop.optimizer import GROUP_NAMES, update
from training.loop.preparation import Prepared, prepare
from training.loop.run_directory import BAD_BATCH_FILE, TENSORBOARD, Existing, RunDirectory, summarize
from training.loop.run_log import TensorBoardLog, clocked, figures_of, shared_figures, times_of
from training.loop.stopping import StopRequest, TrainingStoppedError, stop_between_steps

MAX_NAMED_CLIPS = 20
"""Clips that the error for a bad batch names; the file lists all."""


@dataclass(frozen=True)
class TrainingResult:
    """A run that is done.

    Attributes:
        best, last: Model directories.
        best_epoch: From 1.
        rows: Of `metrics.jsonl`.
        summary: Of `summary.json`.
    """

    directory: Path
    best: Path
    last: Path
    best_epoch: int
    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def train(
    config: TrainingConfig,
    output: Path,
    *,
    existing: Existing = "refuse",
    device: str = "auto",
    splits: TrainingSplits | None = None,
    on_event: OnEvent | None = None,
) -> TrainingResult:
    """Train a model as a config says; under `torchrun` together with the other processes.

    Only the first process writes.

    Args:
        config: The run; it is saved in `output`.
        output: The run directory (`training.loop.run_directory`).
        existing: For a run that `output` holds: `refuse`; `resume` from its last checkpoint, or from the
            beginning where there is none (on a CPU the result is bit for bit that of a run that was never
            stopped); `overwrite` it.
        device: See `training.distributed.process_group`.
        splits: Instead of those that the config names.
        on_event: Called by the first process only.

    Returns:
        The finished run.

    Raises:
        ConfigError, DatasetError, model.ModelError: The run cannot begin.
        RunError: `output` holds another run, or a loss or gradient is not finite.
        TrainingStoppedError: Ctrl-C or SIGTERM; the checkpoint is written.
    """
    directory = RunDirectory(output)
    with process_group(device) as own_device, ExitStack() as at_end:
        listeners: list[OnEvent] = [on_event] if on_event is not None and rank() == 0 else []

        def emit(event: TrainingEvent) -> None:
            for listener in listeners:
                listener(event)

        started = time.perf_counter()
        prepared = prepare(config, directory, own_device, existing, splits, emit)
        at_end.enter_context(prepared.batches)
        prepared.progress.add_seconds("preparation", time.perf_counter() - started)
        # From here on there is work to lose.
        stop = at_end.enter_context(stop_between_steps())
        run = _Run(config, directory, own_device, stop, prepared, emit)
        if config.log.tensorboard and rank() == 0:
            log = TensorBoardLog(directory.path / TENSORBOARD, config.log.every_steps, run.num_steps_done + 1)
            at_end.callback(log.close)
            listeners.append(log)
        run.train()
        return run.finish()


class _Run:
    """A prepared run and its loop."""

    def __init__(
        self,
        config: TrainingConfig,
        directory: RunDirectory,
        device: torch.device,
        stop: StopRequest,
        prepared: Prepared,
        emit: OnEvent,
    ) -> None:
        self.config, self.directory, self.device, self.stop = config, directory, device, stop
        self.prepared, self.progress, self.emit = prepared, prepared.progress, emit
        self.model, self.optimizer, self.scaler = prepared.model, prepared.optimizer, prepared.scaler
        self.batches = prepared.batches
        self.steps_per_epoch = prepared.batches.num_steps
        self.is_first = rank() == 0

    @property
    def num_steps_done(self) -> int:
        return self.progress.epoch * self.steps_per_epoch + self.progress.step

    def train(self) -> None:
        train = self.prepared.splits.train
        self.emit(
            RunStarted(
                num_pairs=len(train.texts),
                num_clips=len(train.clips),
                num_epochs=self.config.training.epochs,
                num_steps=self.prepared.num_steps,
                num_steps_done=self.num_steps_done,
                batch_size=self.config.training.batch_size,
                world_size=world_size(),
                device=str(self.device),
            )
        )
        while self.progress.epoch < self.config.training.epochs:
            if self.progress.step < self.steps_per_epoch:
                self._train_epoch()
                if self.prepared.splits.validation is not None:
                    self._save()  # Validation may take long; what led to it is safe.
            self._end_epoch()
            self._stop_if_asked()

    def _train_epoch(self) -> None:
        self.model.train()
        every = self.config.training.checkpoint_every_steps
        batches = self._clocked_batches()
        num_pairs = self.config.training.batch_size // world_size()
        for batch in batches:
            with explained_if_full(
                f"a process learns from {num_pairs} pairs",
                "set training.micro_batch_size, which keeps the batch and its negatives,"
                " training.gradient_checkpointing, or training.precision",
            ):
                self._train_step(batch)
            step = self.progress.step
            if step == self.steps_per_epoch:
                return  # The end of the epoch has a checkpoint of its own.
            saved = every is not None and step % every == 0
            if saved:
                self._save()
            self._stop_if_asked(saved)

    def _clocked_batches(self) -> Iterator[Batch]:
        batches = self.batches.epoch(self.progress.epoch, self.progress.step)
        num_given = 0
        while True:
            self.step_started = time.perf_counter()
            # Before the first batch the workers start, and draw a seed for themselves.
            starting = random_states_kept(self.device) if num_given == 0 else nullcontext()
            with clocked(self.progress, "data_wait"), self._ended_by_a_signal(), starting:
                batch = next(batches, None)
            if batch is None:
                return
            num_given += 1
            self.data_wait_seconds = time.perf_counter() - self.step_started
            yield batch.to(self.device)

    @contextmanager
    def _ended_by_a_signal(self) -> Iterator[None]:
        """Stop instead of failing after Ctrl-C in a terminal, which ends the reading processes too."""
        try:
            yield
        except DatasetError:
            if self.stop.signal_number:
                self._stop_if_asked()
            raise

    def _train_step(self, batch: Batch) -> None:
        config, progress = self.config, self.progress
        with clocked(progress, "forward_backward"):
            loss = loss_and_gradients(
                self.model,
                batch,
                micro_batch_size=config.training.micro_batch_size,
                precision=config.training.precision,
                gather=config.training.gather,
                scaler=self.scaler,
            )
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # So that the clock knows what the GPU was doing.
        if not math.isfinite(loss):
            raise self._bad_batch(f"the loss is {loss}")
        with clocked(progress, "optimizer"):
            rates = self.optimizer.learning_rates()
            norm = update(
                self.model,
                self.optimizer,
                max_gradient_norm=config.optimizer.max_gradient_norm,
                scaler=self.scaler,
            )
        if not math.isfinite(norm):
            if self.scaler is None:
                raise self._bad_batch(f"the norm of the gradients is {norm}")
            progress.num_skipped += 1
        progress.step += 1
        progress.loss_sum += loss
        self.emit(
            StepDone(
                step=self.num_steps_done,
                epoch=progress.epoch + 1,
                loss=loss,
                gradient_norm=norm,
                learning_rates=dict(zip(GROUP_NAMES, rates, strict=True)),
                logit_scale=self.model.logit_scale_exp,
                num_pairs=config.training.batch_size,
                seconds=time.perf_counter() - self.step_started,
                data_wait_seconds=self.data_wait_seconds,
            )
        )

    def _bad_batch(self, problem: str) -> RunError:
        """The error for this step; writes `bad_batch.json` with all pairs of the batch, of all processes."""
        split, epoch, step = self.prepared.splits.train, self.progress.epoch, self.progress.step
        plan = self.batches.plan
        texts = plan.whole_batch(plan.order(split, epoch), step).tolist()
        clips = [split.clips[split.clip_of_text[text]].id for text in texts]
        if self.is_first:
            pairs = [
                {"clip": clip, "text": split.texts[text]} for clip, text in zip(clips, texts, strict=True)
            ]
            listing = {"epoch": epoch + 1, "step_of_epoch": step + 1, "problem": problem, "pairs": pairs}
            self.directory.write_text(BAD_BATCH_FILE, json.dumps(listing, indent=2) + "\n")
        more = f" and {len(clips) - MAX_NAMED_CLIPS} more" if len(clips) > MAX_NAMED_CLIPS else ""
        return RunError(
            f"{problem} at step {step + 1} of epoch {epoch + 1}, so training stops; the last checkpoint is"
            f" as it was. Clips of this batch: {', '.join(clips[:MAX_NAMED_CLIPS])}{more} (with their texts"
            f" in {self.directory.path / BAD_BATCH_FILE})"
        )

    def _end_epoch(self) -> None:
        """Validate, keep the best model, write the row and the checkpoint."""
        progress, num_steps = self.progress, self.steps_per_epoch
        validation = self._validate()
        is_best = self._keep_if_best(validation)
        num_pairs = num_steps * self.config.training.batch_size
        step = (progress.epoch + 1) * num_steps
        row = {
            "epoch": progress.epoch + 1,
            "step": step,
            "loss": progress.loss_sum / num_steps,
            "logit_scale": self.model.logit_scale_exp,
            "num_skipped_steps": progress.num_skipped,
            "validation": validation,
            "is_best": is_best,
            "times": times_of(progress.epoch_seconds, num_pairs),
        }
        progress.end_epoch(row)
        self._save()
        if self.is_first:
            self.directory.write_metrics(progress.rows)
        self.emit(EpochDone(step, row))

    def _validate(self) -> dict[str, Any] | None:
        """Figures of the validation split, computed by the first process; None without such a split."""
        split = self.prepared.splits.validation
        if split is None:
            return None
        found = None
        full = explained_if_full(
            "validating", "set training.validation_batch_size, the clips encoded together"
        )
        with clocked(self.progress, "validation"), self._ended_by_a_signal(), full:
            if self.is_first:
                self.emit(ValidationStarted(self.progress.epoch + 1, len(split.clips), len(split.texts)))
                with random_states_kept(self.device):
                    result = evaluate_split(
                        self.model,
                        split,
                        self.prepared.validation_reader,
                        EncodingOptions(
                            self.config.training.validation_batch_size, self.config.data.num_workers
                        ),
                    )
                found = figures_of(result)
            wait_for_others()
        return shared_figures(found, self.device)

    def _keep_if_best(self, validation: dict[str, Any] | None) -> bool:
        """Of equal epochs the later (main_xclip.py, `main`). Without validation the last is the best."""
        if validation is None:
            value = float(self.progress.epoch)
        else:
            direction, _, name = self.config.training.best_by.partition(".")
            value = float(validation[direction][name])
            if name == "mean_rank":
                value = -value
        best = self.progress.best_value
        if best is not None and value < best:
            return False
        self.progress.best_value, self.progress.best_epoch = value, self.progress.epoch
        if self.is_first and (
            validation is not None or self.progress.epoch + 1 == self.config.training.epochs
        ):
            with clocked(self.progress, "checkpoint"):
                self.directory.write_best(self.model, self.config)
        return True

    def _save(self) -> None:
        with clocked(self.progress, "checkpoint"):
            states = gather_states(self.device)
            if self.is_first:
                state = pack(
                    self.progress, self.config, self.prepared.data_digest, self.optimizer, self.scaler, states
                )
                self.directory.write_last(self.model, self.config, state)
            wait_for_others()

    def _stop_if_asked(self, is_saved: bool = False) -> None:
        number = self.stop.agreed(self.device)
        if number:
            self.emit(Note("asked to stop"))
            if not is_saved:
                self._save()
            raise TrainingStoppedError(number, self.directory.last, self.num_steps_done)

    def finish(self) -> TrainingResult:
        progress, directory = self.progress, self.directory
        summary = summarize(
            self.config, self.prepared.splits, progress, self.prepared.num_steps, self.device, directory.best
        )
        if self.is_first:
            directory.write_summary(summary)
        assert progress.best_epoch is not None
        return TrainingResult(
            directory.path, directory.best, directory.last, progress.best_epoch + 1, progress.rows, summary
        )
