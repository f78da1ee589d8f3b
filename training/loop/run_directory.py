"""The folder of a training run.

    config.toml      the training config                 metrics.jsonl   a row for each epoch
    last/            the newest checkpoint               summary.json    once the run is done
    best/            the model of the best epoch         tensorboard/    scalars

A checkpoint is a model directory (`XClip.load` reads it) with the training config; `last/` also holds
`training_state.pt`. It is written under another name, synchronised to disk and renamed, so that whatever
interrupts the run leaves the former one or the new one.
"""

from __future__ import annotations

import json
import pickle
import platform
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from model import XClip
from model.atomic_files import fsync_directory, fsync_file, replace_file
from training.config import TrainingConfig
from training.data.splits import TrainingSplits
from training.distributed import world_size
from training.errors import RunError
from training.loop.checkpoint import Progress
from training.loop.run_log import times_of

CONFIG_FILE, METRICS_FILE, SUMMARY_FILE = "config.toml", "metrics.jsonl", "summary.json"
CHECKPOINT_CONFIG_FILE = "training_config.toml"
"""In a checkpoint, next to the model's own config.json."""
STATE_FILE, BAD_BATCH_FILE = "training_state.pt", "bad_batch.json"
Existing = Literal["refuse", "resume", "overwrite"]
"""What becomes of a run that the directory holds."""

LAST, BEST, TENSORBOARD = "last", "best", "tensorboard"
_UNFINISHED, _FORMER = ".{}.unfinished", ".{}.former"


class RunDirectory:
    """Where one run writes. `path` need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    @property
    def best(self) -> Path:
        """The model of the best epoch so far."""
        return self.path / BEST

    def require_free(self, *, overwrite: bool = False) -> None:
        """Raise RunError where the folder holds a run and `overwrite` is false, or anything else."""
        if self.holds_a_run():
            if not overwrite:
                raise RunError(
                    f"{self.path} holds a run already: --resume continues it, --overwrite removes it"
                )
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunError(f"{self.path} exists and is no training run; choose an empty folder")

    def begin(self, config: TrainingConfig, *, overwrite: bool = False) -> None:
        """Make the folder for a new run, replacing one that exists. Raises as `require_free`."""
        self.require_free(overwrite=overwrite)
        for name in (LAST, BEST, TENSORBOARD):
            for folder in (name, _UNFINISHED.format(name), _FORMER.format(name)):
                shutil.rmtree(self.path / folder, ignore_errors=True)
        for name in (METRICS_FILE, SUMMARY_FILE, BAD_BATCH_FILE, CONFIG_FILE):
            (self.path / name).unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_text(CONFIG_FILE, config.to_toml())

    def holds_a_run(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / CONFIG_FILE).is_file()

    def repair(self) -> None:
        """Undo an interrupted replacement of a checkpoint: the former one gets its name back."""
        for name in (LAST, BEST):
            former = self.path / _FORMER.format(name)
            if former.is_dir() and not (self.path / name).is_dir():
                former.rename(self.path / name)

    def write_last(self, model: XClip, config: TrainingConfig, state: Mapping[str, Any]) -> None:
        """Replace the newest checkpoint.

        Args:
            state: Tensors, numbers, texts and containers of them.
        """
        self._write_checkpoint(LAST, model, config, state)

    def write_best(self, model: XClip, config: TrainingConfig) -> None:
        """Replace the model of the best epoch."""
        self._write_checkpoint(BEST, model, config)

    def _write_checkpoint(
        self, name: str, model: XClip, config: TrainingConfig, state: Mapping[str, Any] | None = None
    ) -> None:
        unfinished, former = self.path / _UNFINISHED.format(name), self.path / _FORMER.format(name)
        final = self.path / name
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            model.save(unfinished)
            (unfinished / CHECKPOINT_CONFIG_FILE).write_text(config.to_toml(), encoding="utf-8")
            if state is not None:
                torch.save(dict(state), unfinished / STATE_FILE)
            for path in (*unfinished.rglob("*"), unfinished):
                (fsync_directory if path.is_dir() else fsync_file)(path)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch reports a full disk as RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise RunError(f"{final} cannot be written, and is as it was before: {reason}") from error
        # A folder cannot be renamed onto another that holds files: between the two renamings the former
        # checkpoint is the only one, and `repair` gives it its name back.
        shutil.rmtree(former, ignore_errors=True)
        if final.is_dir():
            final.rename(former)
        unfinished.rename(final)
        fsync_directory(self.path)
        shutil.rmtree(former, ignore_errors=True)

    def read_state(self) -> dict[str, Any]:
        """What `write_last` was given as `state`.

        Raises:
            RunError: It is damaged.
        """
        path = self.last / STATE_FILE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise RunError(f"{path} cannot be read, so the run cannot resume: {error}") from None
        if not isinstance(state, dict):
            raise RunError(f"{path} is not the state of a training run")
        return state

    def write_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace `metrics.jsonl`."""
        self.write_text(METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace `summary.json`."""
        self.write_text(SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Replace a file: it is whole or as it was."""
        unfinished = self.path / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        replace_file(unfinished, self.path / name)


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

    Times are sums over all starts of the run.

    Args:
        best: The directory of the best model.
    """
    assert progress.best_epoch is not None
    num_pairs_seen = num_steps * config.training.batch_size
    validation = splits.validation
    return {
        "format": FORMAT,
        "config": config.to_values(),
        "train": _facts(splits.train),
        "validation": None if validation is None else _facts(validation),
        "best": {
            "epoch": progress.best_epoch + 1,
            "by": None if validation is None else config.training.best_by,
            "fingerprint": XClip.load(best, "cpu", "torch").fingerprint,
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
