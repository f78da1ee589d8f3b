"""The whole: a server as a user starts it, a worker, a real model, real videos, over real HTTP.

Tests that start further processes, each of which imports torch, are slow.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.servers.server_process import START_SECONDS, ServerProcess, wait_until
from tests.support.video_files import write_numbered_video

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    server = ServerProcess(
        directory / "index", "--model", str(model_directory), "--device", "cpu", log=directory / "log"
    )
    try:
        yield server
    finally:
        server.stop()
    wait_until(lambda: server.worker_pids() == [], 30)
    assert "Traceback" not in server.log.read_text(), server.log.read_text()


def test_a_video_is_uploaded_found_shown_played_and_deleted(server: ServerProcess, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "numbers.mp4", 50, rate=10)
    response = server.upload(path, title="שלום 🎬", metadata='{"año": [2024, "𠮷"]}')
    assert response.status_code == 201, response.text
    video_id = response.json()["video"]["id"]
    assert server.upload(path).json() == {"job": None, "video": {"id": video_id}}

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
    assert video_id not in server.found_ids()
    assert server.client.get(result["media_url"]).status_code == 404
    assert server.client.get(result["thumbnail_url"]).status_code == 404
    again = server.upload(path)
    assert again.status_code == 201 and again.json()["video"]["id"] != video_id


def test_a_long_video_is_found_with_the_segment_that_fits(server: ServerProcess, tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "long.webm", 150, rate=1, codec="libvpx")
    video_id = server.upload(path).json()["video"]["id"]
    assert server.found_ids().count(video_id) == 1
    assert server.found_ids(group_by="segment").count(video_id) == 3


def test_a_file_that_is_no_video_fails_with_a_reason_and_the_server_lives_on(
    server: ServerProcess, tmp_path: Path
) -> None:
    path = tmp_path / "picture.mp4"
    Image.new("RGB", (8, 8)).save(path, "PNG")
    response = server.upload(path)
    assert response.status_code == 422 and response.json()["detail"] == "a PNG image, not a video"
    job = server.client.get(f"/jobs/{response.json()['job']['id']}").json()
    assert job["state"] == "failed" and job["reason"] == "a PNG image, not a video"
    accepted = server.upload(path, query="")
    assert accepted.status_code == 202
    wait_until(
        lambda: server.client.get(accepted.headers["location"]).json()["state"] == "failed", START_SECONDS
    )


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(server: ServerProcess, tmp_path: Path) -> None:
    (old,) = server.worker_pids()
    os.kill(old, signal.SIGKILL)
    path = write_numbered_video(tmp_path / "after.mp4", 30, rate=10, first_number=500)
    response = server.upload(path)
    if response.status_code == 202:  # A new worker takes a while on a busy machine.
        location = response.headers["location"]
        wait_until(lambda: server.client.get(location).json()["state"] == "done", START_SECONDS)
    (new,) = server.worker_pids()
    assert new != old


def test_real_clips_are_found_and_broken_ones_refused(server: ServerProcess, clips_directory: Path) -> None:
    notes = json.loads((clips_directory / "broken" / "notes.json").read_text())
    chosen = sorted((clips_directory / "public").glob("*"), key=lambda path: path.stat().st_size)[:3]
    for path in chosen:
        response = server.upload(path)
        assert response.status_code == 201, (path.name, response.text)
        video = server.client.get(f"/videos/{response.json()['video']['id']}").json()
        assert video["title"] == path.stem
        assert server.client.get(video["thumbnail_url"]).headers["content-type"] == "image/jpeg"
        assert video["id"] in server.found_ids()
    for name in ("truncated_no_moov.mp4", "playlist_local_renamed.mp4", "audio_only.mp4", "zero_bytes.mp4"):
        assert notes[name]["expected"].startswith("reject")
        response = server.upload(clips_directory / "broken" / name)
        assert response.status_code == 422 and response.json()["detail"], name


@pytest.mark.slow
def test_the_index_is_served_again_after_a_restart_and_a_killed_server_takes_its_worker_along(
    tmp_path: Path, model_directory: Path
) -> None:
    index = tmp_path / "index"
    first = ServerProcess(index, "--model", str(model_directory), "--device", "cpu", log=tmp_path / "first")
    wait_until(lambda: len(first.worker_pids()) == 1, START_SECONDS)
    path = write_numbered_video(tmp_path / "a.mp4", 20, rate=10)
    video_id = first.upload(path).json()["video"]["id"]
    first.stop(signal.SIGKILL)
    wait_until(lambda: first.worker_pids() == [], START_SECONDS)
    second = ServerProcess(index, "--no-worker", "--device", "cpu", log=tmp_path / "second")
    try:
        assert second.found_ids() == [video_id] and second.worker_pids() == []
        assert second.upload(write_numbered_video(tmp_path / "b.mp4", 9), query="").status_code == 202
    finally:
        second.stop(signal.SIGINT)


@pytest.mark.slow
def test_a_model_that_does_not_belong_to_the_index_ends_the_server_with_a_message(
    tmp_path: Path, model_directory: Path
) -> None:
    import torch

    from indexer.store.records import IndexFacts
    from indexer.store.sqlite.catalog import Catalog
    from model import XClip, XClipConfig

    Catalog.create(
        tmp_path / "index",
        IndexFacts(
            fingerprint="0" * 64,
            model_spec=str(model_directory),
            embedding_dim=32,
            num_frames=8,
            sampling_json='{"num_frames": 8}',
        ),
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
