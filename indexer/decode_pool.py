"""Decoding in child processes that can be ended: the only place where files from strangers are opened.

Known hangs of decoders hold the interpreter lock, and their crashes take the process along, so neither
threads nor exceptions help. Each child is a fresh interpreter that decodes one file at a time inside memory
limits; one that is late is killed and replaced, and the file it had is reported, while the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from indexer.decode_messages import (
    DecodedSegment,
    DecodedVideo,
    DecodeRequest,
    KnownContent,
    decoded_from_message,
    error_from_message,
    receive_message,
    send_message,
)
from indexer.errors import DecoderDiedError, DecodeTimeoutError
from indexer.media import MediaLimits

__all__ = ["DecodePool", "DecodeRequest", "DecodedSegment", "DecodedVideo", "KnownContent"]

_logger = logging.getLogger(__name__)

_PACKAGES: Final = str(Path(__file__).resolve().parents[1])
_CHILD_PROGRAM: Final = (
    "import os, sys; sys.path.insert(0, sys.argv[2]);"
    # Numerical libraries would start a thread per processor, each with memory of its own.
    "os.putenv('OMP_NUM_THREADS', '1'); os.putenv('OPENBLAS_NUM_THREADS', '1');"
    "from indexer.decode_child import serve; serve(int(sys.argv[1]))"
)
_START_SECONDS: Final = 120.0
"""Importing takes well under a second; a machine may be busy."""

_MAX_REQUESTS_PER_CHILD: Final = 1000
"""Then it is replaced: what the decoders leak goes with it."""

_MAX_PICTURE_BYTES: Final = 64 << 20


class DecodePool:
    """A fixed number of children. Use as a context manager, or `close` it. Safe to use from several threads.

    num_workers: children, and files decoded at once.
    timeout_seconds: the longest that one request may take, hashing the file included.
    memory_limit_bytes: that a child may use beyond what its libraries take (on Linux).
    """

    def __init__(
        self,
        num_workers: int,
        timeout_seconds: float = 300.0,
        *,
        limits: MediaLimits | None = None,
        memory_limit_bytes: int = 3 << 30,
    ) -> None:
        if num_workers < 1 or timeout_seconds <= 0:
            raise ValueError("num_workers is at least 1 and timeout_seconds above 0")
        self.num_workers = num_workers
        self.timeout_seconds = timeout_seconds
        settings = {
            "memory_limit_bytes": memory_limit_bytes,
            "limits": asdict(limits or MediaLimits()),
        }
        self._children = [_Child(settings) for _ in range(num_workers)]
        self._idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        for child in self._children:
            child.start()  # They import while the caller loads its model.
            self._idle.put(child)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")

    def submit(self, request: DecodeRequest) -> Future[DecodedVideo]:
        """Decode a file. The future raises MediaError: what the file is not, or how the decoder ended."""
        return self._threads.submit(self._decode_all, request)

    def submit_new(
        self, request: DecodeRequest, is_known: Callable[[str], bool]
    ) -> Future[DecodedVideo | KnownContent]:
        """Decode a file unless its content is known.

        is_known: called with the content's sha256 (64 hex digits), in a thread of the pool, before anything
        is decoded.
        """
        return self._threads.submit(self._decode, request, is_known)

    def submit_picture(self, path: str | Path, time_seconds: float, max_width: int) -> Future[bytes]:
        """A JPEG of the frame shown at `time_seconds`, at most `max_width` pixels wide. Raises MediaError."""
        return self._threads.submit(self._take_picture, str(path), time_seconds, max_width)

    def close(self) -> None:
        """End all children at once; futures that are not done raise DecoderDiedError or are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
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

    def _decode_all(self, request: DecodeRequest) -> DecodedVideo:
        video = self._decode(request, lambda content_sha256: False)
        assert isinstance(video, DecodedVideo)
        return video

    def _decode(self, request: DecodeRequest, is_known: Callable[[str], bool]) -> DecodedVideo | KnownContent:
        try:
            return self._decode_once(request, is_known)
        except (DecoderDiedError, DecodeTimeoutError):
            if not request.trusted or request.backend == "pyav":
                raise
        # decord may have hung or crashed on a file that PyAV reads.
        return self._decode_once(replace(request, backend="pyav"), is_known)

    def _decode_once(
        self, request: DecodeRequest, is_known: Callable[[str], bool]
    ) -> DecodedVideo | KnownContent:
        size = request.image_size
        max_bytes = request.max_segments * request.sampling.num_frames * size * size * 3
        known: list[str] = []

        def on_hash(header: dict[str, Any]) -> dict[str, Any]:
            content_sha256 = str(header.get("content_sha256"))
            if is_known(content_sha256):
                known.append(content_sha256)
                return {"kind": "stop"}
            return {"kind": "go"}

        question = {"kind": "decode", "request": request.to_dict()}
        header, payload = self._ask(question, max_bytes, on_hash)
        if header.get("kind") == "known" and known:
            return KnownContent(known[0])
        return decoded_from_message(header, payload, request)

    def _take_picture(self, path: str, time_seconds: float, max_width: int) -> bytes:
        question = {
            "kind": "picture",
            "path": path,
            "time_seconds": time_seconds,
            "max_width": max_width,
        }
        _, payload = self._ask(question, _MAX_PICTURE_BYTES, lambda header: {"kind": "stop"})
        return bytes(payload)

    def _ask(
        self,
        question: dict[str, Any],
        max_payload_bytes: int,
        on_hash: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> tuple[dict[str, Any], bytearray]:
        child = self._idle.get()  # There are as many children as threads.
        try:
            return child.ask(question, max_payload_bytes, self.timeout_seconds, on_hash)
        finally:
            self._idle.put(child)


class _Child:
    """One child process and its replacements. Used by one thread at a time; only `end_for_good` by others."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._is_ready = False
        self._ended = False
        self._num_requests = 0

    def start(self) -> None:
        """Start the process; it gets ready by itself."""
        with self._lock:
            if self._ended:
                raise DecoderDiedError("the decoder was stopped")
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _CHILD_PROGRAM, str(theirs.fileno()), _PACKAGES],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # Decoders tell of each damaged packet.
                    pass_fds=[theirs.fileno()],
                )
            self._connection = ours
            self._is_ready = False
            self._num_requests = 0

    def ask(
        self,
        question: dict[str, Any],
        max_payload_bytes: int,
        timeout_seconds: float,
        on_hash: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> tuple[dict[str, Any], bytearray]:
        """Send a question and give the answer; the process is gone after any failure but a refusal.

        Raises MediaError: the child's refusal, DecodeTimeoutError, DecoderDiedError.
        """
        if self._num_requests >= _MAX_REQUESTS_PER_CHILD:
            self.forget()
        if self._process is None:
            self.start()
        assert self._connection is not None
        connection = self._connection
        self._num_requests += 1
        answered = False
        try:
            self._wait_until_ready(connection)
            deadline = time.monotonic() + timeout_seconds
            send_message(connection, {**question, "timeout_seconds": timeout_seconds})
            header, payload = receive_message(connection, max_payload_bytes, deadline)
            if header.get("kind") == "hash":
                send_message(connection, on_hash(header))
                header, payload = receive_message(connection, max_payload_bytes, deadline)
            answered = True
        except TimeoutError:
            raise DecodeTimeoutError(f"decoding took longer than {timeout_seconds:g} seconds") from None
        except (EOFError, OSError, ValueError) as error:
            raise DecoderDiedError(self._how_it_died(error)) from None
        finally:
            if not answered:
                self.forget()
        if header.get("kind") == "error":
            if header.get("detail"):
                _logger.error("the decoder failed on a file: %s", header["detail"])
            raise error_from_message(header)
        return header, payload

    def _wait_until_ready(self, connection: socket.socket) -> None:
        if self._is_ready:
            return
        send_message(connection, self._settings)
        try:
            receive_message(connection, 0, time.monotonic() + _START_SECONDS)
        except TimeoutError:
            raise EOFError from None
        self._is_ready = True

    def _how_it_died(self, error: Exception) -> str:
        if self._ended:
            return "the decoder was stopped"
        if isinstance(error, ValueError):
            return "the decoder gave an answer that makes no sense"
        assert self._process is not None
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the decoder stopped answering"
        if not self._is_ready:
            return f"the decoder did not start (status {status})"
        return f"the decoder crashed (signal {-status})" if status < 0 else f"the decoder ended ({status})"

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
