"""DiDeMo: clips of half a minute. All descriptions of a clip, joined, are the paragraph that finds it.

Files and pairs as in xuguohai/X-CLIP, dataloaders/dataloader_didemo_retrieval.py: the clips of the list, with
their descriptions in the order of the JSON, joined by spaces. The moments that the descriptions are of do not
matter; of each video the first 31 seconds are read, as annotators saw no more than 30.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from training.datasets.annotation_files import (
    AnnotatedClip,
    checked_text,
    first_few,
    read_id_list,
    read_json,
)
from training.datasets.layout import Layout
from training.datasets.split import SplitName
from training.errors import DatasetError

_READ_SECONDS: Final = 31.0
"""dataloader_didemo_retrieval.py: start 0, end 31 for every clip."""

_TREE: Final = """\
DIRECTORY
├── train_list.txt
├── val_list.txt
├── test_list.txt
├── train_data.json
├── val_data.json
├── test_data.json
└── Video/                       or DiDeMo_Videos/
    ├── 10015567@N08_3655084291_d8b58466fa.mov         or ….mov.mp4 or ….mp4
    └── ..."""


def _read(folder: Path, split: SplitName) -> list[AnnotatedClip]:
    list_path, descriptions_path = folder / f"{split}_list.txt", folder / f"{split}_data.json"
    texts: dict[str, list[str]] = {clip: [] for clip in read_id_list(list_path)}
    entries = read_json(descriptions_path)
    if not isinstance(entries, list):
        raise DatasetError(f"{descriptions_path} is not a list of descriptions")
    for number, entry in enumerate(entries):
        where = f"{descriptions_path}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("video"), str):
            raise DatasetError(f"{where} is not an object with a `video`")
        # The JSON describes more clips than the list names, 1,037 for the 1,004 of the test.
        if (of_clip := texts.get(entry["video"])) is not None:
            if not isinstance(entry.get("description"), str):
                raise DatasetError(f"{where}: no `description` that is a string")
            of_clip.append(entry["description"])
    if without := [clip for clip, of_clip in texts.items() if not of_clip]:
        raise DatasetError(
            f"{descriptions_path} describes {len(without)} clips of {list_path.name} not at all:"
            f" {first_few(without)}"
        )
    return [
        AnnotatedClip(
            id=clip,
            texts=(checked_text(" ".join(of_clip), f"{descriptions_path}, {clip}"),),
            names=_file_names(clip),
            start_seconds=0.0,
            end_seconds=_READ_SECONDS,
        )
        for clip, of_clip in texts.items()
    ]


def _file_names(clip: str) -> tuple[str, ...]:
    """Ids are the names of the original files, endings included; converted files may have lost those.

    The official loader compares ids with names cut at the first `.mp4` and so loses every id that ends in it;
    all are kept here.
    """
    return (clip, clip.rpartition(".")[0] or clip)


LAYOUT: Final = Layout(
    title="DiDeMo",
    tree=_TREE,
    roots=(".", "DiDeMo"),
    annotation_folders=(".", "Annotations", "annotation"),
    video_folders=("Video", "DiDeMo_Videos", "videos", "VideoData"),
    files={
        "train": ("train_list.txt", "train_data.json"),
        "val": ("val_list.txt", "val_data.json"),
        "test": ("test_list.txt", "test_data.json"),
    },
    read=_read,
)
