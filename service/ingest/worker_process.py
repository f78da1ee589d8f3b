"""The worker's process: what it does from its start to its end, and how a server keeps one running.

A server starts it, starts it again when it dies, and ends it at its own end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from indexer.errors import IndexerError, IndexSupersededError
from indexer.store.store import Store
from service.errors import is_full_memory
from service.ingest.media_store import MediaStore
from service.ingest.worker import SEGMENTS_AT_ONCE, Worker
from service.settings import Settings, WorkerSettings

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
"""Before a worker that died is started again; doubled each time."""

HEALTHY_SECONDS = 60.0
"""After a worker that lived so long, the pauses start from the first again."""

logger = logging.getLogger("xclip_search.service")
worker_logger = logging.getLogger("xclip_search.worker")


def worker_command(settings: Settings) -> list[str]:
    """How to start a worker for the same index."""
    command = [sys.executable, "-m", "xclip_search", "worker", "--index", str(settings.index_address)]
    if settings.model is not None:
        command += ["--model", settings.model]
    command += ["--device", settings.device, "--runtime", settings.runtime]
    command += ["--upload-limit", str(settings.upload_limit_bytes)]
    command += ["--decode-timeout", str(settings.decode_timeout_seconds)]
    command += ["--max-hours", repr(settings.max_video_seconds / 3600)]
    command += ["--grace", str(settings.worker_grace_seconds), "--parent", str(os.getpid())]
    return command


STARTED, ALIVE, LOADING = b"ready\n", b"alive\n", b"loading\n"
"""What a worker says on its standard output to the server that started it: once it takes jobs, while it does,
and when it loads another generation of the index."""

BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A worker that said nothing for so long takes no jobs: it hangs, or was stopped. Twice as long as it may
wait for another process that writes to the catalog."""

KILL_SECONDS = 120.0
"""After so long it is killed, and another one is started."""

_REASONS = {
    1: "it cannot load the model or the index, or open the index's folder",
    2: "its arguments or one of its settings are wrong",
    -signal.SIGKILL: "the system killed it, usually because memory ran out",
}
"""By exit status; of a signal its number, negative."""


class WorkerState:
    """Whether the worker that a server runs takes jobs."""

    def __init__(self) -> None:
        self._problem: str | None = "The worker that reads videos is being started."
        self._has_started = False
        self._heard_at = 0.0

    @property
    def problem(self) -> str | None:
        """Why it takes none, as a sentence for clients; None where it does, or died and is started again."""
        silent_seconds = self.silent_seconds
        if silent_seconds > SILENT_SECONDS:
            return f"The worker that reads videos has not answered for {silent_seconds:.0f} seconds."
        return self._problem

    @property
    def silent_seconds(self) -> float:
        """Since it said something; 0 while it loads."""
        return time.monotonic() - self._heard_at if self._has_started else 0.0

    def begin(self) -> None:
        """Another process, or another generation of the index, is being loaded."""
        self._has_started = False

    def note_alive(self) -> None:
        """It takes jobs."""
        self._has_started, self._problem, self._heard_at = True, None, time.monotonic()

    def note_ended(self, status: int) -> None:
        """It ended, with this exit status."""
        if not self._has_started:
            self.note_failure(_REASONS.get(status, f"it ended with status {status}"))

    def note_failure(self, reason: str) -> None:
        """It cannot be started."""
        self._problem = f"The worker that reads videos cannot start: {reason}. Its lines in the log say more."


