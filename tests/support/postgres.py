"""A PostgreSQL of the tests' own: in a temporary folder, on a Unix socket, without a port or a password."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

USER = "xclip"
DATABASE = "videos"
OPTIONS = (
    "-c listen_addresses='' -c shared_buffers=64MB -c max_connections=150"
    # A process that is killed loses nothing that it wrote: the operating system has it. Only a machine that
    # fails would, which no test can do.
    " -c fsync=off"
)


def find_programs() -> Path | None:
    """The folder of `postgres` and `initdb` of the newest version, 15 or later; None where there is none."""
    candidates = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if (found := shutil.which("initdb")) is not None:
        candidates.append(Path(found).resolve().parent)
    versions = {}
    for folder in candidates:
        said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True)
        if (number := re.search(r"(\d+)", said.stdout)) is not None:
            versions[int(number.group())] = folder
    return versions[max(versions)] if versions and max(versions) >= 15 else None


class PostgresServer:
    """A running server; `address` of an index of any name.

    standby_of: one whose hot standby it is. options: more than OPTIONS, of the command line.
    """

    def __init__(self, programs: Path, standby_of: PostgresServer | None = None, options: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="xclip-pg-", dir="/tmp"))  # Short: a socket's path is.
        self.programs = programs
        self._options = f"-k {self.folder} {OPTIONS} {options}"
        # It refuses to run as root.
        self._as_user = ["runuser", "-u", self._other_user(), "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(self.folder, self._other_user())
        self.data = self.folder / "data"
        if standby_of is not None:
            source = ("-h", standby_of.folder, "-U", USER)
            self._run("pg_basebackup", *source, "-D", self.data, "-R", "-X", "stream", "-c", "fast")
            self.start()
            return
        self._run("initdb", "-D", self.data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()
        self._run("createdb", "-h", self.folder, "-U", USER, DATABASE)

    @staticmethod
    def _other_user() -> str:
        import pwd

        with contextlib.suppress(KeyError):
            return pwd.getpwnam("postgres").pw_name
        return "nobody"

    def _run(self, program: str, *arguments: object) -> None:
        subprocess.run(
            [*self._as_user, self.programs / program, *map(str, arguments)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            timeout=100,
        )

    def start(self) -> None:
        log = self.folder / "log"
        self._run("pg_ctl", "-D", self.data, "-o", self._options, "-l", log, "-w", "-t", "90", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    def kill(self) -> None:
        """As if the machine took it away: the postmaster gets SIGKILL, and its children notice."""
        process_id = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(process_id, signal.SIGKILL)

    @property
    def is_running(self) -> bool:
        """Whether its postmaster lives."""
        with contextlib.suppress(OSError, ValueError):
            process_id = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            return b"postgres" in Path(f"/proc/{process_id}/cmdline").read_bytes()
        return False

    def promote(self) -> None:
        """Make a standby the primary."""
        self._run("pg_ctl", "-D", self.data, "-w", "promote")

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """What a statement of the superuser gives, outside of any transaction."""
        import psycopg

        conninfo = f"postgresql://{USER}@/{DATABASE}?host={self.folder}"
        with contextlib.closing(psycopg.connect(conninfo, autocommit=True)) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def pause(self) -> None:
        """Stop all its processes where they are: what connects or waits for an answer hears nothing."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        postmaster = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(postmaster, number)  # First, so that it starts no more.
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for process_id in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, number)

    def address(
        self, name: str | None = None, folder: Path | None = None, others: Sequence[PostgresServer] = ()
    ) -> str:
        """Of an index; a name that no other has where none is given.

        folder: of uploads and what is derived. others: servers that may be the primary instead.
        """
        schema, folder = name or f"t{uuid.uuid4().hex[:12]}", folder or self.folder
        folders = f"media={folder}/media&cache={folder}/cache"
        hosts = ",".join(str(server.folder) for server in (self, *others))
        wanted = "&target_session_attrs=read-write" if others else ""
        return f"postgresql://{USER}@/{DATABASE}?host={hosts}{wanted}&schema={schema}&{folders}"

    def close(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def running_server(
    programs: Path, *, standby_of: PostgresServer | None = None, options: str = ""
) -> Iterator[PostgresServer]:
    server = PostgresServer(programs, standby_of, options)
    try:
        yield server
    finally:
        server.close()


AWAY: dict[str, tuple[Callable[[PostgresServer], None], Callable[[PostgresServer], None]]] = {
    "refusing": (PostgresServer.stop, PostgresServer.start),
    "hanging": (PostgresServer.pause, PostgresServer.resume),
}
"""Ways of a server to be away, each with the way back."""
