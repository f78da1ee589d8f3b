"""What all variants share, made once: the corpus, the towers that they start from, the decoded frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from training.ablation.corpus import HELD_OUT_SETS, write_training_corpus
from training.ablation.folders import Folders
from training.ablation.settings import AblationSettings
from training.ablation.starting_point import make_starting_point

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_MARK = "complete"


def prepare_folder(
    folders: Folders, settings: AblationSettings, num_processes: int, on_progress: OnProgress
) -> None:
    """Make what is not there yet. num_processes: processes, and threads of training, at once.

    Raises DatasetError where a clip that was written cannot be read again.
    """
    mark = folders.frames / _MARK
    if mark.is_file() and folders.start.is_dir():
        return
    write_training_corpus(
        folders.corpus,
        settings.corpus,
        num_processes,
        lambda num_done, num_clips: on_progress("writing clips", num_done, num_clips),
    )
    make_starting_point(folders.start, settings.start, num_processes, on_progress)
    _decode_all(folders, settings, num_processes, on_progress)
    folders.frames.mkdir(exist_ok=True)
    mark.touch()


def _decode_all(
    folders: Folders, settings: AblationSettings, num_processes: int, on_progress: OnProgress
) -> None:
    from training.clip_checks import readable
    from training.datasets.registry import load_split
    from training.training_data import frame_readers

    config = replace(
        settings.config,
        data=replace(settings.config.data, directory=folders.corpus, cache=folders.frames),
    )
    _, reader = frame_readers(config, settings.start.image_size)
    splits = [
        load_split("captions", folders.corpus, "train"),
        *(load_split("captions", folders.corpus / manifest, "test") for manifest in HELD_OUT_SETS.values()),
    ]
    num_clips, num_done = sum(len(split.clips) for split in splits), 0

    def on_read(count: int) -> None:
        nonlocal num_done
        num_done += count
        on_progress("decoding clips", num_done, num_clips)

    for split in splits:
        readable(split, reader, num_processes=num_processes, on_progress=on_read)
