"""An environment for each alternative, and a process in it that answers questions by number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.machine import REPOSITORY
from benchmarks.report import PAUSE_SECONDS

WORKERS = Path(__file__).parent / "workers"
READY = "ready"


class UnavailableError(Exception):
    """Why an alternative cannot be measured here."""


@dataclass(frozen=True)
class Environment:
    """What is installed for one alternative; nothing: it runs in our own environment."""

    name: str
    packages: tuple[str, ...] = ()

    def python(self, folder: Path) -> str:
        """The interpreter; the environment is made below `folder` unless it is there.

        Raises:
            UnavailableError: It cannot be installed.
        """
        if not self.packages:
            return sys.executable
        home = folder / self.name
        python = home / "bin" / "python"
        if (home / READY).exists():
            return str(python)
        uv = [sys.executable, "-m", "uv"]
        for command in (
            [*uv, "venv", "--clear", "--python", sys.executable, str(home)],
            [*uv, "pip", "install", "--python", str(python), *self.packages],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise UnavailableError(f"{self.name} cannot be installed: {reason}")
        (home / READY).touch()
        return str(python)


class Worker:
    """A process that was given files, said what it made of them, and answers the n-th query when asked.

    ready: its first answer: seconds to build, versions, and what else it has to say.
    """

    def __init__(self, python: str, script: str, *arguments: str | Path) -> None:
        """Raises UnavailableError where it ends before it is ready."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        if python != sys.executable:
            del environment["PYTHONPATH"]  # nothing of ours, nor of our environment
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            [python, str(WORKERS / f"{script}.py"), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )
        self.ready = self._read()

    def ask(self, number: int) -> dict[str, Any]:
        """What it answers to the n-th query: `seconds` that it took, and the answer."""
        time.sleep(PAUSE_SECONDS)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return self._read()

    def memory_mib(self) -> float:
        """Of the process and all below it, shared pages divided among those that share them (Linux, PSS)."""
        parents = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            parents[int(status.parent.name)] = int(fields[1])
        family = {self._process.pid}
        while more := {one for one, parent in parents.items() if parent in family} - family:
            family |= more
        # Servers that were started detached are named by the worker.
        family |= {one for one, parent in parents.items() if parent in self.ready.get("servers", ())}
        family |= set(self.ready.get("servers", ()))
        return sum(_proportional_kib(process) for process in family) / 1024

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._said.seek(0)
            raise UnavailableError(
                (self._said.read().strip().splitlines() or ["it ended without a word"])[-1]
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # it ends at the end of its input
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._said.close()


def _proportional_kib(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
