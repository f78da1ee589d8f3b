"""What takes more than one request, written once for both clients: retries, waiting for a job, downloads.

A flow is a generator. It yields what is to be done next, a Send or a Pause, and gets the answer back, or the
error thrown in; what it returns is the result. A client drives it with its own way of waiting.
"""

from __future__ import annotations

import email.utils
import hashlib
import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from xclip_search import client_calls as calls
from xclip_search.client_answers import Job, Video
from xclip_search.client_calls import Call, OnProgress
from xclip_search.client_errors import (
    DamagedDownloadError,
    JobFailedError,
    WaitTimeoutError,
    connection_error,
    to_error,
)

T = TypeVar("T")

TRY_AGAIN_STATUSES: Final = (429, 503)
FIRST_PAUSE_SECONDS: Final = 0.5
FIRST_LOOK_SECONDS, SLOWEST_LOOK_SECONDS = 0.1, 2.0
"""Pauses between two looks at a job."""

_BROKEN: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.CloseError,
)
_BLOCK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Retrying:
    """How often a request is sent again, where that may help: the connection broke, or the server is busy.

    max_attempts: the first one counted in. max_pause_seconds: a server that asks for a longer one is not
    asked again.
    """

    max_attempts: int = 4
    max_pause_seconds: float = 30.0

    def backoff(self, num_attempts: int) -> float:
        """Seconds to wait after so many attempts: twice as long each time, and never all clients at once."""
        pause = FIRST_PAUSE_SECONDS * 2.0 ** (num_attempts - 1) * random.uniform(0.5, 1.0)
        return float(min(pause, self.max_pause_seconds))


@dataclass(frozen=True)
class Send:
    """Send this. The answer comes back, its body read or in the call's sink; or httpx.TransportError."""

    call: Call[Any]


@dataclass(frozen=True)
class Pause:
    """Wait for so long."""

    seconds: float


Step = Send | Pause
Flow = Generator[Step, Any, T]


def exchange(call: Call[T], retrying: Retrying) -> Flow[T]:
    """Send a call, again where that may help, and read the answer. Raises ClientError."""
    num_attempts = 0
    answer_was_lost = False
    while True:
        num_attempts += 1
        is_last = num_attempts >= retrying.max_attempts
        try:
            response: httpx.Response = yield Send(call)
        except httpx.TransportError as error:
            may_help = isinstance(error, (*_BROKEN, httpx.RemoteProtocolError))
            if is_last or not may_help:
                raise connection_error(error, _url_of(error, call), num_attempts) from error
            answer_was_lost |= not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            yield Pause(retrying.backoff(num_attempts))
            continue
        if response.status_code < 400:
            return call.read(response)
        if response.status_code == 404 and answer_was_lost and call.gone_is_done:
            return call.read(response)
        if response.status_code not in TRY_AGAIN_STATUSES or is_last:
            raise to_error(response)
        pause = _retry_after(response)
        if pause is None:
            pause = retrying.backoff(num_attempts)
        if pause > retrying.max_pause_seconds:
            raise to_error(response)
        yield Pause(pause)


def wait_for_job(job_id: str, timeout_seconds: float | None, retrying: Retrying) -> Flow[Job]:
    """The job when it is done. Raises JobFailedError, WaitTimeoutError, ClientError."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    pause = FIRST_LOOK_SECONDS
    while True:
        job = yield from exchange(calls.get_job(job_id), retrying)
        if job.state == "failed":
            raise JobFailedError(job)
        if job.state == "done":
            return job
        if deadline is not None and time.monotonic() >= deadline:
            raise WaitTimeoutError(job, timeout_seconds or 0.0)
        left = SLOWEST_LOOK_SECONDS if deadline is None else max(0.0, deadline - time.monotonic())
        yield Pause(min(pause, left))
        pause = min(1.5 * pause, SLOWEST_LOOK_SECONDS)


def download_media(
    video_id: str, path: Path, on_progress: OnProgress | None, retrying: Retrying
) -> Flow[Path]:
    """The video's file at `path`, whole and with the sha256 that the index knows, or nothing there.

    What has arrived lies beside it under a name made of that sha256, so that a later call goes on from there.
    Raises DamagedDownloadError, ClientError, OSError.
    """
    video = yield from exchange(calls.get_video(video_id), retrying)
    with _Arriving(path, video, on_progress) as arriving:
        if not arriving.is_whole:
            yield from exchange(calls.media(video_id, arriving), retrying)
        arriving.finish()
    return path


class _Arriving:
    """A file on its way: hashed as it comes, resumed where it stopped."""

    def __init__(self, target: Path, video: Video, on_progress: OnProgress | None) -> None:
        self._target = target
        self._video = video
        self._on_progress = on_progress
        self._unfinished = target.with_name(f".{target.name}.{video.content_sha256[:16]}.part")

    def __enter__(self) -> _Arriving:
        self._file = self._unfinished.open("a+b")
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self._num_bytes = 0
        while block := self._file.read(_BLOCK_BYTES):
            self._count(block)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def is_whole(self) -> bool:
        return self._num_bytes == self._video.size_bytes

    def headers(self) -> dict[str, str]:
        return {"Range": f"bytes={self._num_bytes}-"} if self._num_bytes else {}

    def begin(self, response: httpx.Response) -> None:
        if response.status_code == 206:
            unit, _, span = response.headers.get("content-range", "").partition(" ")
            if unit == "bytes" and span.startswith(f"{self._num_bytes}-"):
                return
            raise DamagedDownloadError("the server sent another part of the file than was asked for")
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self._num_bytes = 0

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._count(chunk)
        if self._num_bytes > self._video.size_bytes:
            self._refuse()

    def finish(self) -> None:
        self._file.close()
        if not self.is_whole or self._digest.hexdigest() != self._video.content_sha256:
            self._refuse()
        self._unfinished.replace(self._target)

    def _refuse(self) -> None:
        self._file.close()
        self._unfinished.unlink(missing_ok=True)
        raise DamagedDownloadError("what arrived is not the file that the index knows; nothing was kept")

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._num_bytes += len(chunk)
        if self._on_progress is not None:
            self._on_progress(self._num_bytes, self._video.size_bytes)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait; None where it does not say so in a way that we know."""
    value = response.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())


def _url_of(error: httpx.TransportError, call: Call[Any]) -> httpx.URL:
    try:
        return error.request.url
    except RuntimeError:
        return httpx.URL(call.path)
