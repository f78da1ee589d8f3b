"""LSMDC: clips of movies, a sentence each; a thousand of them are the test.

Files and pairs as in xuguohai/X-CLIP, dataloaders/dataloader_lsmdc_retrieval.py: lines of six cells between
tabs, clip id first, sentence last. In training some clips have two sentences.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from training.datasets.annotation_files import AnnotatedClip, checked_id, checked_text, read_lines
from training.datasets.layout import Layout
from training.datasets.split import SplitName
from training.errors import DatasetError

_FILES: Final[dict[SplitName, str]] = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
_NUM_CELLS: Final = 6

_TREE: Final = """\
DIRECTORY
├── LSMDC16_annos_training.csv
├── LSMDC16_annos_val.csv
├── LSMDC16_challenge_1000_publictect.csv
└── LSMDC_Videos/                or the folders of movies in DIRECTORY itself
    ├── 0001_American_Beauty/
    │   ├── 0001_American_Beauty_00.00.51.926-00.00.54.129.avi
    │   └── ...
    └── ..."""

_UNREADABLE: Final = "1012_Unbreakable_00.05.16.065-00.05.21.941"
"""The one training clip that cannot be read (layer6ai-labs/xpool, datasets/lsmdc_dataset.py)."""


def _read(folder: Path, split: SplitName) -> list[AnnotatedClip]:
    path = folder / _FILES[split]
    texts: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        cells = line.split("\t")
        if len(cells) != _NUM_CELLS:
            raise DatasetError(f"{where} has {len(cells)} cells between tabs, not {_NUM_CELLS}")
        clip = checked_id(cells[0], where)
        texts.setdefault(clip, []).append(checked_text(cells[-1], where))
    if not texts:
        raise DatasetError(f"{path} is empty")
    return [AnnotatedClip(clip, tuple(of_clip), (clip,)) for clip, of_clip in texts.items()]


LAYOUT: Final = Layout(
    title="LSMDC",
    tree=_TREE,
    roots=(".", "LSMDC"),
    annotation_folders=(".",),
    video_folders=("LSMDC_Videos", "videos", "VideoData", "."),
    files={split: (name,) for split, name in _FILES.items()},
    read=_read,
    known_missing=frozenset({_UNREADABLE}),
)
