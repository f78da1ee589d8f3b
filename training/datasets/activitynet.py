"""ActivityNet Captions: videos of two minutes. The sentences of one, joined, are the paragraph that finds it.

Files and pairs as in xuguohai/X-CLIP, dataloaders/dataloader_activitynet_retrieval.py. There is no test with
public captions: the official training chooses its best epoch on `val_1` and reports that
(dataloaders/data_dataloaders.py, `DATALOADER_DICT`), so `val` and `test` are both `val_1` here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from training.datasets.annotation_files import AnnotatedClip, checked_id, checked_text, read_json
from training.datasets.layout import Layout
from training.datasets.split import SplitName
from training.errors import DatasetError

_FILES: Final[dict[SplitName, tuple[str, str]]] = {
    "train": ("train_ids.json", "train.json"),
    "val": ("val_ids.json", "val_1.json"),
    "test": ("val_ids.json", "val_1.json"),
}

_TREE: Final = """\
DIRECTORY
├── train_ids.json
├── val_ids.json
├── train.json
├── val_1.json
└── Activity_Videos/
    ├── QOlSCBRmfWY.mp4          or v_QOlSCBRmfWY.mp4
    └── ..."""


def _read(folder: Path, split: SplitName) -> list[AnnotatedClip]:
    ids_path, captions_path = (folder / name for name in _FILES[split])
    ids, captions = read_json(ids_path), read_json(captions_path)
    if not isinstance(ids, list):
        raise DatasetError(f"{ids_path} is not a list of ids")
    if not isinstance(captions, dict):
        raise DatasetError(f"{captions_path} is not an object of captions by video")
    listed = dict.fromkeys(
        checked_id(video, f"{ids_path}, entry {number}") for number, video in enumerate(ids)
    )
    # The lists hold some videos that the captions lack (15 of training, 9 of val_1): those are not used.
    clips = [_clip(video, captions[video], captions_path) for video in listed if video in captions]
    if not clips:
        raise DatasetError(f"{captions_path} describes no video of {ids_path.name}")
    return clips


def _clip(video: str, entry: Any, path: Path) -> AnnotatedClip:
    where = f"{path}, {video}"
    sentences = entry.get("sentences") if isinstance(entry, dict) else None
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise DatasetError(f"{where}: no list `sentences` of strings")
    return AnnotatedClip(
        id=video,
        texts=(checked_text(" ".join(sentences), where),),
        names=(video, video.removeprefix("v_")),
        start_seconds=0.0,
        end_seconds=_whole_seconds(entry.get("duration"), where),
    )


def _whole_seconds(duration: object, where: str) -> float:
    """The duration, rounded up, as the official loader hands it to its extractor."""
    try:
        seconds = float(duration)  # type: ignore[arg-type]  # what is not a number fails below
    except (TypeError, ValueError):
        raise DatasetError(f"{where}: the duration {duration!r} is not a number") from None
    if not (math.isfinite(seconds) and seconds > 0):
        raise DatasetError(f"{where}: the duration {duration!r} is not above 0")
    return float(math.ceil(seconds))


LAYOUT: Final = Layout(
    title="ActivityNet",
    tree=_TREE,
    roots=(".", "ActivityNet"),
    annotation_folders=(".", "Annotations"),
    video_folders=("Activity_Videos", "videos", "VideoData"),
    files=_FILES,
    read=_read,
)
