"""The data sets by name."""

from __future__ import annotations

from pathlib import Path
from typing import Final, get_args

from training.datasets import activitynet, didemo, lsmdc, msrvtt, msvd
from training.datasets.annotation_files import AnnotatedClip
from training.datasets.captions import find_manifest, read_captions
from training.datasets.layout import Layout, assemble
from training.datasets.split import MissingPolicy, Split, SplitName, warn_of_other_count
from training.errors import DatasetError

LAYOUTS: Final[dict[str, Layout]] = {
    "msrvtt-9k": msrvtt.layout("MSRVTT_train.9k.csv"),
    "msrvtt-7k": msrvtt.layout("MSRVTT_train.7k.csv"),
    "msvd": msvd.LAYOUT,
    "lsmdc": lsmdc.LAYOUT,
    "didemo": didemo.LAYOUT,
    "activitynet": activitynet.LAYOUT,
}
"""The paper's benchmarks, as CLIP4Clip's data guide lays them out."""

NAMES: Final = (*LAYOUTS, "captions")
"""What `load_split` knows; `captions` is the user's own manifest."""


def load_split(
    dataset: str,
    directory: Path,
    split: SplitName,
    *,
    videos: Path | None = None,
    missing: MissingPolicy = "error",
) -> Split:
    """The clips of a split and their texts, as the official loaders pair them. Opens no video.

    Every text is one pair with its clip: in MSR-VTT training each of 20 sentences, in MSVD each caption; in
    DiDeMo and ActivityNet one paragraph a clip. `val` is the test in MSR-VTT and ActivityNet, where the
    official training has no other; in `captions` it is what the manifest says.

    A DatasetWarning says where a full-size copy has not the official number of clips and pairs.

    Args:
        dataset: One of NAMES.
        directory: Where the data set lies; docs/datasets.md shows each layout. For `captions` the manifest or
            the folder that holds it.
        videos: The folder of videos; by default the paths that the official scripts and the guide name.
        missing: `error` raises DatasetError for videos that have no file or an empty one and lists them;
            `warn` leaves them out with one DatasetWarning, and `Split.missing` names them.

    Raises:
        DatasetError: An unknown data set or split, annotations that are not as their layout says (with file
            and line), and missing videos.
    """
    _check_choices(dataset, split)
    if missing not in get_args(MissingPolicy):
        raise DatasetError(f"missing is {' or '.join(get_args(MissingPolicy))}, not {missing!r}")
    directory = Path(directory)
    videos = None if videos is None else Path(videos)
    if dataset == "captions":
        if videos is not None and not videos.is_dir():
            raise DatasetError(f"there is no folder of videos {videos}")
        annotated = read_captions(find_manifest(directory, split), split, videos)
        return assemble(dataset, split, annotated, None, missing)
    layout = LAYOUTS[dataset]
    root, folder = layout.find_annotations(directory, split)
    videos = layout.find_videos(root, videos)
    annotated = layout.read(folder, split)
    num_pairs = sum(len(entry.texts) for entry in annotated)
    warn_of_other_count(dataset, split, len(annotated), num_pairs)
    return assemble(dataset, split, annotated, videos, missing, layout.known_missing)


def load_annotations(dataset: str, directory: Path, split: SplitName) -> list[AnnotatedClip]:
    """What the annotations of a split say, whether its videos are there or not.

    Raises DatasetError as `load_split` does, save for videos.
    """
    _check_choices(dataset, split)
    if dataset == "captions":
        return read_captions(find_manifest(directory, split), split)
    layout = LAYOUTS[dataset]
    _, folder = layout.find_annotations(directory, split)
    return layout.read(folder, split)


def _check_choices(dataset: str, split: str) -> None:
    if dataset not in NAMES:
        raise DatasetError(f"there is no data set {dataset!r}, only {', '.join(NAMES)}")
    if split not in get_args(SplitName):
        raise DatasetError(f"there is no split {split!r}, only {', '.join(get_args(SplitName))}")
