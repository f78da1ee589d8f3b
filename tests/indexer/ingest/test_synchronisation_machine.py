"""After a run the index says what there is, whatever people do to their files: a state machine."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from indexer.ingest.video_files import local_path
from tests.support.catalog_builders import create_catalog
from tests.support.library_stand_in import BROKEN, StandInLibrary, touch, write_file

PLACES = st.sampled_from(["a.mp4", "b.mp4", "x/a.mp4", "x/b", "y/c.mkv"])
CONTENTS = st.sampled_from([b"1", b"2", b"3", b"longer", BROKEN])
OTHERS = st.sampled_from(["notes.txt", "x/.hidden.mp4", "y/picture.jpg"])


class LibraryMachine(RuleBasedStateMachine):
    """Files are written, moved, copied and deleted between runs. `truth`: what each file holds."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp())
        self._root = self._folder / "library"
        self._patch = pytest.MonkeyPatch()
        self._catalog = create_catalog(self._folder / "index")
        self._library = StandInLibrary(self._catalog, self._patch)
        self._times = itertools.count(1_000_000)
        self._ids: dict[str, str] = {}
        self._kept_out: set[str] = set()
        self._is_in_line = False
        write_file(self._root / "always.mp4", "always there")

    def teardown(self) -> None:
        self._catalog.close()
        self._patch.undo()
        shutil.rmtree(self._folder)

    def _changed(self, *paths: Path) -> None:
        """Each change is seen in the file's time, as those of people are."""
        self._is_in_line = False
        for path in paths:
            touch(path, next(self._times))

    @rule(place=PLACES, content=CONTENTS)
    def write(self, place: str, content: bytes) -> None:
        self._changed(write_file(self._root / place, content))

    @rule(place=OTHERS)
    def write_something_else(self, place: str) -> None:
        self._changed(write_file(self._root / place, "no video", head=b""))

    @rule(old=PLACES, new=PLACES)
    def move(self, old: str, new: str) -> None:
        if (self._root / old).exists():
            (self._root / new).parent.mkdir(exist_ok=True)
            (self._root / old).replace(self._root / new)
            self._is_in_line = False

    @rule(old=PLACES, new=PLACES)
    def copy(self, old: str, new: str) -> None:
        if (self._root / old).exists() and old != new:
            (self._root / new).parent.mkdir(exist_ok=True)
            shutil.copyfile(self._root / old, self._root / new)
            self._changed(self._root / new)

    @rule(place=PLACES)
    def delete(self, place: str) -> None:
        (self._root / place).unlink(missing_ok=True)
        self._is_in_line = False

    @rule(number=st.integers(0, 3), keep_out=st.booleans())
    def delete_a_video(self, number: int, keep_out: bool) -> None:
        videos = self._catalog.list_videos()
        if number < len(videos):
            video = videos[number]
            self._catalog.delete_video(video.id, keep_out=keep_out)
            self._ids.pop(video.content_sha256, None)
            if keep_out:
                self._kept_out.add(video.content_sha256)
            self._is_in_line = False

    @rule(prune=st.booleans(), rehash=st.booleans())
    def synchronise(self, prune: bool, rehash: bool) -> None:
        planned = self._library.sync(self._root, prune=prune, rehash=rehash, dry_run=True)
        before = {video.content_sha256: video for video in self._catalog.list_videos()}
        done = self._library.sync(self._root, prune=prune, rehash=rehash)
        after = {video.content_sha256: video for video in self._catalog.list_videos()}
        assert done.num_files == sum(1 for path in self._root.rglob("*") if path.is_file())
        # What only reading shows, a dry run cannot say.
        for name in ("moved", "duplicate", "updated", "unchanged", "missing", "pruned", "replaced"):
            if not any(BROKEN in path.read_bytes() for path in self._files()):
                assert getattr(planned, f"num_{name}") == getattr(done, f"num_{name}"), name
        assert len(after) == len(before) + done.num_added - done.num_replaced - done.num_pruned
        # A video is the same one for as long as its content is there.
        for content, video in after.items():
            assert self._ids.setdefault(content, video.id) == video.id
        self._ids = {content: self._ids[content] for content in after}
        assert done.num_pruned == (done.num_missing if prune else 0)
        self._is_in_line = True

    def _files(self) -> list[Path]:
        return [
            path
            for path in self._root.rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.suffix not in (".txt", ".jpg")
        ]

    @invariant()
    def the_index_says_what_there_is(self) -> None:
        if not self._is_in_line:
            return
        living: dict[str, set[Path]] = {}
        for path in self._files():
            if BROKEN not in path.read_bytes():
                living.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), set()).add(path)
        videos = {video.content_sha256: video for video in self._catalog.list_videos()}
        assert living.keys() - self._kept_out <= videos.keys()
        assert not self._kept_out & videos.keys()
        for content, video in videos.items():
            path = local_path(video.uri)
            assert path is not None
            if content in living:
                assert path in living[content] and video.missing_since is None
            else:  # Gone, or in the way of something that cannot be read.
                assert video.missing_since is not None or BROKEN in path.read_bytes()

    @rule()
    def a_second_run_reads_nothing(self) -> None:
        if self._is_in_line:
            report = self._library.sync(self._root)
            assert not (self._library.read or self._library.encoded)
            assert not (report.num_added or report.num_moved or report.num_updated or report.num_replaced)


FAST = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_after_a_run_the_index_says_what_there_is():
    run_state_machine_as_test(LibraryMachine, settings=FAST)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_many_more_runs_too():
    run_state_machine_as_test(
        LibraryMachine, settings=settings(FAST, max_examples=400, stateful_step_count=60)
    )
