"""Everything that a run needs before its first step: data, model, optimizer, and the progress so far.

`prepare` composes it. The model starts from CLIP with new parts above it, or from an X-CLIP checkpoint
(`starting_model`); some of its parameters do not learn (`freeze`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from model import XClip, XClipConfig
from model.errors import CheckpointError, ShapeError
from model.towers import BELOW_BLOCKS, block_of, checkpoint_towers
from training.config import ModelChoices, TrainingConfig
from training.data.batches import BatchPlan, FrameFeatures, TrainingBatches
from training.data.frames import FrameReader
from training.data.splits import (
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
from training.distributed import rank, share_parameters, wait_for_others, world_size
from training.errors import ConfigError, RunError, explained_if_full
from training.loop.checkpoint import Progress, check, seed_everything, unpack
from training.loop.events import Note, OnEvent, Preparing
from training.loop.optimizer import BertAdam, ScheduledAdamW, make_optimizer
from training.loop.run_directory import Existing, RunDirectory
from training.scorers import apply_scorer, find_scorer, fixed_parameters, prepare_model


@dataclass(frozen=True)
class StartingModel:
    """A model to train, which of its parameters the scorer leaves alone, and notes for the user."""

    model: XClip
    fixed_parameters: Collection[str]
    notes: Sequence[str] = ()


def starting_model(
    choices: ModelChoices, texts: Sequence[str], seed: int = 0, device: str = "auto"
) -> StartingModel:
    """Load `choices.start` and make of it a model of the sizes and the scorer that `choices` name.

    A start without temporal transformer and with identity matrices is plain CLIP: its towers are kept, and
    what is above them begins as in official training (`XClip.initialize_from_clip`): frame positions and
    temporal blocks as copies of the text tower's, AOSM as the identity. Where the text tower does not fit
    (none of CLIP's kind, another width than D, too few blocks), the temporal transformer starts at random,
    but with blocks that add nothing yet, so that the first scores are those of the start; a note says so. A
    start that was trained with a sigmoid loses its bias: a softmax, the paper's loss, does not see it. Any
    other start is a checkpoint whose sizes must be those of `choices`; all of its weights are kept.

    Args:
        texts: Captions of the training split, in which scorers that weigh words count them.
        seed: Of random weights.

    Raises:
        ConfigError, model.ModelError: The start cannot be loaded or does not fit the choices.
    """
    loaded = XClip.load(choices.start, "cpu", "torch")
    plain = is_plain_clip(loaded)
    config = trained_config(choices, loaded.config, plain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # A tokenizer with files of its own, perhaps next to the weights, keeps its length; CLIP's need not.
        same = config.num_tokens == loaded.config.num_tokens
        model = XClip(config, loaded.tokenizer if same else None)
    notes = []
    if plain:
        towers = loaded.clip.state_dict()
        if towers.pop("logit_bias", None) is not None:
            notes.append("the paper's loss does not use logit_bias of the start: it is left out")
        model.clip.load_state_dict(towers)
        try:
            model.initialize_from_clip()
        except ShapeError as error:
            # The matrices of AOSM are the identity already.
            notes.append(f"{error}: it starts at random and changes nothing until it is trained")
    else:
        known = loaded.state_dict()
        weights = {name: known.get(name, tensor) for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)  # Word weights alone may be new, and are counted below.
    weighs_words = config.word_weighting != "uniform"
    fixed = prepare_model(choices.scorer, model, model.tokenize(texts) if weighs_words else None)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return StartingModel(model.to(torch.device(device)), fixed, tuple(notes))


def is_plain_clip(model: XClip) -> bool:
    """Whether a model is its towers and nothing else: no temporal transformer, all matrices the identity."""
    return model.temporal is None and all(
        torch.equal(matrix, torch.eye(len(matrix), device=matrix.device))
        for matrix in model.matrices.parameters()
    )


def trained_config(choices: ModelChoices, start: XClipConfig, plain: bool) -> XClipConfig:
    """What the config of the model to train is.

    Args:
        plain: Whether the start is plain CLIP.

    Raises:
        ConfigError: Sizes do not fit the start, or contradict the scorer.
    """
    scorer = find_scorer(choices.scorer)
    if scorer.temporal and not choices.temporal_layers:
        raise ConfigError(
            f"[model].temporal_layers: the scorer {scorer.name} has a temporal transformer, so not 0"
        )
    try:
        config = replace(
            start,
            clip={name: value for name, value in start.clip.items() if name != "init_logit_bias"},
            num_words=choices.num_words,
            num_frames=choices.num_frames,
            temporal_layers=choices.temporal_layers,
            mask_padding=choices.mask_padding,
            temperature=choices.temperature,
            word_weighting="uniform",
            description=f"trained from {choices.start}",
        )
    except CheckpointError as error:
        raise ConfigError(f"[model]: {error}") from None
    overrides = {"score_names": choices.score_names, "aggregation": choices.aggregation}
    config = apply_scorer(choices.scorer, config, overrides)
    for name in ("num_words", "num_frames", "temporal_layers") if not plain else ():
        if getattr(config, name) != getattr(start, name):
            raise ConfigError(
                f"[model].{name}: the checkpoint {choices.start} has {getattr(start, name)}, so"
                f" {getattr(config, name)} does not fit; only plain CLIP weights take any size"
            )
    return config


Tower = Literal["vision", "text"]
NOTHING = -1
"""As `num_layers`: the official rule freezes nothing."""


def freeze(
    model: XClip,
    *,
    num_layers: int = NOTHING,
    towers: Collection[Tower] = (),
    names: Collection[str] = (),
) -> list[str]:
    """Set for every parameter of `model` whether it learns; returns the names of those that do not.

    Args:
        num_layers: The official `--freeze_layer_num` (github.com/xuguohai/X-CLIP, main_xclip.py, `main`), -1
            or 0 up to the layers of the deeper tower. -1 freezes nothing; 0, which all official scripts use,
            what lies below the blocks of both towers: `conv1`, `class_embedding`, both
            `positional_embedding`, `ln_pre` and `token_embedding`; n also the first n blocks of both. In
            other towers than CLIP's what stands in their place (`model.towers.block_of`). What
            lies above the blocks (`ln_post`, `proj`, `ln_final`, `text_projection`), `logit_scale` and all
            that is not CLIP's always learn by this rule.
        towers: Whole towers that stay, projections included: `vision`, `text`. `logit_scale` belongs to
            neither.
        names: Parameters that stay, by our names, for example `matrices.global_matrix`.

    Raises:
        ConfigError: A number out of range, an unknown tower or an unknown name.
    """
    blocks = [number for name, _ in model.clip.named_parameters() if (number := block_of(name)) is not None]
    depth = 1 + max(blocks, default=BELOW_BLOCKS)
    if not NOTHING <= num_layers <= depth:
        raise ConfigError(f"layers to freeze must be within -1 and {depth}, not {num_layers}")
    if wrong_towers := sorted(set[str](towers) - {"vision", "text"}):
        raise ConfigError(f"unknown towers {wrong_towers}: vision or text")
    if wrong_names := sorted(set(names) - {name for name, _ in model.named_parameters()}):
        raise ConfigError(f"the model has no parameters {wrong_names}")
    frozen = []
    for name, parameter in model.named_parameters():
        stays = name in names or _tower(name) in towers or _is_low(name, num_layers)
        parameter.requires_grad_(not stays)
        if stays:
            frozen.append(name)
            parameter.grad = None
    return frozen


def _tower(name: str) -> Tower | None:
    if not name.startswith("clip.") or name == "clip.logit_scale":
        return None
    return "vision" if name.startswith("clip.visual.") else "text"


def _is_low(name: str, num_layers: int) -> bool:
    """Whether the official rule freezes a parameter."""
    if num_layers == NOTHING or not name.startswith("clip."):
        return False
    block = block_of(name.removeprefix("clip."))
    return block is not None and block < num_layers


def checkpoint_activations(model: XClip, enabled: bool = True) -> None:
    """Keep only the input of each transformer block, of both towers and the temporal transformer.

    Gradients are the same; a step costs one more forward pass of the blocks (Chen et al. 2016,
    arXiv:1604.06174). It is not part of the weights or the config: set it for each run.
    """
    checkpoint_towers(model.clip, enabled)
    if model.temporal is not None:
        model.temporal.grad_checkpointing = enabled


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that can take its next step.

    Attributes:
        num_steps: Of the whole run.
        data_digest: `digest_of` the splits.
    """

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
    existing: Existing,
    splits: TrainingSplits | None,
    emit: OnEvent,
) -> Prepared:
    """Begin a run or resume one; arguments as in `training.loop.trainer.train`. Close its `batches`."""
    choices = config.training
    state = _open(directory, existing, emit)
    splits = splits or load_splits(config)
    # Whatever can be refused is refused before all clips are read.
    model = _load_model(config, directory, splits, state, device, emit)
    if choices.cache_frame_features:
        require_frozen_vision(model, config)
    plan = BatchPlan(
        choices.batch_size, choices.seed, config.data.one_text_per_clip, rank=rank(), world_size=world_size()
    )
    plan.num_steps(splits.train)
    reader, validation_reader = frame_readers(config, model.config.resizing)
    if (config.data.read_first and state is None) or config.data.missing == "warn":
        num_clips = sum(len(split.clips) for split in (splits.train, splits.validation) if split)
        splits = read_all_once(splits, config, reader, _counting(emit, "reading clips", num_clips))
    for split in (splits.train, splits.validation):
        if split is not None and split.missing:
            emit(Note(f"{len(split.missing)} clips of {split} are missing and left out"))
    frames = _frame_features(config, model, splits, reader, emit) if choices.cache_frame_features else reader
    batches = TrainingBatches(splits.train, model.tokenize, frames, plan, config.data.num_workers)
    num_steps = batches.num_steps * choices.epochs
    optimizer = make_optimizer(model, config.optimizer, num_steps)
    scaler = torch.amp.GradScaler(device.type) if choices.precision == "float16" else None
    data_digest = digest_of(splits)
    progress = Progress()
    if state is None:
        if rank() == 0:
            directory.begin(config, overwrite=existing != "refuse")
        seed_everything(choices.seed + rank())
    else:
        if note_of_change := check(state, config, data_digest):
            emit(Note(note_of_change))
        progress = unpack(state, optimizer, scaler, device)
        if rank() == 0:
            directory.write_metrics(progress.rows)
    return Prepared(
        splits, data_digest, model, batches, validation_reader, optimizer, scaler, num_steps, progress
    )


