"""The worker as a child of the server: started, started again when it dies, ended at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time

from service.settings import Settings

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
"""Before a worker that died is started again; doubled each time."""

HEALTHY_SECONDS = 60.0
"""After a worker that lived so long, the pauses start from the first again."""

logger = logging.getLogger("xclip_search.service")


def worker_command(settings: Settings) -> list[str]:
    """How to start a worker for the same index."""
    command = [sys.executable, "-m", "xclip_search", "worker", "--index", str(settings.index_directory)]
    if settings.model is not None:
        command += ["--model", settings.model]
    command += ["--device", settings.device]
    command += ["--upload-limit", str(settings.upload_limit_bytes)]
    command += ["--decode-timeout", str(settings.decode_timeout_seconds)]
    command += ["--grace", str(settings.worker_grace_seconds), "--parent", str(os.getpid())]
    return command


async def keep_worker_running(command: list[str], grace_seconds: float) -> None:
    """Run `command` until this task is cancelled; then ask it to end, and end it after `grace_seconds`."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        started = time.monotonic()
        try:
            # A session of its own: a Ctrl-C at the terminal reaches the server alone, which then ends it.
            process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        except OSError as error:  # No memory, no descriptors, no further process: all of them pass.
            logger.error("the worker cannot be started: %s; trying again in %.0f s", error.strerror, pause)
        else:
            status = await _wait_or_end(process, grace_seconds)
            if time.monotonic() - started > HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            logger.error("the worker ended with status %s; starting another in %.0f s", status, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _wait_or_end(process: asyncio.subprocess.Process, grace_seconds: float) -> int:
    """The exit status of `process`, which is ended where this task is cancelled."""
    try:
        return await process.wait()
    except asyncio.CancelledError:
        await _end(process, grace_seconds)
        raise


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
