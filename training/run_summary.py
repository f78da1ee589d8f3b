"""`summary.json`: what a run that is done was, found and cost."""

from __future__ import annotations

import platform
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from model import XClip
from training.config import TrainingConfig
from training.processes import world_size
from training.training_data import TrainingSplits
from training.training_log import times_of
from training.training_state import Progress

FORMAT = "xclip-search-run/1"


def summarize(
    config: TrainingConfig,
    splits: TrainingSplits,
    progress: Progress,
    num_steps: int,
    device: torch.device,
    best: Path,
) -> dict[str, Any]:
    """Config, data, the best epoch with its fingerprint and figures, and where the time went, as JSON values.

    best: the directory of the best model. Times are sums over all starts of the run.
    """
    assert progress.best_epoch is not None
    num_pairs_seen = num_steps * config.training.batch_size
    validation = splits.validation
    return {
        "format": FORMAT,
        "config": tomllib.loads(config.to_toml()),
        "train": _facts(splits.train),
        "validation": None if validation is None else _facts(validation),
        "best": {
            "epoch": progress.best_epoch + 1,
            "by": None if validation is None else config.training.best_by,
            "fingerprint": XClip.load(best, "cpu").fingerprint,
            "validation": progress.rows[progress.best_epoch]["validation"],
        },
        "num_steps": num_steps,
        "num_pairs_seen": num_pairs_seen,
        "wall_seconds": sum(progress.seconds.values()),
        "times": times_of(progress.seconds, num_pairs_seen),
        "num_processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {
            "xclip-search": version("xclip-search"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _facts(split: Any) -> dict[str, Any]:
    return {
        "dataset": split.dataset,
        "split": split.name,
        "num_pairs": len(split.texts),
        "num_clips": len(split.clips),
        "num_missing_clips": len(split.missing),
    }
