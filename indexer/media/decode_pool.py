"""Decoding in child processes that can be ended: the only place where untrusted files are opened.

Known hangs of decoders hold the interpreter lock, and their crashes take the process along, so neither
threads nor exceptions help. Each child is a fresh interpreter that decodes one file at a time inside limits
(docs/hostile-media.md), without our environment, in a folder that is gone. One that exceeds them is killed
and replaced, and the file it had is reported, while the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from indexer.errors import DecoderDiedError, DecodeTimeoutError, MediaError
from indexer.media.decode_messages import (
    NONSENSE_REASON,
    DecodedSegment,
    DecodedVideo,
    DecodeRequest,
    HashedFile,
    decoded_from_message,
    error_from_message,
    hashed_from_message,
    receive_message,
    send_message,
)
from indexer.media.preview import MAX_CLIP_BYTES, MP4_START
from indexer.media.probing import MediaLimits, check_duration
from model.preprocessing import Resizing

__all__ = ["DecodePool", "DecodeRequest", "DecodedSegment", "DecodedVideo", "HashedFile"]

_logger = logging.getLogger(__name__)

_PACKAGES: Final = str(Path(__file__).resolve().parents[2])
_CHILD_PROGRAM: Final = (
    "import sys; sys.path.insert(0, sys.argv[2]);"
    "from indexer.media.decode_child import serve; serve(int(sys.argv[1]))"
)
_ENVIRONMENT: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": ""}
"""The whole environment of a child. Numerical libraries would start a thread per processor, each with memory
of its own; decord needs a PATH to append to."""

START_SECONDS: Final = 120.0
"""Importing takes well under a second on an idle machine."""

_MAX_REQUESTS_PER_CHILD: Final = 1000
"""Then it is replaced: what the decoders leak goes with it."""

_MAX_PICTURE_BYTES: Final = 64 << 20
_JPEG_START: Final = b"\xff\xd8\xff"


class DecodePool:
    """A fixed number of children. Use as a context manager, or `close` it. Safe to use from several threads.

    Args:
        num_workers: children, and files decoded concurrently.
        timeout_seconds: the longest that one request may take.
        limits: what a file may be.
        memory_limit_bytes: what a child may use beyond the memory that its libraries take (on Linux).
        processor_seconds: what one request may use; as many as `timeout_seconds` where None.
        niceness: how far the children stand back behind this process for processors, 0 to 19.
    """

    def __init__(
        self,
        num_workers: int,
        timeout_seconds: float = 300.0,
        *,
        limits: MediaLimits | None = None,
        memory_limit_bytes: int = 3 << 30,
        processor_seconds: float | None = None,
        niceness: int = 0,
    ) -> None:
        if num_workers < 1 or timeout_seconds <= 0:
            raise ValueError("num_workers is at least 1 and timeout_seconds above 0")
        self.num_workers = num_workers
        self.timeout_seconds = timeout_seconds
        self.processor_seconds = processor_seconds
        self.limits = limits or MediaLimits()
        settings = {
            "memory_limit_bytes": memory_limit_bytes,
            "limits": asdict(self.limits),
            "niceness": niceness,
        }
        self._children = [_Child(settings) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self._children:
            child.start()  # They import while the caller loads its model.
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")

    def submit(self, request: DecodeRequest) -> Future[DecodedVideo]:
        """Decode a file. The future raises MediaError: why the file is refused, or how the decoder ended."""
        return self._threads.submit(self._decode, request)

    def submit_hash(self, path: str | Path) -> Future[HashedFile]:
        """Hash a file whose first bytes are those of a video, so that what is known need not be decoded.

        The future raises MediaError. Give the answer's stamp to the requests that follow: then what is
        decoded is what was hashed.
        """
        return self._threads.submit(self._hash, str(path))

    def submit_picture(self, path: str | Path, time_seconds: float, max_width: int) -> Future[bytes]:
        """A JPEG of the frame shown at `time_seconds`, at most `max_width` pixels wide. Raises MediaError."""
        return self._threads.submit(self._take_picture, str(path), time_seconds, max_width)

    def submit_still(self, path: str | Path, resizing: Resizing) -> Future[NDArray[np.uint8] | None]:
        """The picture in a file as the model's square, uint8 [R, R, 3]; None where the file is no picture,
        but perhaps a video. Raises MediaError."""
        return self._threads.submit(self._read_still, str(path), resizing)

    def submit_clip(self, path: str | Path, time_seconds: float) -> Future[bytes]:
        """A short silent MP4 from `time_seconds` on: `indexer.media.preview.make_clip`. Raises MediaError."""
        return self._threads.submit(self._make_clip, str(path), time_seconds)

    def close(self) -> None:
        """End all children immediately; futures that are not done raise DecoderDiedError or are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        # The children before the threads, which wait for their answers.
        for child in self._children:
            child.end_for_good()
        self._threads.shutdown(wait=True)
        for child in self._children:
            child.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _hash(self, path: str) -> HashedFile:
        header, _ = self._ask({"kind": "hash", "path": str(Path(path).absolute())}, 0)
        return hashed_from_message(header)

    def _decode(self, request: DecodeRequest) -> DecodedVideo:
        try:
            return self._decode_once(request)
        except (DecoderDiedError, DecodeTimeoutError):
            if not request.trusted or request.backend != "decord":
                raise
        # decord may have hung or crashed on a file that PyAV reads.
        return self._decode_once(replace(request, backend="pyav"))

    def _decode_once(self, request: DecodeRequest) -> DecodedVideo:
        size = request.resizing.image_size
        max_bytes = request.max_segments * request.sampling.num_frames * size * size * 3
        # A child has no folder of its own that a relative path could start from.
        wanted = replace(request, path=str(Path(request.path).absolute()))
        header, payload = self._ask({"kind": "decode", "request": wanted.to_dict()}, max_bytes)
        video = decoded_from_message(header, payload, request)
        # The child checked it already, but a compromised one may say anything.
        check_duration(video.info.duration_seconds, self.limits)
        return video

    def _take_picture(self, path: str, time_seconds: float, max_width: int) -> bytes:
        question = {
            "kind": "picture",
            "path": str(Path(path).absolute()),
            "time_seconds": time_seconds,
            "max_width": max_width,
        }
        _, payload = self._ask(question, _MAX_PICTURE_BYTES)
        if not payload.startswith(_JPEG_START):
            raise DecoderDiedError(NONSENSE_REASON)
        return bytes(payload)

    def _read_still(self, path: str, resizing: Resizing) -> NDArray[np.uint8] | None:
        question = {"kind": "still", "path": str(Path(path).absolute()), "resizing": asdict(resizing)}
        size = resizing.image_size
        _, payload = self._ask(question, size * size * 3)
        if not payload:
            return None
        if len(payload) != size * size * 3:
            raise DecoderDiedError(NONSENSE_REASON)
        return np.frombuffer(payload, np.uint8).reshape(size, size, 3)

    def _make_clip(self, path: str, time_seconds: float) -> bytes:
        question = {"kind": "clip", "path": str(Path(path).absolute()), "time_seconds": time_seconds}
        _, payload = self._ask(question, MAX_CLIP_BYTES)
        if payload[4:8] != MP4_START:
            raise DecoderDiedError(NONSENSE_REASON)
        return bytes(payload)

    def _ask(self, question: dict[str, Any], max_payload_bytes: int) -> tuple[dict[str, Any], bytearray]:
        child = self._idle.get()  # There are as many children as threads.
        timeout = self.timeout_seconds
        question["processor_seconds"] = timeout if self.processor_seconds is None else self.processor_seconds
        try:
            return child.ask(question, max_payload_bytes, timeout)
        finally:
            self._idle.put(child)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    """An empty folder, removed at the end. A process that was started in it can then neither find nor create
    files there, and none is left, however the process ends."""
    folder = tempfile.mkdtemp(prefix="xclip-decode-")
    try:
        yield folder
    finally:
        Path(folder).rmdir()


