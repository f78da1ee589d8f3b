"""An index on a read-only file system: searched, and changes are refused with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.routes.test_errors import check_problem
from tests.support.servers.service_fakes import Service, add_video, running


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path) as service:
        add_video(service.catalog, "known")
        service.catalog.connections.is_read_only = True
        yield service


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("DELETE", "/videos/known", {}),
        ("PATCH", "/videos/known", {"json": {"title": "x"}}),
        ("POST", "/videos", {"files": {"file": ("a.mp4", b"x")}}),
        ("POST", "/videos", {"json": {"uri": "file:///x.mp4"}}),
    ],
)
def test_changes_are_refused(method: str, path: str, options: Any, service: Service) -> None:
    problem = check_problem(service.client.request(method, path, **options), 403)
    assert problem["type"].endswith(":read-only-index") and "can be searched" in problem["detail"]


def test_searches_are_answered(service: Service) -> None:
    assert service.client.post("/search", json={"query": "a"}).json()["results"][0]["id"] == "known"
    assert service.client.get("/videos").status_code == service.client.get("/readyz").status_code == 200
    assert service.client.get("/stats").status_code == service.client.get("/metrics").status_code == 200
