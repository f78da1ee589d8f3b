"""Where a benchmark's files lie on disk, and how annotations and video files are joined to a split.

What is missing is reported, never dropped silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.datasets.annotation_files import AnnotatedClip, first_few
from training.datasets.split import Clip, DatasetWarning, MissingPolicy, Split, SplitName
from training.datasets.video_folder import VideoFolder, problem_with
from training.errors import DatasetError


@dataclass(frozen=True)
class Layout:
    """One benchmark on disk.

    Attributes:
        title: The benchmark's own name.
        tree: The folder as it should look, for messages.
        roots: Where the data set may begin, relative to the folder that the user names.
        annotation_folders, video_folders: Where those files may lie, relative to the root, best first.
        files: The annotation files that each split needs.
        read: The clips of a split, from the folder that holds those files. Raises DatasetError.
        known_missing: Ids whose video is known to be unavailable; they are left out without a warning.
    """

    title: str
    tree: str
    roots: tuple[str, ...]
    annotation_folders: tuple[str, ...]
    video_folders: tuple[str, ...]
    files: Mapping[SplitName, tuple[str, ...]]
    read: Callable[[Path, SplitName], list[AnnotatedClip]]
    known_missing: frozenset[str] = frozenset()

    def find_annotations(self, directory: Path, split: SplitName) -> tuple[Path, Path]:
        """The root and the folder that holds the annotation files of a split.

        Raises DatasetError, which shows the tree and names what is not there.
        """
        if not directory.is_dir():
            raise DatasetError(f"there is no folder {directory}; {self._expectation()}")
        names = self.files[split]
        paths = [
            (directory / root, directory / root / where)
            for root in self.roots
            for where in self.annotation_folders
        ]
        for root, folder in paths:
            if all((folder / name).is_file() for name in names):
                return root, folder
        best = max(
            (folder for _, folder in paths), key=lambda at: sum((at / name).is_file() for name in names)
        )
        lacking = [name for name in names if not (best / name).is_file()]
        raise DatasetError(
            f"{self.title} {split} needs {' and '.join(names)}; {best} has no {' and no '.join(lacking)}"
            f" (looked in {_row(folder for _, folder in paths)}); {self._expectation()}"
        )

    def find_videos(self, root: Path, videos: Path | None) -> Path:
        """The folder of videos: the one named, else the first known path that exists and is not empty.

        Raises DatasetError, which names the paths that were tried.
        """
        if videos is not None:
            if not videos.is_dir():
                raise DatasetError(f"there is no folder of videos {videos}")
            return videos
        paths = [root / where for where in self.video_folders]
        for path in paths:
            if path.is_dir() and any(path.iterdir()):
                return path
        raise DatasetError(
            f"the videos of {self.title} were not found; looked in {_row(paths)}; name their folder, or"
            f" {self._expectation()}"
        )

    def _expectation(self) -> str:
        return f"{self.title} is expected like this:\n{self.tree}"


def _row(paths: Iterable[Path]) -> str:
    return ", ".join(dict.fromkeys(str(path) for path in paths))


def assemble(
    dataset: str,
    split: SplitName,
    annotated: Sequence[AnnotatedClip],
    folder: Path | None,
    missing: MissingPolicy,
    known_missing: frozenset[str] = frozenset(),
) -> Split:
    """A split of the clips whose videos exist.

    Args:
        folder: Where files are searched by their names; None where each clip says its path.
        missing: What becomes of the others: DatasetError, or DatasetWarning and `Split.missing`.
        known_missing: Ids that are left out without either, and counted in `Split.missing`.
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
    _report_missing(f"{dataset} {split}", unexpected, len(annotated), where, missing)
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
        clip_of_text=tuple(position for position, entry in enumerate(kept) for _ in entry.texts),
        missing=tuple(problems),
    )


def _report_missing(
    split: str, problems: Mapping[str, str], num_clips: int, where: str, missing: MissingPolicy
) -> None:
    """problems: what is wrong, by id. where: appended to the sentence, such as ` in FOLDER`."""
    if not problems:
        return
    named = first_few(f"{name} ({problem})" for name, problem in problems.items())
    count = f"{split}: {len(problems)} of {num_clips} videos are missing or empty{where}: {named}"
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
