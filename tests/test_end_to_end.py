"""The whole: a server as a user starts it, a worker, a real model, real videos, over real HTTP.

Tests that start further processes, each of which imports torch, are slow.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from video_files import write_numbered_video

START_SECONDS = 240.0
"""Two processes import torch and load a model, which takes long where others use all processors."""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from model import XClip, XClipConfig

    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model")
    XClip(XClipConfig.tiny()).eval().save(directory)
    return directory


class Server:
    """`xclip-search serve` as a process of its own."""

    def __init__(self, index: Path, *options: str, log: Path) -> None:
        self.log = log
        command = [
            sys.executable,
            "-m",
            "xclip_search",
            "serve",
            "--index",
            str(index),
            "--port",
            "0",
            *options,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, stderr=output, stdout=output, env=environment)
        self.client = httpx.Client(base_url=self._wait_for_address(), timeout=60)
        wait_until(lambda: self.client.get("/readyz").status_code == 200, START_SECONDS)

    def _wait_for_address(self) -> str:
        pattern = re.compile(r"running on (http://\S+)")
        wait_until(lambda: pattern.search(self.log.read_text()) is not None, START_SECONDS, self.process)
        match = pattern.search(self.log.read_text())
        assert match is not None
        return match[1]

    def worker_pids(self) -> list[int]:
        """Processes that the server started as workers."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
                if b"worker" in arguments and str(self.process.pid).encode() in arguments:
                    found.append(int(entry.name))
        return found

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.client.close()
        self.process.send_signal(number)
        self.process.wait(60)


