"""Part of a data set: its clips and the texts that describe them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.errors import DatasetError

SplitName = Literal["train", "val", "test"]
MissingPolicy = Literal["error", "warn"]
"""What becomes of videos that are not there: an error that lists them, or a warning that counts them."""


class DatasetWarning(UserWarning):
    """Something about a data set that makes its numbers differ from the published ones."""


@dataclass(frozen=True)
class Clip:
    """A video as a data set names it, or a stretch of one.

    id: unique within its split. path: the video file.
    start_seconds, end_seconds: the stretch, None for the whole file.
    """

    id: str
    path: Path
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Split:
    """V clips and T texts, T >= V >= 1, every clip with at least one text.

    dataset, name: as in `msrvtt-9k`, `train`.
    texts: grouped by clip: the texts of a clip stand together, clips in their order.
    clip_of_text: for each text the position of its clip, ascending.
    missing: ids of clips that were left out because their video is not there or cannot be read.
    Raises DatasetError where these do not fit together.
    """

    dataset: str
    name: str
    clips: tuple[Clip, ...]
    texts: tuple[str, ...]
    clip_of_text: tuple[int, ...]
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.clips:
            raise DatasetError(f"{self} holds no clip")
        if len(self.texts) != len(self.clip_of_text):
            raise DatasetError(
                f"{self} has {len(self.texts)} texts but says the clip of {len(self.clip_of_text)}"
            )
        if sorted(self.clip_of_text) != list(self.clip_of_text) or set(self.clip_of_text) != set(
            range(len(self.clips))
        ):
            raise DatasetError(f"{self} does not group its texts by clip, with at least one text for each")
        if len({clip.id for clip in self.clips}) != len(self.clips):
            raise DatasetError(f"{self} names a clip twice")

    def __str__(self) -> str:
        return f"{self.dataset} {self.name}"

    @property
    def has_several_texts_per_clip(self) -> bool:
        """Whether evaluation needs the multi-caption protocol (MSVD)."""
        return len(self.texts) > len(self.clips)
