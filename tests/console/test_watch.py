"""`xclip-search index --watch` as a user meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.store.sqlite.catalog import Catalog
from tests.support.video_files import write_coloured_video

pytestmark = pytest.mark.timeout(600)
PATIENCE_SECONDS = 60


class Watching:
    """A running `index --watch`, in a process of its own."""

    def __init__(self, folder: Path, index: Path, model: Path, said: Path) -> None:
        self._said = said
        # A shell that starts programs in the background lets them ignore the signal.
        start = "import signal, xclip_search; signal.signal(signal.SIGINT, signal.default_int_handler); "
        command = [sys.executable, "-c", f"{start}xclip_search.main()", "index", folder, "--index", index]
        with said.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--model", model, "--watch", "--settle-seconds", "0.5", "--workers", "1"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self._said.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self._said.read_text()
            time.sleep(0.05)

    def end(self, number: int) -> int:
        """The exit status after this signal."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture
def watching(tmp_path: Path, model_directory: Path) -> Iterator[Watching]:
    """Of `videos`, where `a.mp4` is."""
    (tmp_path / "videos").mkdir()
    write_coloured_video(tmp_path / "videos" / "a.mp4", (200, 1, 3))
    running = Watching(tmp_path / "videos", tmp_path / "index", model_directory, tmp_path / "said")
    try:
        running.wait_for("added: " + str(tmp_path / "videos" / "a.mp4"))
        yield running
    finally:
        running.process.kill()
        running.process.wait()


def test_what_is_put_into_a_folder_is_indexed_and_a_signal_ends_it(
    tmp_path: Path, watching: Watching
) -> None:
    folder = tmp_path / "videos"
    write_coloured_video(tmp_path / "b.mp4", (1, 200, 3))
    whole = (tmp_path / "b.mp4").read_bytes()
    (folder / "b.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "b.mp4").write_bytes(whole)
    (folder / "a.mp4").rename(folder / "c.mp4")
    watching.wait_for("moved: " + str(folder / "c.mp4"))
    watching.wait_for("added: " + str(folder / "b.mp4"))
    assert watching.end(signal.SIGINT) == 130
    assert "interrupted; what is indexed is kept" in (tmp_path / "said").read_text()
    with Catalog.open(tmp_path / "index") as catalog:
        assert {video.title: video.partial for video in catalog.list_videos()} == {"b": False, "c": False}


def test_a_service_manager_ends_it_with_status_0(tmp_path: Path, watching: Watching) -> None:
    time.sleep(1)  # It waits for changes then: the library that reports them sees the signal first.
    assert watching.end(signal.SIGTERM) == 0
    assert "interrupted" not in (tmp_path / "said").read_text()
