"""What a run is trained and validated on: splits, readers of frames, frame features computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import distributed

from model import XClip
from model.preprocessing import Resizing
from training.config import TrainingConfig
from training.data.batches import FrameFeatures
from training.data.clip_checks import readable
from training.data.frame_cache import FrameCache
from training.data.frames import FrameReader, FrameRecipe
from training.data.loading import ClipLoader, LoadRequest
from training.datasets.registry import load_split
from training.datasets.split import Split
from training.distributed import rank, wait_for_others, world_size
from training.errors import ConfigError

OnProgress = Callable[[int], None]
"""Called with the number of clips that were done since the last call, by this process."""

_CLIPS_AT_ONCE = 1024
"""Clips whose features are exchanged between processes in one message."""


@dataclass(frozen=True)
class TrainingSplits:
    """What to learn from, and what chooses the best epoch (None: the last one is the best)."""

    train: Split
    validation: Split | None


def load_splits(config: TrainingConfig) -> TrainingSplits:
    """The splits that a config names. Raises ConfigError, DatasetError."""
    data = config.data
    if data.directory is None:
        raise ConfigError(f"where is {data.dataset}? Say so with --data DIR, or as [data].directory")

    load = partial(load_split, data.dataset, data.directory, videos=data.videos, missing=data.missing)
    return TrainingSplits(
        load(data.train_split), None if data.validation_split == "none" else load(data.validation_split)
    )


def digest_of(splits: TrainingSplits) -> str:
    """sha256 of texts and clips in their order, 64 hex digits; not of where the videos lie."""
    digest = hashlib.sha256()
    for split in (splits.train, splits.validation):
        facts = split and {
            "clips": [(clip.id, clip.start_seconds, clip.end_seconds) for clip in split.clips],
            "texts": split.texts,
            "clip_of_text": split.clip_of_text,
        }
        digest.update(json.dumps(facts).encode())
    return digest.hexdigest()


def frame_recipe(config: TrainingConfig, resizing: Resizing) -> FrameRecipe:
    """Which frames a run learns from."""
    data = config.data
    return FrameRecipe(
        num_frames=config.model.num_frames,
        resizing=resizing,
        frames_per_second=data.frames_per_second,
        slice_mode=data.frame_slice,
        order=data.frame_order,
        rule=data.frame_rule,
    )


def frame_readers(config: TrainingConfig, resizing: Resizing) -> tuple[FrameReader, FrameReader]:
    """The reader for training, and that for validation, which leaves the frames in their order."""
    data, recipe = config.data, frame_recipe(config, resizing)
    cache = FrameCache(data.cache, data.videos or data.directory) if data.cache is not None else None
    return (
        FrameReader(recipe, cache, seed=config.training.seed),
        FrameReader(replace(recipe, order="forward"), cache),
    )


def read_all_once(
    splits: TrainingSplits, config: TrainingConfig, reader: FrameReader, on_progress: OnProgress
) -> TrainingSplits:
    """The splits without clips that cannot be read, as `data.missing` says. Raises DatasetError listing them.

    Of several processes the first reads, and the others after it, from the cache where there is one.
    """

    def read(split: Split) -> Split:
        return readable(
            split,
            reader,
            missing=config.data.missing,
            num_processes=max(1, config.data.num_workers),
            on_progress=on_progress,
        )

    with _first_process_first():
        return TrainingSplits(read(splits.train), splits.validation and read(splits.validation))


@contextmanager
def _first_process_first() -> Iterator[None]:
    if rank() > 0:
        wait_for_others()
    yield
    if rank() == 0:
        wait_for_others()


def require_frozen_vision(model: XClip, config: TrainingConfig) -> None:
    """Raise ConfigError where frame features that are computed once would go stale."""
    learning = [name for name, parameter in model.clip.visual.named_parameters() if parameter.requires_grad]
    if learning:
        raise ConfigError(
            "[training].cache_frame_features needs a vision tower that does not learn, but "
            f'{learning[0]} and {len(learning) - 1} more parameters do: set freeze_towers = ["vision"]'
        )
    if config.data.frame_order == "shuffled":
        raise ConfigError(
            "[training].cache_frame_features keeps one order of frames, but [data].frame_order is shuffled"
        )


def feature_bytes(split: Split, model: XClip) -> int:
    """Memory that `encode_frames_once` fills, in bytes."""
    return len(split.clips) * model.config.num_frames * (4 * model.config.embedding_dim + 1)


@torch.no_grad()
def encode_frames_once(
    model: XClip,
    split: Split,
    reader: FrameReader,
    config: TrainingConfig,
    on_progress: OnProgress,
) -> FrameFeatures:
    """The vision tower's output for every clip of a split, on the CPU, zeros for padding.

    Computed at the config's precision, shared among the processes, each of which gets all of it.
    """
    features = torch.zeros(len(split.clips), model.config.num_frames, model.config.embedding_dim)
    masks = torch.zeros(len(split.clips), model.config.num_frames, dtype=torch.bool)
    own = range(rank(), len(split.clips), world_size())
    size, precision = config.training.validation_batch_size, getattr(torch, config.training.precision)
    groups = [own[first : first + size] for first in range(0, len(own), size)]
    loader = ClipLoader(split.clips, reader, config.data.num_workers)
    try:
        loaded = loader.load([LoadRequest(tuple(group)) for group in groups])
        for group, (pixels, mask) in zip(groups, loaded, strict=True):
            rows = torch.tensor(list(group))
            with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
                encoded = model.clip.visual(model.normalize_pixels(pixels[mask])).float().cpu()
            some = torch.zeros(*mask.shape, model.config.embedding_dim)
            some[mask] = encoded
            features[rows], masks[rows] = some, mask
            on_progress(len(group))
    finally:
        loader.close()
    if world_size() > 1:
        for tensor in (features, masks):
            for first in range(0, len(tensor), _CLIPS_AT_ONCE):
                part = tensor[first : first + _CLIPS_AT_ONCE]
                # The rows of other processes are zeros here, so the sum over the processes has all.
                whole = part.to(model.device, torch.float32)
                distributed.all_reduce(whole)
                part.copy_(whole)
    return FrameFeatures(features, masks)
