"""What a filter may cost in a server: its limit, its place in the queue, and its end with its client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from service.http.middleware import CLIENT_GONE
from tests.service.routes.test_errors import check_problem
from tests.service.test_admission import full_queue
from tests.support.catalog_builders import COSTLY_FILTER, LONG_METADATA
from tests.support.servers.service_fakes import Service, add_video, running

SOON_SECONDS = 5.0
LISTED = f"/videos?filter={quote(json.dumps(COSTLY_FILTER))}"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path, filter_limit_seconds=0.2) as service:
        for number in range(60):
            add_video(service.catalog, f"v{number}", metadata=LONG_METADATA)
        service.catalog.filter_limit_seconds = service.settings.filter_limit_seconds
        yield service


def test_a_filter_that_takes_too_long_is_refused_and_the_answer_says_what_to_change(service: Service) -> None:
    problem = check_problem(service.client.get(LISTED), 422)
    assert problem["type"].endswith(":filter-too-costly")
    assert "fewer conditions" in problem["detail"] and "XCLIP_FILTER_LIMIT_SECONDS" in problem["detail"]
    assert service.client.get("/videos").status_code == 200


def test_a_list_with_a_filter_waits_its_turn_and_one_without_does_not(tmp_path: Path) -> None:
    with full_queue(tmp_path) as service:
        refused = service.client.get("/videos", params={"filter": '{"title": "x"}'})
        assert check_problem(refused, 503)["type"].endswith(":overloaded")
        assert service.client.get("/videos").status_code == 200


def test_the_work_of_a_client_that_has_gone_ends(service: Service) -> None:
    service.catalog.filter_limit_seconds = 60.0
    limiter = service.app.state.service.search_limiter
    sent: list[Any] = []

    async def main() -> float:
        messages = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.sleep(0.2)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        path, _, query = LISTED.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"testserver")],
            "client": ("127.0.0.1", 1),
            "server": ("testserver", 80),
        }
        started = time.monotonic()
        await service.app(scope, receive, send)
        while limiter.num_inside:
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    assert service.client.portal is not None
    assert service.client.portal.call(main) < SOON_SECONDS
    assert sent[0]["status"] == CLIENT_GONE