class _Child:
    """One child process and its replacements. Used by one thread at a time; only `end_for_good` by others."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_ready = False
        self.is_filtered = False
        self._ended = False
        self._num_requests = 0

    def start(self) -> None:
        """Start the process, without waiting until it is ready."""
        with self._lock:
            if self._ended:
                raise DecoderDiedError("the decoder was stopped")
            ours, theirs = socket.socketpair()
            try:
                with theirs, _scratch_folder() as scratch:
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-c", _CHILD_PROGRAM, str(theirs.fileno()), _PACKAGES],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,  # Decoders print a line for each damaged packet.
                        pass_fds=[theirs.fileno()],
                        cwd=scratch,
                        env=_ENVIRONMENT,
                    )
            except OSError:
                ours.close()
                raise
            self._connection = ours
            self._is_ready = False
            self._num_requests = 0

    def ask(
        self, question: dict[str, Any], max_payload_bytes: int, timeout_seconds: float
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a request and return the answer; the process is gone after any failure but a refusal.

        Raises:
            MediaError: the child refused the file.
            DecodeTimeoutError: it took too long.
            DecoderDiedError: it crashed, or sent an answer that cannot be one.
        """
        if self._num_requests >= _MAX_REQUESTS_PER_CHILD:
            self.forget()
        if self._process is None:
            try:
                self.start()
            except OSError as error:
                raise DecoderDiedError(f"the decoder could not be started ({error.strerror})") from error
        assert self._connection is not None
        connection = self._connection
        self._num_requests += 1
        answered = False
        try:
            self._wait_until_ready(connection)
            deadline = time.monotonic() + timeout_seconds
            send_message(connection, {**question, "timeout_seconds": timeout_seconds})
            header, payload = receive_message(connection, max_payload_bytes, deadline)
            if header.get("kind") not in (question["kind"], "error"):
                raise ValueError("kind")
            answered = True
        except TimeoutError:
            raise DecodeTimeoutError(f"decoding took longer than {timeout_seconds:g} seconds") from None
        except (EOFError, OSError, ValueError) as error:
            raise self._how_it_died(error) from None
        finally:
            # What it still sends would be taken for the answer to the next question.
            if not answered:
                self.forget()
        if header.get("is_last"):
            self.forget()
        if header.get("kind") == "error":
            if header.get("detail"):
                _logger.error("the decoder failed on a file: %.10000s", header["detail"])
            raise error_from_message(header)
        return header, payload

    def _wait_until_ready(self, connection: socket.socket) -> None:
        if self._is_ready:
            return
        send_message(connection, self._settings)
        try:
            ready, _ = receive_message(connection, 0, time.monotonic() + START_SECONDS)
        except TimeoutError:
            raise EOFError from None
        self._is_ready = True
        self.is_filtered = bool(ready.get("is_filtered"))
        if not self.is_filtered:
            _logger.info("this system does not filter the decoder's system calls; its other limits hold")

    def _how_it_died(self, error: Exception) -> MediaError:
        if self._ended:
            return DecoderDiedError("the decoder was stopped")
        if isinstance(error, ValueError):
            return DecoderDiedError(NONSENSE_REASON)
        assert self._process is not None
        try:
            status = self._process.wait(5)  # The connection closes a moment before the process has ended.
        except subprocess.TimeoutExpired:
            return DecoderDiedError("the decoder stopped answering")
        if not self._is_ready:
            return DecoderDiedError(f"the decoder did not start (status {status})")
        if status == -signal.SIGXCPU:
            return DecodeTimeoutError("decoding used more processor time than allowed")
        if status < 0:
            return DecoderDiedError(f"the decoder crashed (signal {-status})")
        return DecoderDiedError(f"the decoder ended ({status})")

    def forget(self) -> None:
        """Kill the process, if there is one, and close what belongs to it."""
        with self._lock:
            process, connection = self._process, self._connection
            self._process = self._connection = None
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            connection.close()

    def end_for_good(self) -> None:
        """Kill the process; it is not replaced. A thread that waits for its answer gets DecoderDiedError."""
        with self._lock:
            self._ended = True
            process, connection = self._process, self._connection
        if process is not None:
            process.kill()
            process.wait()
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # Wakes a thread that waits on it.