def _open(directory: RunDirectory, existing: Existing, emit: OnEvent) -> dict[str, Any] | None:
    """The state to resume from, None for a new run."""
    if existing != "resume":
        if rank() == 0:
            directory.require_free(overwrite=existing == "overwrite")
        return None
    if not directory.holds_a_run():
        raise RunError(f"{directory.path} holds no run to resume")
    if rank() == 0:
        directory.repair()
    wait_for_others()
    if directory.last.is_dir():
        return directory.read_state()
    emit(Note(f"{directory.path} holds no checkpoint yet: the run starts from the beginning"))
    return None


def _load_model(
    config: TrainingConfig,
    directory: RunDirectory,
    splits: TrainingSplits,
    state: dict[str, Any] | None,
    device: torch.device,
    emit: OnEvent,
) -> XClip:
    """The model on its device, the same on every process, its frozen parameters marked."""
    choices = config.training
    if state is None:
        start = starting_model(config.model, splits.train.texts, choices.seed, str(device))
        model, fixed = start.model, start.fixed_parameters
        for note in start.notes:
            emit(Note(note))
    else:
        model = XClip.load(directory.last, str(device), "torch")
        fixed = fixed_parameters(config.model.scorer, model)
    share_parameters(model)
    names = {*choices.freeze_parameters, *fixed}
    frozen = freeze(model, num_layers=choices.freeze_layers, towers=choices.freeze_towers, names=names)
    if len(frozen) == len(list(model.parameters())):
        raise ConfigError(
            f"nothing is left to learn: scorer {config.model.scorer} and what is frozen leave no parameter"
        )
    checkpoint_activations(model, choices.gradient_checkpointing)
    return model


def _frame_features(
    config: TrainingConfig, model: XClip, splits: TrainingSplits, reader: FrameReader, emit: OnEvent
) -> FrameFeatures:
    num_clips = len(splits.train.clips)
    size_mebibytes = feature_bytes(splits.train, model) / 2**20
    emit(
        Note(
            f"the features of all frames of {num_clips} clips are encoded once and kept:"
            f" {size_mebibytes:,.1f} MiB of memory in each process"
        )
    )
    counting = _counting(emit, "encoding clips", -(-num_clips // world_size()))
    with explained_if_full(
        "encoding all frames",
        "set training.validation_batch_size, the clips encoded together, or leave out"
        " training.cache_frame_features",
    ):
        return encode_frames_once(model, splits.train, reader, config, counting)


def _counting(emit: OnEvent, what: str, num_total: int) -> OnProgress:
    """Adds up progress and reports it: that of this process, where several share the work."""
    num_done = 0

    def count(num_new: int) -> None:
        nonlocal num_done
        num_done += num_new
        emit(Preparing(what, num_done, num_total))

    return count
