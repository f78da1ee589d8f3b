"""Part of a data set: its clips and the texts that describe them, checked against the official counts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from training.errors import DatasetError

SplitName = Literal["train", "val", "test"]
MissingPolicy = Literal["error", "warn"]
"""What becomes of videos that are not there: an error that lists them, or a warning that counts them."""


class DatasetWarning(UserWarning):
    """Something about a data set that makes its numbers differ from the published ones."""


@dataclass(frozen=True)
class Clip:
    """A video as a data set names it, or an interval of one.

    Attributes:
        id: Unique within its split.
        path: The video file.
        start_seconds, end_seconds: The interval, None for the whole file.
    """

    id: str
    path: Path
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True)
class Split:
    """V clips and T texts, T >= V >= 1, every clip with at least one text.

    Attributes:
        dataset, name: As in `msrvtt-9k`, `train`.
        texts: Grouped by clip: the texts of a clip stand together, clips in their order.
        clip_of_text: For each text the position of its clip, ascending.
        missing: Ids of clips that were left out because their video is not there or cannot be read.

    Raises:
        DatasetError: These do not fit together.
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


_SAMPLE_SHARE: Final = 0.1
"""A data set below this share of the official one is a sample, not an incomplete copy."""


@dataclass(frozen=True)
class OfficialCount:
    """Clips and pairs of a split, and the source.

    Attributes:
        num_clips: None where no source has it.
    """

    num_clips: int | None
    num_pairs: int
    source: str


_MSRVTT_TEST: Final = OfficialCount(
    1000, 1000, "MSRVTT_JSFUSION_test.csv of CLIP4Clip's msrvtt_data.zip: 1k-A"
)
_VAL_1: Final = OfficialCount(4917, 4917, "collaborative-experts, misc/datasets/activity-net/val_1_list.txt")
_EXPERTS: Final = "collaborative-experts, misc/datasets"
_XPOOL: Final = "captions in layer6ai-labs/xpool, data/MSVD/captions_msvd.json"

OFFICIAL_COUNTS: Final[dict[tuple[str, SplitName], OfficialCount]] = {
    ("msrvtt-9k", "train"): OfficialCount(
        9000, 180_000, "MSRVTT_train.9k.csv; 20 sentences a clip (Xu et al. 2016)"
    ),
    ("msrvtt-9k", "val"): _MSRVTT_TEST,
    ("msrvtt-9k", "test"): _MSRVTT_TEST,
    ("msrvtt-7k", "train"): OfficialCount(
        7010, 140_200, "MSRVTT_train.7k.csv; 20 sentences a clip (Xu et al. 2016)"
    ),
    ("msrvtt-7k", "val"): _MSRVTT_TEST,
    ("msrvtt-7k", "test"): _MSRVTT_TEST,
    ("msvd", "train"): OfficialCount(1200, 48_774, f"{_EXPERTS}/msvd/train_list.txt; {_XPOOL}"),
    ("msvd", "val"): OfficialCount(100, 4290, f"{_EXPERTS}/msvd/val_list.txt; {_XPOOL}"),
    ("msvd", "test"): OfficialCount(670, 27_763, f"{_EXPERTS}/msvd/test_list.txt; {_XPOOL}"),
    ("lsmdc", "train"): OfficialCount(
        None, 101_079, "LSMDC16's own statistics, ArrowLuo/CLIP4Clip issue 47; collaborative-experts"
    ),
    ("lsmdc", "val"): OfficialCount(None, 7408, "LSMDC16's own statistics, ArrowLuo/CLIP4Clip issue 47"),
    ("lsmdc", "test"): OfficialCount(1000, 1000, "the name of LSMDC16_challenge_1000_publictect.csv"),
    ("didemo", "train"): OfficialCount(8392, 8392, f"{_EXPERTS}/didemo/train_list.txt"),
    ("didemo", "val"): OfficialCount(1065, 1065, f"{_EXPERTS}/didemo/val_list.txt"),
    ("didemo", "test"): OfficialCount(1004, 1004, f"{_EXPERTS}/didemo/test_list.txt"),
    ("activitynet", "train"): OfficialCount(
        10_009, 10_009, "collaborative-experts, misc/datasets/activity-net/train_list.txt"
    ),
    ("activitynet", "val"): _VAL_1,
    ("activitynet", "test"): _VAL_1,
}


def warn_of_other_count(dataset: str, split: SplitName, num_clips: int, num_pairs: int) -> None:
    """A DatasetWarning where annotations of a full-size data set differ in number from the official ones."""
    official = OFFICIAL_COUNTS.get((dataset, split))
    if official is None or num_pairs < _SAMPLE_SHARE * official.num_pairs:
        return
    expected_clips = num_clips if official.num_clips is None else official.num_clips
    if (num_clips, num_pairs) != (expected_clips, official.num_pairs):
        warnings.warn(
            f"{dataset} {split}: the annotations have {num_clips} clips and {num_pairs} pairs, the official"
            f" ones {expected_clips} and {official.num_pairs} ({official.source}); published figures are of"
            " those",
            DatasetWarning,
            stacklevel=3,
        )
