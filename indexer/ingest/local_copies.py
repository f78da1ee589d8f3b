"""Local copies of files at addresses: fetched just before they are read, and removed after.

Decoders run in confined children without a network, so a file is here before it is opened. The copies lie in
a folder of this process below that of the system (TMPDIR); what a killed process left there, the next one
removes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from indexer.errors import FetchError
from indexer.ingest.remote_files import (
    UNKNOWN_VERSION,
    RemoteFile,
    describe,
    explained,
    open_file_system,
    retried,
)

if sys.platform != "win32":
    import fcntl

_PREFIX: Final = "xclip-fetched-"
_LOCK: Final = "in-use"

Result = TypeVar("Result")

logger = logging.getLogger("xclip_search.ingest")


class LocalCopies:
    """A folder of fetched files, filled by threads. A context manager that removes it.

    Example:
        >>> import fsspec
        >>> fsspec.filesystem("memory").pipe("/films/a.mp4", b"a film")
        >>> with LocalCopies(num_threads=4) as copies:
        ...     copies.submit(RemoteFile("memory://films/a.mp4")).result().read_bytes()
        b'a film'
    """

    def __init__(self, num_threads: int) -> None:
        self._cancelled = threading.Event()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        self._folder: Path | None = None
        self._lock: int | None = None
        self._making = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, file: RemoteFile) -> Future[Path]:
        """Fetch a file. The future raises FetchError; OSError where the disk here is full."""
        return self._threads.submit(self.fetch, file)

    def submit_use(self, file: RemoteFile, use: Callable[[Path], Result]) -> Future[Result]:
        """Fetch a file, call `use` with its copy in a thread, and remove the copy."""

        def fetch_and_use() -> Result:
            path = self.fetch(file)
            try:
                return use(path)
            finally:
                self.remove(path)

        return self._threads.submit(fetch_and_use)

    def fetch(self, file: RemoteFile) -> Path:
        """The path of a new copy. Raises FetchError; CancelledError after `close`."""
        descriptor, name = tempfile.mkstemp(suffix=Path(file.name).suffix, dir=self._own_folder())
        os.close(descriptor)
        path = Path(name)
        try:
            fetch_to(file, path, self._cancelled)
        except BaseException:
            self.remove(path)
            raise
        return path

    def remove(self, path: Path) -> None:
        """Delete a copy."""
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop fetching, after the current part of each file at the latest, and delete all copies."""
        self._cancelled.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._making:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)
            self._folder = self._lock = None

    def _own_folder(self) -> Path:
        with self._making:
            if self._cancelled.is_set():
                raise CancelledError
            if self._folder is None:
                _remove_left_over(Path(tempfile.gettempdir()))
                self._folder, self._lock = _new_folder()
            return self._folder


def fetch_to(file: RemoteFile, path: Path, cancelled: threading.Event | None = None) -> None:
    """Fetch a file to `path`, which is overwritten: whole, and the version that was listed.

    A connection that breaks is tried again, from the beginning. Raises FetchError; OSError where the disk
    here is full; CancelledError where `cancelled` is set.
    """
    stopped = cancelled or threading.Event()
    retried(lambda: _fetch_once(file, path, stopped), stopped)


def _fetch_once(file: RemoteFile, path: Path, cancelled: threading.Event) -> None:
    length_said = _get(file, path, cancelled)
    num_bytes = path.stat().st_size
    if file.version != UNKNOWN_VERSION and describe(file.uri).version != file.version:
        raise FetchError("it was changed while it was fetched; the next run reads it")
    if file.size_bytes is not None and num_bytes != file.size_bytes:
        raise FetchError(f"only {num_bytes} of its {file.size_bytes} bytes came", may_pass=True)
    if file.size_bytes is None and length_said is None:
        # The end of the connection is the end of such a file, or it broke: what comes twice is whole.
        _get(file, path, cancelled)
        if path.stat().st_size != num_bytes:
            raise FetchError("its server does not tell its length, and it ended at two places", may_pass=True)


def _get(file: RemoteFile, path: Path, cancelled: threading.Event) -> int | None:
    """Fetch what is there now; the length that the server said."""
    file_system, remote_path = open_file_system(file.uri)
    callback = _callback(cancelled)
    try:
        file_system.get_file(remote_path, str(path), callback=callback)
    except CancelledError:
        raise
    except Exception as error:
        raise explained(error, file.uri) from None
    size: int | None = callback.size
    return size


def _callback(cancelled: threading.Event) -> Any:
    from fsspec.callbacks import Callback

    class StopWhenCancelled(Callback):  # type: ignore[misc]
        """Told of each part of a file that came."""

        def relative_update(self, inc: int = 1) -> None:
            if cancelled.is_set():
                raise CancelledError

    return StopWhenCancelled()


def _new_folder() -> tuple[Path, int]:
    """A folder, and the lock that says that it is in use."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            return folder, lock
        os.close(lock)  # Another process took it for one that was left, before it was locked.


def _remove_left_over(folder: Path) -> None:
    """Delete the folders of processes that are gone: nobody holds their locks."""
    if sys.platform == "win32":
        return
    for left_over in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # In use, another user's, or being removed by another process.
            descriptor = os.open(left_over / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left_over, ignore_errors=True)
            finally:
                os.close(descriptor)
