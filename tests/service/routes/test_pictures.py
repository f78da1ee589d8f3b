"""Thumbnails out of real files, decoded in a child of the server."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.support.servers.service_fakes import FakeSearcher, add_video, make_catalog
from tests.support.video_files import HEIGHT, WIDTH, shown_number, write_numbered_video


def test_a_thumbnail_shows_the_frame_of_its_moment(tmp_path: Path) -> None:
    path = write_numbered_video(tmp_path / "a.mp4", 40, rate=10)
    text = tmp_path / "text.mp4"
    text.write_text("#EXTM3U\n/etc/passwd\n")
    with make_catalog(tmp_path / "index") as catalog:
        add_video(catalog, "a", path.read_bytes(), uri=str(path))
        add_video(catalog, "text", text.read_bytes(), uri=str(text))
        app = create_app(Settings(index=tmp_path / "index"), searcher=FakeSearcher(catalog))  # type: ignore[arg-type]
        with TestClient(app) as client:
            for time_seconds, number in [(0.0, 0), (1.0, 10), (1.05, 10), (3.9, 39), (100.0, 39)]:
                response = client.get(f"/videos/a/thumbnail?time_seconds={time_seconds}&width=500")
                image = Image.open(io.BytesIO(response.content))
                assert image.format == "JPEG" and image.size == (WIDTH, HEIGHT)  # Never enlarged.
                assert shown_number(np.asarray(image)) == number
            small = client.get("/videos/a/thumbnail?width=64")
            assert Image.open(io.BytesIO(small.content)).size == (64, 16)
            refused = client.get("/videos/text/thumbnail")
            assert refused.status_code == 404 and refused.json()["type"].endswith("media-not-found")
            assert client.get("/videos/a/thumbnail?time_seconds=2").status_code == 200
