"""MSVD: 1,970 clips, each with about 40 captions. All captions of a test clip are queries (multi-caption).

Files and pairs as in xuguohai/X-CLIP, dataloaders/dataloader_msvd_retrieval.py: every caption of every clip
of the split's list, its words joined by spaces.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Final, NoReturn

from training.datasets.annotation_files import AnnotatedClip, checked_text, first_few, read_id_list
from training.datasets.layout import Layout
from training.datasets.split import SplitName
from training.errors import DatasetError

_CAPTIONS_FILE: Final = "raw-captions.pkl"

_TREE: Final = """\
DIRECTORY
├── train_list.txt               or these files in msvd_data/
├── val_list.txt
├── test_list.txt
├── raw-captions.pkl
└── MSVD_Videos/                 or YouTubeClips/
    ├── -4wsuPCjDBc_5_15.avi
    └── ..."""


class PlainUnpickler(pickle.Unpickler):
    """Unpickles plain data only: containers, strings, numbers. What a file names is refused, not imported.

    A pickle can run code only through a function or class that it looks up by name (the standard library's
    "Restricting Globals"). The captions of MSVD, which are published as a pickle, name none.
    """

    def find_class(self, module: str, name: str) -> NoReturn:
        """Raises DatasetError."""
        raise DatasetError(f"it names {module}.{name}, which is not plain data; nothing of it was executed")


def read_plain_pickle(path: Path) -> Any:
    """The data in a pickle of any protocol.

    Raises:
        DatasetError: The file cannot be read, is damaged, or holds anything but plain data.
    """
    try:
        with path.open("rb") as file:
            return PlainUnpickler(file).load()
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # A damaged pickle may raise anything.
        raise DatasetError(f"{path} is not a pickle that can be read: {error}") from None


def _read(folder: Path, split: SplitName) -> list[AnnotatedClip]:
    list_path, captions_path = folder / f"{split}_list.txt", folder / _CAPTIONS_FILE
    captions = read_plain_pickle(captions_path)
    if not isinstance(captions, dict):
        raise DatasetError(f"{captions_path} does not hold a dict of captions by clip")
    ids = read_id_list(list_path)
    if without := [clip for clip in ids if not captions.get(clip)]:
        raise DatasetError(
            f"{captions_path} has no caption for {len(without)} clips of {list_path.name}:"
            f" {first_few(without)}"
        )
    return [
        AnnotatedClip(clip, _texts(captions[clip], f"{captions_path}, clip {clip}"), (clip,)) for clip in ids
    ]


def _texts(captions: Any, where: str) -> tuple[str, ...]:
    if not isinstance(captions, list | tuple):
        raise DatasetError(f"{where}: not a list of captions")
    texts = []
    for number, words in enumerate(captions):
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise DatasetError(f"{where}, caption {number}: not a list of words")
        texts.append(checked_text(" ".join(words), f"{where}, caption {number}"))
    return tuple(texts)


LAYOUT: Final = Layout(
    title="MSVD",
    tree=_TREE,
    roots=(".", "MSVD"),
    annotation_folders=(".", "msvd_data", "Annotations"),
    video_folders=("MSVD_Videos", "YouTubeClips", "videos", "VideoData"),
    files={
        "train": ("train_list.txt", _CAPTIONS_FILE),
        "val": ("val_list.txt", _CAPTIONS_FILE),
        "test": ("test_list.txt", _CAPTIONS_FILE),
    },
    read=_read,
)
