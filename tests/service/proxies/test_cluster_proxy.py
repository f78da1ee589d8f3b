"""Caddy with the file of docker/cluster, in front of two servers that stand in for the apis."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.servers.proxies import find_program, free_port, wait_for_port

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(120)]

CADDYFILE = Path(__file__).resolve().parents[3] / "docker" / "cluster" / "Caddyfile"


class Api(ThreadingHTTPServer):
    """Answers as an api does whose database is there (`available`) or away."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.available = True
        self.num_requests = 0
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def end(self) -> None:
        """Take no more connections, as where the process is killed."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.num_requests += self.path != "/readyz"
        content = b'{"code":"none"}' if self.server.available else b'{"code":"index-unavailable"}'
        self.send_response(200 if self.server.available else 503)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def apis() -> Iterator[list[Api]]:
    started = [Api(), Api()]
    yield started
    for api in started:
        api.end()


@pytest.fixture
def client(apis: list[Api], tmp_path: Path) -> Iterator[httpx.Client]:
    port, health_port = free_port(), free_port()
    text = CADDYFILE.read_text(encoding="utf-8").replace("8081", str(health_port))
    (tmp_path / "Caddyfile").write_text(text.replace("8080", str(port)))
    environment = os.environ | {
        "UPSTREAMS": " ".join(f"127.0.0.1:{api.server_port}" for api in apis),
        "BODY_LIMIT": "1KiB",
        "HOME": str(tmp_path),
    }
    command = [
        find_program("caddy"),
        "run",
        "--config",
        str(tmp_path / "Caddyfile"),
        "--adapter",
        "caddyfile",
    ]
    with (tmp_path / "output.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_for_port(port, process, tmp_path / "output.log")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(20)


def test_requests_go_to_both_and_to_one_alone_at_once_when_the_other_is_killed(
    client: httpx.Client, apis: list[Api]
) -> None:
    for _ in range(40):
        assert client.get("/videos").status_code == 200
    assert all(api.num_requests for api in apis)
    apis[0].end()
    for _ in range(40):
        assert client.post("/search").status_code == 200  # Caddy 2.6 sends no body a second time.


def test_one_that_is_not_ready_gets_nothing(client: httpx.Client, apis: list[Api]) -> None:
    apis[0].available = False
    _wait_until(lambda: all(client.get("/videos").status_code == 200 for _ in range(20)))


def test_where_none_is_ready_one_says_why_at_once(client: httpx.Client, apis: list[Api]) -> None:
    for api in apis:
        api.available = False
    deadline = time.monotonic() + 6  # Three looks of the proxy: it knows by then that none is ready.
    while time.monotonic() < deadline:
        begin = time.monotonic()
        answer = client.post("/search", content=b"text")
        assert time.monotonic() - begin < 1
        assert (answer.status_code, answer.json()) == (503, {"code": "index-unavailable"})
        time.sleep(0.1)
    for api in apis:
        api.available = True
    _wait_until(lambda: client.get("/videos").status_code == 200)


def test_what_the_proxy_refuses_itself_is_a_problem_as_the_apis_give_it(client: httpx.Client) -> None:
    elsewhere = client.get("/videos", headers={"Host": "elsewhere.example"})
    too_large = client.post("/videos", content=b"0" * 2000)
    assert (elsewhere.status_code, too_large.status_code) in ((421, 413), (421, 502))  # Caddy 2.6 says 502.
    for answer in (elsewhere, too_large):
        assert answer.json()["status"] == answer.status_code
        assert answer.headers["Content-Type"] == "application/problem+json"


def _wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
