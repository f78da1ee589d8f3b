"""A signal while model and index are being loaded."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.servers.server_process import REPOSITORY

SERVE = """
import sys, time
from pathlib import Path
from service import app
from service.server import run_server
from service.settings import Settings

def load_searcher(*values, **options):
    print("loading", flush=True)
    time.sleep(600)

app.load_searcher = load_searcher
sys.exit(run_server(Settings(index=Path(sys.argv[1]), start_worker=False, port=0)))
"""
"""A server whose index takes ten minutes to load."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_immediately_while_its_index_is_loaded(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None and server.stdout.readline() == "loading\n"
        signalled = time.monotonic()
        server.send_signal(number)
        _, log = server.communicate(timeout=60)
    assert server.returncode == 0, log
    assert "stopped before the index was loaded" in log
    assert time.monotonic() - signalled < 20


WORK = """
import sys, time
from pathlib import Path
from service import loading
from service.settings import Settings
from service.ingest.worker_process import run_worker

def open_index(*values, **options):
    print("loading", flush=True)
    time.sleep(600)

loading.open_index = open_index
sys.exit(run_worker(Settings(index=Path(sys.argv[1]))))
"""
"""A worker whose model takes ten minutes to load."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_immediately_while_its_model_is_loaded(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as worker:
        try:
            assert worker.stdout is not None and worker.stdout.readline() == "loading\n"
            worker.send_signal(number)
            _, log = worker.communicate(timeout=20)
        finally:
            worker.kill()
    assert worker.returncode == 0, log
    assert "Traceback" not in log