def wait_until(
    condition: Callable[[], bool], seconds: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, "the server ended"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    server = Server(
        directory / "index", "--model", str(model_directory), "--device", "cpu", log=directory / "log"
    )
    try:
        yield server
    finally:
        server.stop()
    assert server.worker_pids() == []
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


def upload(server: Server, path: Path, query: str = "?wait=true", **fields: str) -> Any:
    with path.open("rb") as file:
        return server.client.post(f"/videos{query}", files={"file": (path.name, file)}, data=fields)


def found_ids(server: Server, query: str = "anything at all", **fields: Any) -> list[str]:
    response = server.client.post("/search", json={"query": query, "limit": 100, **fields})
    assert response.status_code == 200, response.text
    return [result["id"] for result in response.json()["results"]]


def test_a_video_is_uploaded_found_shown_played_and_deleted(server: Server, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "numbers.mp4", 50, rate=10)
    response = upload(server, path, title="שלום 🎬", metadata='{"año": [2024, "𠮷"]}')
    assert response.status_code == 201, response.text
    video_id = response.json()["video"]["id"]
    assert upload(server, path).json() == {"job": None, "video": {"id": video_id}}

    answer = server.client.post("/search", json={"query": "numbers", "explain": True}).json()
    result = next(result for result in answer["results"] if result["id"] == video_id)
    assert result["title"] == "שלום 🎬" and result["metadata"] == {"año": [2024, "𠮷"]}
    assert result["segment"] == {"start_seconds": 0.0, "end_seconds": pytest.approx(5.0, abs=0.01)}
    assert {moment["time_seconds"] for moment in result["moments"]} <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert all(score is not None for score in result["scores"].values())
    assert result["score"] == pytest.approx(sum(result["scores"].values()) / 4, abs=1e-4)
    assert len(result["explanation"]["frame_times"]) == 5

    picture = Image.open(io.BytesIO(server.client.get(result["thumbnail_url"]).content))
    assert picture.format == "JPEG" and picture.width == 128
    media = server.client.get(result["media_url"], headers={"Range": "bytes=4-7"})
    assert (media.status_code, media.content) == (206, b"ftyp") and media.headers[
        "content-type"
    ] == "video/mp4"
    assert server.client.get(result["media_url"]).content == path.read_bytes()
    assert [video["id"] for video in server.client.get("/videos").json()["videos"]].count(video_id) == 1

    assert server.client.delete(f"/videos/{video_id}").status_code == 204
    assert video_id not in found_ids(server)
    assert server.client.get(result["media_url"]).status_code == 404
    assert server.client.get(result["thumbnail_url"]).status_code == 404
    again = upload(server, path)
    assert again.status_code == 201 and again.json()["video"]["id"] != video_id


def test_a_long_video_is_found_with_the_segment_that_fits(server: Server, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "long.webm", 150, rate=1, codec="libvpx")
    video_id = upload(server, path).json()["video"]["id"]
    assert found_ids(server).count(video_id) == 1
    assert found_ids(server, group_by="segment").count(video_id) == 3


def test_a_file_that_is_no_video_fails_with_a_reason_and_the_server_lives_on(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "picture.mp4"
    Image.new("RGB", (8, 8)).save(path, "PNG")
    response = upload(server, path)
    assert response.status_code == 422 and response.json()["detail"] == "a PNG image, not a video"
    job = server.client.get(f"/jobs/{response.json()['job']['id']}").json()
    assert job["state"] == "failed" and job["reason"] == "a PNG image, not a video"
    accepted = upload(server, path, query="")
    assert accepted.status_code == 202
    wait_until(
        lambda: server.client.get(accepted.headers["location"]).json()["state"] == "failed", START_SECONDS
    )


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(server: Server, tmp_path: Path) -> None:
    (old,) = server.worker_pids()
    os.kill(old, signal.SIGKILL)
    path = write_numbered_video(tmp_path / "after.mp4", 30, rate=10, first_number=500)
    response = upload(server, path)
    if response.status_code == 202:  # A new worker takes a while on a busy machine.
        location = response.headers["location"]
        wait_until(lambda: server.client.get(location).json()["state"] == "done", START_SECONDS)
    (new,) = server.worker_pids()
    assert new != old


def test_real_clips_are_found_and_broken_ones_refused(server: Server, clips_directory: Path) -> None:
    notes = json.loads((clips_directory / "broken" / "notes.json").read_text())
    chosen = sorted((clips_directory / "public").glob("*"), key=lambda path: path.stat().st_size)[:3]
    for path in chosen:
        response = upload(server, path)
        assert response.status_code == 201, (path.name, response.text)
        video = server.client.get(f"/videos/{response.json()['video']['id']}").json()
        assert video["title"] == path.stem
        assert server.client.get(video["thumbnail_url"]).headers["content-type"] == "image/jpeg"
        assert video["id"] in found_ids(server)
    for name in ("truncated_no_moov.mp4", "playlist_local_renamed.mp4", "audio_only.mp4", "zero_bytes.mp4"):
        assert notes[name]["expected"].startswith("reject")
        response = upload(server, clips_directory / "broken" / name)
        assert response.status_code == 422 and response.json()["detail"], name


@pytest.mark.slow
def test_the_index_is_served_again_after_a_restart_and_a_killed_server_takes_its_worker_along(
    tmp_path: Path, model_directory: Path
) -> None:
    index = tmp_path / "index"
    first = Server(index, "--model", str(model_directory), "--device", "cpu", log=tmp_path / "first")
    wait_until(lambda: len(first.worker_pids()) == 1, START_SECONDS)
    path = write_numbered_video(tmp_path / "a.mp4", 20, rate=10)
    video_id = upload(first, path).json()["video"]["id"]
    first.stop(signal.SIGKILL)
    wait_until(lambda: first.worker_pids() == [], START_SECONDS)
    second = Server(index, "--no-worker", "--device", "cpu", log=tmp_path / "second")
    try:
        assert found_ids(second) == [video_id] and second.worker_pids() == []
        assert upload(second, write_numbered_video(tmp_path / "b.mp4", 9), query="").status_code == 202
    finally:
        second.stop(signal.SIGINT)


@pytest.mark.slow
def test_a_model_that_does_not_belong_to_the_index_ends_the_server_with_a_message(
    tmp_path: Path, model_directory: Path
) -> None:
    import torch

    from indexer.catalog import Catalog
    from model import XClip, XClipConfig

    Catalog.create(
        tmp_path / "index",
        fingerprint="0" * 64,
        model_spec=str(model_directory),
        embedding_dim=32,
        num_frames=8,
        sampling_json='{"num_frames": 8}',
    ).close()
    torch.manual_seed(1)
    XClip(XClipConfig.tiny()).save(tmp_path / "other")
    command = [
        sys.executable,
        "-m",
        "xclip_search",
        "serve",
        "--index",
        str(tmp_path / "index"),
        "--port",
        "0",
    ]
    done = subprocess.run(
        [*command, "--model", str(tmp_path / "other")], capture_output=True, text=True, timeout=START_SECONDS
    )
    assert done.returncode == 1
    assert "open the index with the model that made it" in done.stderr and "Traceback" not in done.stderr
