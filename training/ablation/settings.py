"""Everything that the figures depend on, in one record, and the output folder that it is saved in.

settings.json   corpus/   start/   frames/   runs/NAME/ (while it trains)   records/NAME.json
results.json    tables.md   ablations.png
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from training.ablation.corpus import CorpusRecipe, StartRecipe
from training.config import TrainingConfig, find_config
from training.errors import RunError

SETTINGS_FILE = "settings.json"
FORMAT = "xclip-search-ablation/1"


@dataclass(frozen=True)
class AblationSettings:
    """corpus: what is drawn. start: the towers that all variants start from. config: how each is trained."""

    corpus: CorpusRecipe
    start: StartRecipe
    config: TrainingConfig

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps; the incomplete last batch is left out."""
        num_pairs = self.corpus.num_groups * self.corpus.group_size
        if not self.config.data.one_text_per_clip:
            num_pairs *= self.corpus.captions_per_clip
        return num_pairs // self.config.training.batch_size

    @property
    def num_steps(self) -> int:
        """Of one variant with one seed."""
        return self.steps_per_epoch * self.config.training.epochs

    def with_steps(self, num_steps: int) -> AblationSettings:
        """The same with as many whole epochs as hold `num_steps` steps."""
        epochs = math.ceil(num_steps / self.steps_per_epoch)
        return replace(
            self, config=replace(self.config, training=replace(self.config.training, epochs=epochs))
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "format": FORMAT,
            "corpus": asdict(self.corpus),
            "start": asdict(self.start),
            "config": self.config.to_values(),
        }


def standard_settings() -> AblationSettings:
    """Those of docs/ablations.md. The config is one of those that ship with us."""
    return AblationSettings(CorpusRecipe(), StartRecipe(), find_config("drawn-corpus"))


def quick_settings() -> AblationSettings:
    """A miniature that runs the same code in seconds; its figures mean nothing."""
    standard = standard_settings()
    config = standard.config
    return AblationSettings(
        CorpusRecipe(
            num_groups=8,
            group_size=3,
            captions_per_clip=2,
            num_validation=4,
            num_held_out=10,
            size_pixels=64,
            frame_rate=2,
        ),
        StartRecipe(
            num_groups=8,
            group_size=2,
            num_steps=6,
            batch_size=32,
            image_size=32,
            width=32,
            vision_layers=1,
            text_layers=1,
        ),
        replace(
            config,
            model=replace(config.model, temporal_layers=1),
            training=replace(config.training, epochs=1, batch_size=8),
        ),
    )


def claim_folder(output: Path, settings: AblationSettings) -> None:
    """Make `output`, or check that it was made by the same settings, so that its figures are comparable.

    Raises:
        RunError: It holds results of other settings, or something else altogether.
    """
    path = output / SETTINGS_FILE
    known = settings.as_json()
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise RunError(f"{path} cannot be read: {error}") from None
        if found != known:
            raise RunError(
                f"{output} holds results of other settings ({_first_difference(found, known)}):"
                " choose another folder, or the same steps and size"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"{output} exists and holds no ablations; choose an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _first_difference(found: Any, known: dict[str, Any], prefix: str = "") -> str:
    if not isinstance(found, dict):
        return prefix or SETTINGS_FILE
    for name in sorted({*found, *known}):
        ours, theirs = known.get(name), found.get(name)
        if ours != theirs:
            if isinstance(ours, dict):
                return _first_difference(theirs, ours, f"{prefix}{name}.")
            return f"{prefix}{name} {theirs!r} there, {ours!r} now"
    return SETTINGS_FILE


@dataclass(frozen=True)
class Folders:
    """Paths below `output`."""

    output: Path

    @property
    def corpus(self) -> Path:
        """Clips and manifests (`training.ablation.corpus`)."""
        return self.output / "corpus"

    @property
    def start(self) -> Path:
        """The model directory that all variants start from."""
        return self.output / "start"

    @property
    def frames(self) -> Path:
        """Decoded frames (`training.data.frame_cache`)."""
        return self.output / "frames"

    def run(self, name: str) -> Path:
        """The training run of a variant and a seed."""
        return self.output / "runs" / name

    def record(self, name: str) -> Path:
        """What that run found; there once it is done."""
        return self.output / "records" / f"{name}.json"


def replace_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is complete."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
