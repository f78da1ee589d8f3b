"""Where a benchmark's files lie on disk, and what to say when they do not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from training.datasets.annotation_files import AnnotatedClip
from training.datasets.split import SplitName
from training.errors import DatasetError


@dataclass(frozen=True)
class Layout:
    """One benchmark on disk.

    title: the benchmark's own name.
    tree: the folder as it should look, for people.
    roots: where the data set may begin, relative to the folder that the user names.
    annotation_folders, video_folders: where those files may lie, relative to the root, best first.
    files: the annotation files that each split needs.
    read: the clips of a split, from the folder that holds those files. Raises DatasetError.
    known_missing: ids whose video nobody has; they are left out without complaint.
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
        places = [
            (directory / root, directory / root / where)
            for root in self.roots
            for where in self.annotation_folders
        ]
        for root, folder in places:
            if all((folder / name).is_file() for name in names):
                return root, folder
        best = max(
            (folder for _, folder in places), key=lambda at: sum((at / name).is_file() for name in names)
        )
        lacking = [name for name in names if not (best / name).is_file()]
        raise DatasetError(
            f"{self.title} {split} needs {' and '.join(names)}; {best} has no {' and no '.join(lacking)}"
            f" (looked in {_row(folder for _, folder in places)}); {self._expectation()}"
        )

    def find_videos(self, root: Path, videos: Path | None) -> Path:
        """The folder of videos: the one named, else the first known place that is there and not empty.

        Raises DatasetError, which tells where it looked.
        """
        if videos is not None:
            if not videos.is_dir():
                raise DatasetError(f"there is no folder of videos {videos}")
            return videos
        places = [root / where for where in self.video_folders]
        for place in places:
            if place.is_dir() and any(place.iterdir()):
                return place
        raise DatasetError(
            f"the videos of {self.title} were not found; looked in {_row(places)}; name their folder, or"
            f" {self._expectation()}"
        )

    def _expectation(self) -> str:
        return f"{self.title} is expected like this:\n{self.tree}"


def _row(places: Iterable[Path]) -> str:
    return ", ".join(dict.fromkeys(str(place) for place in places))
