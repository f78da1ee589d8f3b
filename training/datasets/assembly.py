"""Annotations and video files put together to a split; what is missing is told, never dropped in silence."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.datasets.annotation_files import AnnotatedClip, first_few
from training.datasets.split import Clip, DatasetWarning, MissingPolicy, Split, SplitName
from training.datasets.video_folder import VideoFolder, problem_with
from training.errors import DatasetError


def assemble(
    dataset: str,
    split: SplitName,
    annotated: Sequence[AnnotatedClip],
    folder: Path | None,
    missing: MissingPolicy,
    known_missing: frozenset[str] = frozenset(),
) -> Split:
    """A split of the clips whose videos are there.

    folder: where files are looked for by their names; None where each clip says its path.
    missing: what becomes of the others: DatasetError, or DatasetWarning and `Split.missing`.
    known_missing: ids that are left out without either, and counted in `Split.missing`.
    """
    videos = None if folder is None else VideoFolder(folder)
    paths: dict[str, Path] = {}
    problems: dict[str, str] = {}
    for entry in annotated:
        path = entry.path if videos is None else videos.find(entry.names)
        problem = "no file" if path is None else problem_with(path)
        if path is None or problem is not None:
            problems[entry.id] = problem or "no file"
        else:
            paths[entry.id] = path
    where = "" if folder is None else f" in {folder}"
    unexpected = {name: problem for name, problem in problems.items() if name not in known_missing}
    _tell_of_missing(f"{dataset} {split}", unexpected, len(annotated), where, missing)
    if videos is not None and videos.several:
        _warn_of_several(f"{dataset} {split}", videos)
    kept = [entry for entry in annotated if entry.id in paths]
    return Split(
        dataset=dataset,
        name=split,
        clips=tuple(
            Clip(entry.id, paths[entry.id], entry.start_seconds, entry.end_seconds) for entry in kept
        ),
        texts=tuple(text for entry in kept for text in entry.texts),
        clip_of_text=tuple(place for place, entry in enumerate(kept) for _ in entry.texts),
        missing=tuple(problems),
    )


def _tell_of_missing(
    split: str, problems: Mapping[str, str], num_clips: int, where: str, missing: MissingPolicy
) -> None:
    """problems: what is wrong, by id. where: appended to the sentence, such as ` in FOLDER`."""
    if not problems:
        return
    told = first_few(f"{name} ({problem})" for name, problem in problems.items())
    count = f"{split}: {len(problems)} of {num_clips} videos are missing or empty{where}: {told}"
    if len(problems) == num_clips:
        raise DatasetError(f"{count}. Is this the folder of the videos?")
    if missing == "error":
        raise DatasetError(
            f"{count}. Fewer clips make other numbers than the published ones;"
            ' to go on without these, choose missing = "warn"'
        )
    warnings.warn(f"{count}; left out", DatasetWarning, stacklevel=4)


def _warn_of_several(split: str, videos: VideoFolder) -> None:
    name, files = next(iter(videos.several.items()))
    warnings.warn(
        f"{split}: {len(videos.several)} videos have several files, {name} for one:"
        f" {first_few(map(str, files), 3)}; the first is read",
        DatasetWarning,
        stacklevel=4,
    )
