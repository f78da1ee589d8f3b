"""Reads every clip of a split once before training, so that all unreadable clips are listed together.

With a frame cache this is also what fills it. Clips are read in child processes by the same reader that
training uses: a clip that crashes its decoder or hangs costs that clip alone. The indexer's decode pool
is no choice here: it knows neither the official frame rule nor intervals, its children may not write a cache,
and it falls back to PyAV on files that would take a training worker down.
"""

from __future__ import annotations

import multiprocessing
import queue
import signal
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from indexer.media.decode_pool import START_SECONDS
from training.data.frames import FrameReader, unreadable
from training.datasets.split import Clip, MissingPolicy, Split
from training.errors import DatasetError

_MAX_NAMED: Final = 50
"""Clips named in a message; of the others it gives the number."""


def readable(
    split: Split,
    reader: FrameReader,
    *,
    missing: MissingPolicy = "error",
    num_processes: int = 1,
    on_progress: Callable[[int], None] = lambda num_clips: None,
) -> Split:
    """The split without the clips that cannot be read; the same split where all can.

    Args:
        split: Its files are read; the same files give the same result.
        reader: What reads a clip, into its cache where it has one.
        missing: `error` raises; `warn` warns with the same list and leaves those clips and their texts out,
            which the result says in `missing`.
        num_processes: Clips read concurrently.
        on_progress: Called with 1 for each clip that was read or failed, in this thread.

    Raises:
        DatasetError: Some clips cannot be read (all are listed, each with its reason), or none can.
    """
    failures = {}
    for clip, reason in read_all(split.clips, reader, num_processes):
        if reason is not None:
            failures[clip.id] = reason
        on_progress(1)
    if not failures:
        return split
    reasons = [failures[clip.id] for clip in split.clips if clip.id in failures]
    lines = [f"{len(reasons)} of {len(split.clips)} clips of {split} cannot be read:"]
    lines += [f"  {reason}" for reason in reasons[:_MAX_NAMED]]
    if len(reasons) > _MAX_NAMED:
        lines.append(f"  and {len(reasons) - _MAX_NAMED} more")
    if missing == "error":
        raise DatasetError("\n".join(lines))
    warnings.warn("\n".join([*lines, "They are left out."]), UserWarning, stacklevel=2)
    return leave_out(split, failures)


def leave_out(split: Split, clip_ids: Collection[str]) -> Split:
    """The split without these clips and their texts; their ids are added to `missing`.

    Raises:
        DatasetError: No clip remains.
    """
    kept = [index for index, clip in enumerate(split.clips) if clip.id not in clip_ids]
    gone = tuple(clip.id for clip in split.clips if clip.id in clip_ids)
    if not kept:
        raise DatasetError(f"no clip of {split} remains: all {len(gone)} were left out")
    position = {index: number for number, index in enumerate(kept)}
    texts = [
        (text, position[index])
        for text, index in zip(split.texts, split.clip_of_text, strict=True)
        if index in position
    ]
    return replace(
        split,
        clips=tuple(split.clips[index] for index in kept),
        texts=tuple(text for text, _ in texts),
        clip_of_text=tuple(index for _, index in texts),
        missing=split.missing + gone,
    )


def read_all(
    clips: Sequence[Clip], reader: FrameReader, num_processes: int, timeout_seconds: float = 300.0
) -> Iterator[tuple[Clip, str | None]]:
    """Read all clips; yields each with why it cannot be read, None where it can, in the order they end.

    Args:
        timeout_seconds: The longest that one clip may take.
    """
    if num_processes < 1 or timeout_seconds <= 0:
        raise ValueError("num_processes is at least 1 and timeout_seconds above 0")
    children = [_Child(reader, timeout_seconds) for _ in range(min(num_processes, len(clips)))]
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    for child in children:
        idle.put(child)

    def read(clip: Clip) -> str | None:
        child = idle.get()  # There are as many children as threads.
        try:
            return child.read(clip)
        finally:
            idle.put(child)

    with ThreadPoolExecutor(num_processes, thread_name_prefix="clip-checks") as threads:
        try:
            clip_of = {threads.submit(read, clip): clip for clip in clips}
            for future in as_completed(clip_of):
                yield clip_of[future], future.result()
        finally:
            # After an interruption a clip may have minutes left: its thread ends with its child.
            threads.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.kill()
    for child in children:
        child.end()


class _Child:
    """A process that reads one clip at a time, started when there is one to read and after it was ended."""

    def __init__(self, reader: FrameReader, timeout_seconds: float) -> None:
        self._reader, self._timeout_seconds = reader, timeout_seconds
        self._process: Any = None

    def read(self, clip: Clip) -> str | None:
        """Why the clip cannot be read, or None. A child that gives no answer is ended."""
        try:
            if self._process is None and not self._start():
                return unreadable(clip, "its process does not start")
            self._connection.send(clip)
            if self._connection.poll(self._timeout_seconds):
                reason: str | None = self._connection.recv()
                return reason
            reason = f"it takes longer than {self._timeout_seconds:.0f} s"
        except (EOFError, OSError):
            self._process.join(timeout=10)
            reason = f"the decoding process ended with exit code {self._process.exitcode}"
        self.end()
        return unreadable(clip, reason)

    def _start(self) -> bool:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._reader), daemon=True)
        self._process.start()
        theirs.close()
        # The time for a clip does not include that for starting.
        if self._connection.poll(START_SECONDS):
            self._connection.recv()
            return True
        self.end()
        return False

    def kill(self) -> None:
        """Kill the process, if there is one; a thread that waits for its answer gets EOFError."""
        if self._process is not None:
            self._process.kill()

    def end(self) -> None:
        """Kill the process and close what belongs to it."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def _serve(connection: Any, reader: FrameReader) -> None:
    """What a child does until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal: the parent decides when to stop.
    with suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            clip = connection.recv()
            try:
                reader.read(clip)
            except DatasetError as error:
                connection.send(str(error))
            except Exception as error:  # Whatever a decoder raises, the list must be complete.
                connection.send(unreadable(clip, f"{type(error).__name__}: {error}"))
            else:
                connection.send(None)
