"""Every clip of a split read once before training, so that what cannot be read is known at once, all of it.

With a cache this is also what fills it. Clips are read in child processes: one that crashes its decoder or
hangs costs this one clip.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, Final, Literal

from training.data.frames import FrameReader
from training.datasets.split import Clip, Split
from training.errors import DatasetError

_START_SECONDS: Final = 120.0
"""Importing takes about a second; a machine may be busy."""

_MAX_NAMED: Final = 50
"""So many clips are named in a message; of the others it gives the number."""


def readable(
    split: Split,
    reader: FrameReader,
    *,
    missing: Literal["error", "warn"] = "error",
    num_processes: int = 1,
    timeout_seconds: float = 300.0,
    on_progress: Callable[[int], None] = lambda num_clips: None,
) -> Split:
    """The split without the clips that cannot be read; the same split where all can.

    missing: `error` raises DatasetError that lists all of them, each with its reason. `warn` gives that list
    as a warning and leaves them and their texts out; the result says so in `missing`.
    num_processes: clips read at once. timeout_seconds: the longest that one may take.
    on_progress: called with 1 for each clip that was read or failed, in this thread.
    Nothing is random here: the same files give the same split.
    """
    failures = dict(find_unreadable(split.clips, reader, num_processes, timeout_seconds, on_progress))
    if not failures:
        return split
    in_order = [clip for clip in split.clips if clip.id in failures]
    lines = [f"  {failures[clip.id]}" for clip in in_order[:_MAX_NAMED]]
    if len(in_order) > _MAX_NAMED:
        lines.append(f"  and {len(in_order) - _MAX_NAMED} more")
    message = f"{len(in_order)} of {len(split.clips)} clips of {split} cannot be read:\n" + "\n".join(lines)
    if missing == "error":
        raise DatasetError(message)
    warnings.warn(f"{message}\nThey are left out.", UserWarning, stacklevel=2)
    return leave_out(split, failures)


def leave_out(split: Split, clip_ids: Collection[str]) -> Split:
    """The split without these clips and their texts; their ids are added to `missing`.

    Raises DatasetError where no clip remains.
    """
    kept = [index for index, clip in enumerate(split.clips) if clip.id not in clip_ids]
    gone = tuple(clip.id for clip in split.clips if clip.id in clip_ids)
    if not kept:
        raise DatasetError(f"no clip of {split} remains: all {len(gone)} were left out")
    place = {index: number for number, index in enumerate(kept)}
    texts = [
        (text, place[index])
        for text, index in zip(split.texts, split.clip_of_text, strict=True)
        if index in place
    ]
    return replace(
        split,
        clips=tuple(split.clips[index] for index in kept),
        texts=tuple(text for text, _ in texts),
        clip_of_text=tuple(index for _, index in texts),
        missing=split.missing + gone,
    )


def find_unreadable(
    clips: Sequence[Clip],
    reader: FrameReader,
    num_processes: int,
    timeout_seconds: float,
    on_progress: Callable[[int], None] = lambda num_clips: None,
) -> Iterator[tuple[str, str]]:
    """Read all clips; yield id and reason, naming the clip, of each that fails, in no certain order."""
    if num_processes < 1 or timeout_seconds <= 0:
        raise ValueError("num_processes is at least 1 and timeout_seconds above 0")
    waiting = iter(clips)
    children: dict[Connection, _Child] = {}

    def occupy(child: _Child | None) -> None:
        clip = next(waiting, None)
        if clip is None:
            if child is not None:
                child.end()
            return
        child = child or _Child(reader)
        child.give(clip, timeout_seconds)
        children[child.connection] = child

    try:
        for _ in range(num_processes):
            occupy(None)
        while children:
            patience = min(child.deadline for child in children.values()) - time.monotonic()
            answered = wait(list(children), timeout=max(0.0, patience))
            late = [one for one, child in children.items() if time.monotonic() > child.deadline]
            for connection in {*answered, *late}:
                assert isinstance(connection, Connection)
                child = children[connection]
                if child.gets_ready(timeout_seconds):
                    continue
                del children[connection]
                reason = child.answer(timeout_seconds)
                if reason is not None:
                    yield child.clip.id, reason
                on_progress(1)
                occupy(child if child.is_alive else None)
    finally:
        for child in children.values():
            child.end()


class _Child:
    """A process that reads one clip at a time, and this side of its pipe."""

    def __init__(self, reader: FrameReader) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, reader), daemon=True)
        self._process.start()
        theirs.close()
        self.is_alive = True
        self.is_ready = False
        self.clip: Clip
        self.deadline = 0.0

    def give(self, clip: Clip, timeout_seconds: float) -> None:
        self.clip = clip
        self.deadline = time.monotonic() + (timeout_seconds if self.is_ready else _START_SECONDS)
        with suppress(OSError):  # If it died, its silence says so.
            self.connection.send(clip)

    def gets_ready(self, timeout_seconds: float) -> bool:
        """Whether what it has to say is that it has started; its time for the clip counts from then."""
        if self.is_ready or not self.connection.poll():
            return False
        try:
            self.connection.recv()
        except (EOFError, OSError):
            return False
        self.is_ready = True
        self.deadline = time.monotonic() + timeout_seconds
        return True

    def answer(self, timeout_seconds: float) -> str | None:
        """Why the clip cannot be read, or None. A child that gave no answer is ended."""
        if not self.connection.poll():
            self.end()
            return self._name(f"it takes longer than {timeout_seconds:.0f} s")
        try:
            reason: str | None = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(timeout=10)
            code = self._process.exitcode
            self.end()
            return self._name(f"the decoding process ended with exit code {code}")
        return reason

    def end(self) -> None:
        self.is_alive = False
        self._process.kill()
        self._process.join()
        self.connection.close()

    def _name(self, reason: str) -> str:
        return f"clip {self.clip.id!r} cannot be read: {reason} ({self.clip.path})"


def _serve(connection: Any, reader: FrameReader) -> None:
    """What a child does until it is ended."""
    with suppress(EOFError, OSError):
        connection.send("ready")
        while True:
            clip = connection.recv()
            try:
                reader.read(clip)
            except DatasetError as error:
                connection.send(str(error))
            except Exception as error:  # Whatever a decoder comes up with, the list is to be complete.
                reason = f"{type(error).__name__}: {error}"
                connection.send(f"clip {clip.id!r} cannot be read: {reason} ({clip.path})")
            else:
                connection.send(None)
