"""Where everything lies in the output folder.

settings.json   corpus/   start/   frames/   runs/NAME/ (while it trains)   records/NAME.json
results.json    tables.md   ablations.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
        """Decoded frames (`training.frame_cache`)."""
        return self.output / "frames"

    def run(self, name: str) -> Path:
        """The training run of a variant and a seed."""
        return self.output / "runs" / name

    def record(self, name: str) -> Path:
        """What that run found; there once it is done."""
        return self.output / "records" / f"{name}.json"