async def keep_worker_running(command: list[str], grace_seconds: float, state: WorkerState) -> None:
    """Run `command` until this task is cancelled; then ask it to end, and end it after `grace_seconds`."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        started = time.monotonic()
        state.begin()
        try:
            process = await _start(command, grace_seconds)
        except OSError as error:  # No memory, no descriptors, no further process: all of them pass.
            logger.error("the worker cannot be started: %s; trying again in %.0f s", error.strerror, pause)
            state.note_failure("the system cannot start another process")
        else:
            status = await _wait_or_end(process, grace_seconds, state)
            if time.monotonic() - started > HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            state.note_ended(status)
            logger.error("the worker ended with status %s; starting another in %.0f s", status, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _start(command: list[str], grace_seconds: float) -> asyncio.subprocess.Process:
    """A process of `command`. One that is being started where this task is cancelled is ended like any other:
    asyncio would kill it."""
    # A session of its own: a Ctrl-C at the terminal reaches the server alone, which then ends it.
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(*command, start_new_session=True, stdout=asyncio.subprocess.PIPE)
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await _end(await starting, grace_seconds)
        raise


async def _wait_or_end(process: asyncio.subprocess.Process, grace_seconds: float, state: WorkerState) -> int:
    """The exit status of `process`, which is ended where this task is cancelled."""
    watching = [asyncio.create_task(watch(process, state)) for watch in (_listen, _kill_when_silent)]
    try:
        return await process.wait()
    except asyncio.CancelledError:
        await _end(process, grace_seconds)
        raise
    finally:
        for task in watching:
            task.cancel()  # A child of the worker's may keep its output open.


async def _listen(process: asyncio.subprocess.Process, state: WorkerState) -> None:
    assert process.stdout is not None
    said = b""
    while chunk := await process.stdout.read(4096):
        *lines, said = (said + chunk)[-4096:].splitlines(keepends=True)
        if said.endswith(b"\n"):
            lines, said = [*lines, said], b""
        for line in lines:
            if line in (STARTED, ALIVE):
                state.note_alive()
            elif line == LOADING:
                state.begin()


async def _kill_when_silent(process: asyncio.subprocess.Process, state: WorkerState) -> None:
    while state.silent_seconds <= KILL_SECONDS:
        await asyncio.sleep(BEAT_SECONDS)
    logger.error("the worker has not answered for %.0f s: it is killed", state.silent_seconds)
    with contextlib.suppress(ProcessLookupError):
        process.kill()


async def _end(process: asyncio.subprocess.Process, grace_seconds: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), grace_seconds)
    except TimeoutError:
        logger.warning("the worker did not end within %.0f s and was killed", grace_seconds)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# Inside the process


def fetching_where_on(
    settings: WorkerSettings, catalog: Store[Any], media_store: MediaStore, stop: threading.Event
) -> contextlib.AbstractContextManager[None]:
    """Fetch from the web in other threads for as long as the context lasts, where that is switched on."""
    if not settings.url_ingest:
        return contextlib.nullcontext()
    from service.ingest.web.fetching import fetching

    return fetching(settings, catalog, media_store, stop)


def _tell_server(settings: WorkerSettings, line: bytes) -> None:
    if settings.parent_pid is not None:
        with contextlib.suppress(OSError):  # The server is gone, which the worker notices soon.
            os.write(sys.stdout.fileno(), line)


class Heartbeat:
    """Called often, tells the server every BEAT_SECONDS that the worker is alive."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._told_at = time.monotonic()

    def __call__(self) -> None:
        """Tell it, if it is time."""
        if time.monotonic() - self._told_at >= BEAT_SECONDS:
            self._told_at = time.monotonic()
            _tell_server(self._settings, ALIVE)


def yield_to_searches(niceness: int) -> None:
    """Let searches go first where both share a machine: this process, and what decodes for it.

    Linux may schedule sessions as groups, each with a niceness of its own (man 7 sched, autogroup), and then
    that of a process counts only within its session. A worker that a server started has its own session.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # There are no such groups.
            Path("/proc/self/autogroup").write_text(f"{niceness}", encoding="ascii")


def run_worker(settings: WorkerSettings) -> int:
    """Work until a signal; returns the exit status: 0, or 1 where model or index cannot be loaded.

    When another generation of the index becomes the current one, it continues there, with its model.
    """
    from model.errors import ModelError
    from service.observability.logs import start_logging

    start_logging(settings.log_format, settings.log_level)
    yield_to_searches(settings.worker_niceness)
    signalled = threading.Event()
    stops = [threading.Event()]
    ready = threading.Event()

    def end(*_: object) -> None:
        signalled.set()
        stops[-1].set()
        if not ready.is_set():
            raise SystemExit(0)  # Nothing has begun that would have to be ended.

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        while _work_on_current(settings, stops[-1], ready) and not signalled.is_set():
            worker_logger.info("the index was reindexed: continuing with its new generation and model")
            ready.clear()
            _tell_server(settings, LOADING)
            stops.append(threading.Event())
            if signalled.is_set():
                break
    except (IndexerError, ModelError) as error:
        worker_logger.error("cannot work: %s", error)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_full_memory(error):
            raise
        worker_logger.error("memory is full: exiting with status 1, to be restarted", exc_info=error)
        return 1
    worker_logger.info("ended")
    return 0


def _work_on_current(settings: WorkerSettings, stop: threading.Event, ready: threading.Event) -> bool:
    """Work on the current generation; true where another one has become current meanwhile.

    ready: set when all is loaded.
    """
    from indexer.ingest.pipeline import DecodeOptions
    from indexer.media.probing import MediaLimits
    from service.loading import open_index

    with open_index(settings) as index:
        index.model.prepare("vision")  # Before the server expects signs of life.
        ready.set()
        store = MediaStore(settings.index_directory)
        store.prepare()
        pipeline = index.pipeline(
            num_workers=1,
            batch_size=SEGMENTS_AT_ONCE,
            decoding=DecodeOptions(
                timeout_seconds=settings.decode_timeout_seconds,
                limits=MediaLimits(max_duration_seconds=settings.max_video_seconds),
            ),
        )
        with pipeline.encoder() as encoder:
            worker_logger.info("ready for jobs")
            _tell_server(settings, STARTED)
            with (
                contextlib.suppress(IndexSupersededError),
                fetching_where_on(settings, index.catalog, store, stop),
            ):
                beat = Heartbeat(settings)
                Worker(settings, index.catalog, store, encoder.encode_file, beat).run(stop)
        return index.catalog.superseded_by is not None
