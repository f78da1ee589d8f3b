"""`xclip-search index --watch` as a user meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from indexer.store.sqlite.catalog import Catalog
from tests.support.video_files import write_coloured_video

pytestmark = pytest.mark.timeout(600)
PATIENCE_SECONDS = 60


def test_what_is_put_into_a_folder_is_indexed_and_a_signal_ends_it(
    tmp_path: Path, model_directory: Path
) -> None:
    folder, index, said = tmp_path / "videos", tmp_path / "index", tmp_path / "said"
    write_coloured_video(tmp_path / "b.mp4", (1, 200, 3))
    folder.mkdir()
    write_coloured_video(folder / "a.mp4", (200, 1, 3))
    # A shell that starts programs in the background lets them ignore the signal.
    start = "import signal, xclip_search; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", f"{start}xclip_search.main()", "index", folder, "--index", index]
    with said.open("w") as output:
        process = subprocess.Popen(
            [*command, "--model", model_directory, "--watch", "--settle-seconds", "0.5", "--workers", "1"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

        def wait_for(text: str) -> None:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while text not in said.read_text():
                assert process.poll() is None and time.monotonic() < deadline, said.read_text()
                time.sleep(0.05)

        try:
            wait_for("added: " + str(folder / "a.mp4"))
            whole = (tmp_path / "b.mp4").read_bytes()
            (folder / "b.mp4").write_bytes(whole[: len(whole) // 2])
            (folder / "b.mp4").write_bytes(whole)
            (folder / "a.mp4").rename(folder / "c.mp4")
            wait_for("moved: " + str(folder / "c.mp4"))
            wait_for("added: " + str(folder / "b.mp4"))
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 130
        finally:
            process.kill()
            process.wait()
    assert "interrupted; what is indexed is kept" in said.read_text()
    with Catalog.open(index) as catalog:
        assert {video.title: video.partial for video in catalog.list_videos()} == {"b": False, "c": False}
