"""`xclip-search serve` as a process of its own, for tests that want the whole."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parents[3]

START_SECONDS = 240.0
"""Two processes import torch and load a model, which takes long where others use all processors."""


class ServerProcess:
    """A server on any free port, ready to search; with its worker, unless `options` say otherwise.

    log: takes all that both say. under: a command that runs the server's, such as a tracer.
    """

    def __init__(
        self, index: Path, *options: object, log: Path, under: Sequence[str] = (), **environment: str
    ) -> None:
        self.log = log
        self.index = index
        command = [*under, sys.executable, "-m", "xclip_search", "serve"]
        command += ["--index", str(index), "--port", "0", *map(str, options)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stderr=output,
                stdout=output,
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        try:
            self.client = httpx.Client(base_url=self._wait_for_address(), timeout=120)
            wait_until(lambda: self.client.get("/readyz").status_code == 200, START_SECONDS, self.process)
        except BaseException as error:
            self.process.kill()
            self.process.wait()
            error.add_note(log.read_text()[-3000:])
            raise

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

    def upload(self, path: Path, query: str = "?wait=true", **fields: str) -> httpx.Response:
        """POST /videos with the file."""
        with path.open("rb") as file:
            return self.client.post(f"/videos{query}", files={"file": (path.name, file)}, data=fields)

    def found_ids(self, query: str = "anything at all", **fields: Any) -> list[str]:
        """Ids of the results of a search, best first."""
        response = self.client.post("/search", json={"query": query, "limit": 100, **fields})
        assert response.status_code == 200, response.text
        return [result["id"] for result in response.json()["results"]]

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Send a signal and wait for the end."""
        self.client.close()
        self.process.send_signal(number)
        self.process.wait(60)


def wait_until(
    condition: Callable[[], bool], seconds: float, process: subprocess.Popen[bytes] | None = None
) -> None:
    """Look until `condition` holds, while `process` lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.05)
