"""How many clips and pairs the splits of the paper's benchmarks have, so that a hole in one's copy shows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Final

from training.datasets.split import DatasetWarning, SplitName

_SAMPLE_SHARE: Final = 0.1
"""A data set below this share of the official one is a sample that somebody made, not one with holes."""


@dataclass(frozen=True)
class OfficialCount:
    """Clips and pairs of a split, and who says so. num_clips: None where no source tells."""

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
    """A DatasetWarning where annotations of a full-size data set count otherwise than the official ones."""
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
