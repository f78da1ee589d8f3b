"""MSR-VTT: 10,000 clips with 20 sentences each. Training on 9k or 7k of them, testing on the 1k-A split.

Files and pairs as in xuguohai/X-CLIP, dataloaders/dataloader_msrvtt_retrieval.py with
`--expand_msrvtt_sentences`: in training every sentence of `MSRVTT_data.json` whose clip is in the list; in
the test one sentence a clip, that of `MSRVTT_JSFUSION_test.csv`. There is no validation split: the official
training chooses its best epoch on the test (dataloaders/data_dataloaders.py, `DATALOADER_DICT`), and so `val`
is the test here.
"""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Final

from training.datasets.annotation_files import (
    AnnotatedClip,
    checked_id,
    checked_text,
    first_few,
    read_json,
    read_text,
)
from training.datasets.layout import Layout
from training.datasets.split import SplitName
from training.errors import DatasetError

_TEST_FILE: Final = "MSRVTT_JSFUSION_test.csv"
_SENTENCES_FILE: Final = "MSRVTT_data.json"

_TREE: Final = """\
DIRECTORY
├── msrvtt_data/                 or these files in DIRECTORY itself
│   ├── MSRVTT_train.9k.csv      for msrvtt-9k
│   ├── MSRVTT_train.7k.csv      for msrvtt-7k
│   ├── MSRVTT_JSFUSION_test.csv
│   └── MSRVTT_data.json
└── MSRVTT_Videos/               or videos/all/ or data/MSRVTT/videos/all/
    ├── video0.mp4
    └── ..."""


def layout(train_file: str) -> Layout:
    """The layout with a list of training clips, `MSRVTT_train.9k.csv` or `MSRVTT_train.7k.csv`."""
    return Layout(
        title="MSR-VTT",
        tree=_TREE,
        roots=(".", "MSRVTT"),
        annotation_folders=("msrvtt_data", ".", "Annotations"),
        video_folders=(
            "data/MSRVTT/videos/all",
            "MSRVTT_Videos",
            "MSRVTT/videos/all",
            "videos/all",
            "videos",
            "VideoData",
        ),
        files={
            "train": (train_file, _SENTENCES_FILE),
            "val": (_TEST_FILE,),
            "test": (_TEST_FILE,),
        },
        read=partial(_read, train_file),
    )


def _read(train_file: str, folder: Path, split: SplitName) -> list[AnnotatedClip]:
    if split == "train":
        return _read_train(folder / train_file, folder / _SENTENCES_FILE)
    return _read_test(folder / _TEST_FILE)


def _read_train(list_path: Path, sentences_path: Path) -> list[AnnotatedClip]:
    # A clip that is listed twice is still one clip: the official loader asks only whether it is listed.
    texts: dict[str, list[str]] = {row["video_id"]: [] for _, row in _rows(list_path, ("video_id",))}
    data = read_json(sentences_path)
    sentences = data.get("sentences") if isinstance(data, dict) else None
    if not isinstance(sentences, list):
        raise DatasetError(f"{sentences_path} is not an object with a list `sentences`")
    for number, sentence in enumerate(sentences):
        where = f"{sentences_path}, sentences[{number}]"
        if not isinstance(sentence, dict) or not isinstance(sentence.get("video_id"), str):
            raise DatasetError(f"{where} is not an object with a `video_id`")
        if (of_clip := texts.get(sentence["video_id"])) is not None:
            of_clip.append(checked_text(sentence.get("caption"), where))
    if without := [clip for clip, of_clip in texts.items() if not of_clip]:
        raise DatasetError(
            f"{sentences_path} has no sentence for {len(without)} clips of {list_path.name}:"
            f" {first_few(without)}"
        )
    return [AnnotatedClip(clip, tuple(of_clip), (clip,)) for clip, of_clip in texts.items()]


def _read_test(path: Path) -> list[AnnotatedClip]:
    clips: dict[str, AnnotatedClip] = {}
    for line, row in _rows(path, ("video_id", "sentence")):
        where = f"{path}, line {line}"
        clip = row["video_id"]
        if clip in clips:
            raise DatasetError(f"{where}: {clip} is listed twice, but 1k-A has one sentence a clip")
        clips[clip] = AnnotatedClip(clip, (checked_text(row["sentence"], where),), (clip,))
    return list(clips.values())


def _rows(path: Path, columns: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV that has these columns, `video_id` among them, with their line numbers."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    rows = []
    try:
        names = reader.fieldnames or ()
        if lacking := [name for name in columns if name not in names]:
            raise DatasetError(f"{path}, line 1: no column {' and no column '.join(lacking)}")
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DatasetError(f"{where} has not as many cells as the first line")
            checked_id(row["video_id"], where)
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise DatasetError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    if not rows:
        raise DatasetError(f"{path} lists no clip")
    return rows
