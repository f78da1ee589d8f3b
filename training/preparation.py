"""Everything that a run needs before its first step: data, model, optimizer, and how far it had come."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from model import XClip
from training.batch_order import check_sharing
from training.batches import TrainingBatches, steps_of_epoch
from training.bert_adam import BertAdam
from training.config import TrainingConfig
from training.errors import ConfigError, RunError
from training.events import Note, OnEvent, Preparing
from training.frames import FrameReader
from training.freezing import freeze
from training.full_memory import explained_if_full
from training.gradient_checkpointing import checkpoint_activations
from training.optimizer import ScheduledAdamW, make_optimizer
from training.processes import rank, share_parameters, wait_for_others, world_size
from training.random_states import seed_everything
from training.run_directory import RunDirectory
from training.scorers import fixed_parameters
from training.starting_model import StartingModel, starting_model
from training.training_data import (
    OnProgress,
    TrainingSplits,
    digest_of,
    encode_frames_once,
    feature_bytes,
    frame_readers,
    load_splits,
    read_all_once,
    require_frozen_vision,
)
from training.training_state import Progress, check, unpack


@dataclass
class Prepared:
    """A run that can take its next step. num_steps: of the whole run. data_digest: `digest_of` the splits."""

    splits: TrainingSplits
    data_digest: str
    model: XClip
    batches: TrainingBatches
    validation_reader: FrameReader
    optimizer: BertAdam | ScheduledAdamW
    scaler: torch.amp.GradScaler | None
    num_steps: int
    progress: Progress


def prepare(
    config: TrainingConfig,
    directory: RunDirectory,
    device: torch.device,
    *,
    resume: bool,
    overwrite: bool,
    splits: TrainingSplits | None,
    tell: OnEvent,
    at_end: ExitStack,
) -> Prepared:
    """Begin a run or take one up again, see `training.trainer.train`. at_end: closes what is opened here."""
    choices = config.training
    state = _open(directory, resume, overwrite, tell)
    splits = splits or load_splits(config)
    start = _model(config, directory, splits, state, str(device))
    model = start.model
    for note in start.notes:
        tell(Note(note))
    # What can be refused is, before all clips are read.
    _freeze(config, model, start)
    if choices.cache_frame_features:
        require_frozen_vision(model, config)
    check_sharing(choices.batch_size, rank(), world_size())
    steps_of_epoch(splits.train, choices.batch_size, config.data.one_text_per_clip)
    reader, validation_reader = frame_readers(config, model.image_size)
    if (config.data.read_first and state is None) or config.data.missing == "warn":
        num_clips = sum(len(split.clips) for split in (splits.train, splits.validation) if split)
        splits = read_all_once(splits, config, reader, _counting(tell, "reading clips", num_clips))
    for split in (splits.train, splits.validation):
        if split is not None and split.missing:
            tell(Note(f"{len(split.missing)} clips of {split} are missing and left out"))
    checkpoint_activations(model, choices.gradient_checkpointing)
    features = _frame_features(config, model, splits, reader, tell) if choices.cache_frame_features else None
    batches = at_end.enter_context(
        TrainingBatches(
            splits.train,
            model.tokenize,
            reader if features is None else None,
            batch_size=choices.batch_size,
            seed=choices.seed,
            rank=rank(),
            world_size=world_size(),
            num_workers=config.data.num_workers,
            one_text_per_clip=config.data.one_text_per_clip,
            frame_features=features,
        )
    )
    num_steps = batches.num_steps * choices.epochs
    optimizer = make_optimizer(
        model,
        kind=config.optimizer.kind,
        learning_rate=config.optimizer.learning_rate,
        clip_learning_rate_factor=config.optimizer.clip_learning_rate_factor,
        weight_decay=config.optimizer.weight_decay,
        num_steps=num_steps,
        warmup_share=config.optimizer.warmup_share,
    )
    scaler = torch.amp.GradScaler(device.type) if choices.precision == "float16" else None
    data_digest = digest_of(splits)
    progress = Progress()
    if state is None:
        if rank() == 0:
            directory.begin(config, overwrite=overwrite or resume)
        seed_everything(choices.seed + rank())
    else:
        if note_of_change := check(state, config, data_digest):
            tell(Note(note_of_change))
        progress = unpack(state, optimizer, scaler, device)
        if rank() == 0:
            directory.write_metrics(progress.rows)
    return Prepared(
        splits, data_digest, model, batches, validation_reader, optimizer, scaler, num_steps, progress
    )


def _open(directory: RunDirectory, resume: bool, overwrite: bool, tell: OnEvent) -> dict[str, Any] | None:
    """The state to go on from, None for a new run."""
    if not resume:
        if rank() == 0:
            directory.require_free(overwrite=overwrite)
        return None
    if not directory.holds_a_run():
        raise RunError(f"{directory.path} holds no run to resume")
    if rank() == 0:
        directory.mend()
    wait_for_others()
    if directory.last.is_dir():
        return directory.read_state()
    tell(Note(f"{directory.path} holds no checkpoint yet: the run begins anew"))
    return None


def _model(
    config: TrainingConfig,
    directory: RunDirectory,
    splits: TrainingSplits,
    state: dict[str, Any] | None,
    device: str,
) -> StartingModel:
    if state is None:
        start = starting_model(config.model, splits.train.texts, config.training.seed, device)
    else:
        model = XClip.load(directory.last, device)
        start = StartingModel(model, fixed_parameters(config.model.scorer, model))
    share_parameters(start.model)
    return start


def _freeze(config: TrainingConfig, model: XClip, start: StartingModel) -> None:
    choices = config.training
    frozen = freeze(
        model,
        num_layers=choices.freeze_layers,
        towers=choices.freeze_towers,
        names={*choices.freeze_parameters, *start.fixed_parameters},
    )
    if len(frozen) == len(list(model.parameters())):
        raise ConfigError(
            f"nothing is left to learn: scorer {config.model.scorer} and what is frozen leave no parameter"
        )


def _frame_features(
    config: TrainingConfig, model: XClip, splits: TrainingSplits, reader: FrameReader, tell: OnEvent
) -> tuple[torch.Tensor, torch.Tensor]:
    num_clips = len(splits.train.clips)
    size_mebibytes = feature_bytes(splits.train, model) / 2**20
    tell(
        Note(
            f"the features of all frames of {num_clips} clips are encoded once and kept:"
            f" {size_mebibytes:,.1f} MiB of memory in each process"
        )
    )
    counting = _counting(tell, "encoding clips", -(-num_clips // world_size()))
    with explained_if_full(
        "encoding all frames",
        "set training.validation_batch_size, the clips encoded at once, or leave out"
        " training.cache_frame_features",
    ):
        return encode_frames_once(model, splits.train, reader, config, counting)


def _counting(tell: OnEvent, what: str, num_total: int) -> OnProgress:
    """Adds up progress, and tells it. Several processes share the work; the first one's is told."""
    num_done = 0

    def count(num_new: int) -> None:
        nonlocal num_done
        num_done += num_new
        tell(Preparing(what, num_done, num_total))

    return count
