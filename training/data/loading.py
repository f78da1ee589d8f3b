"""Clips to padded tensors, by worker processes if wanted, in the order of the requests.

A worker that cannot read a clip sends the reason as data, and the error is raised where the batch is awaited.
A worker that a decoder crashes, or one that hangs, is reported with the clip it had: each records in memory
shared with this process what it is reading, and since when.

Frames go through shared memory (/dev/shm) where it has room: a container has 64 MB of it unless told
otherwise. Where it has none they go through a pipe, which costs two copies.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from training.data.frames import FrameReader
from training.datasets.split import Clip
from training.errors import DatasetError

_CHECK_SECONDS: Final = 10.0
"""How often to check whether a worker hangs or is gone, while a batch is awaited."""

_CHECK_TRAINER_SECONDS: Final = 1.0

LOST_SECONDS: Final = 30.0
"""A batch is lost when every worker has had nothing to read for so long while one is awaited."""

SHARED_MEMORY: Final = Path("/dev/shm")

_MORE_SHARED_MEMORY: Final = (
    "give it more (docker run --shm-size=2g; in Kubernetes an emptyDir with medium: Memory at /dev/shm), or"
    " use fewer processes (data.num_workers)"
)


@dataclass(frozen=True)
class LoadRequest:
    """The clips of one batch, by index, and the epoch it is for."""

    clip_indices: tuple[int, ...]
    epoch: int = 0


@dataclass(frozen=True)
class _Unreadable:
    """What a worker sends instead of frames."""

    message: str


class ClipLoader:
    """Loads batches of clips. Keep it for several epochs: its workers stay. Close it, or let go of it.

    On a machine with CUDA, what is loaded lies in pinned memory.

    Args:
        reader: What reads a clip.
        num_workers: Processes that do, 0 for this one. They start when first needed.
        clip_timeout_seconds: A worker that is longer at one clip counts as hung (workers only).
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        reader: FrameReader,
        num_workers: int = 0,
        clip_timeout_seconds: float = 300.0,
    ) -> None:
        self.clips = tuple(clips)
        self.clip_timeout_seconds = clip_timeout_seconds
        self._requests = _Requests()
        shared = _process_context().RawArray("d", [-1.0] * (3 * num_workers))
        self._board = _view(shared)
        self._frames = _ClipFrames(self.clips, reader, shared)
        self._num_workers = num_workers
        self._loader: DataLoader[Any] | None = None
        self._is_busy = False
        self._turn = 0
        self._asked_at = 0.0

    def load(self, requests: Sequence[LoadRequest]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each request pixels, uint8 [N, F, R, R, 3], and frame_mask, bool [N, F], in their order.

        Padding is zeros with mask false. Only one `load` at a time: a new one ends the one before, which then
        raises RuntimeError.

        Raises:
            DatasetError: A clip cannot be read, a worker dies or hangs.
        """
        self._turn += 1
        turn = self._turn
        loaded = self._load_here(requests) if self._num_workers == 0 else self._load_by_workers(requests)
        for item in loaded:
            if isinstance(item, _Unreadable):
                raise DatasetError(item.message)
            yield _received(*item)
            if turn != self._turn:
                raise RuntimeError("these batches ended when later ones of the same loader were started")

    def close(self) -> None:
        """End the workers."""
        self._turn += 1
        self._loader = None

    def _load_here(self, requests: Sequence[LoadRequest]) -> Iterator[Any]:
        for request in requests:
            yield self._frames[request]

    def _load_by_workers(self, requests: Sequence[LoadRequest]) -> Iterator[Any]:
        try:
            iterator = self._begin(requests)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DatasetError(
                f"shared memory ({SHARED_MEMORY}) is full, and no process that reads clips can be started:"
                f" {_MORE_SHARED_MEMORY}"
            ) from error
        self._is_busy = True
        self._asked_at = time.monotonic()
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                self._is_busy = False
                return
            except RuntimeError as error:
                # torch has no class of its own for these two.
                if "timed out" in str(error):
                    self._raise_if_one_hangs()
                    self._raise_if_lost()
                    continue
                if "DataLoader worker" in str(error) and "exited" in str(error):
                    raise self._death() from error
                raise
            yield item
            self._asked_at = time.monotonic()

    def _begin(self, requests: Sequence[LoadRequest]) -> Iterator[Any]:
        self._requests.pending = requests
        if self._loader is not None and not self._is_busy:
            try:
                return iter(self._loader)  # The workers are idle and can be used again.
            except RuntimeError:
                pass  # One of them died meanwhile.
        # Workers with requests of a `load` that was not exhausted would first have to finish them.
        self._loader = self._start()
        return iter(self._loader)

    def _start(self) -> DataLoader[Any]:
        self._board[:] = -1.0
        with warnings.catch_warnings():
            # The share of time that training waits for data says how many suit this machine.
            warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
            return DataLoader(
                self._frames,
                batch_size=None,
                sampler=self._requests,
                num_workers=self._num_workers,
                collate_fn=_as_it_is,
                pin_memory=torch.cuda.is_available(),
                timeout=_CHECK_SECONDS,
                multiprocessing_context=_process_context(),
                persistent_workers=True,
                worker_init_fn=_WorkerStart(os.getpid()),
            )

    def _raise_if_one_hangs(self) -> None:
        for index, since, process_id in self._board.tolist():
            waited = time.monotonic() - since
            if index >= 0 and waited > self.clip_timeout_seconds:
                clip = self.clips[int(index)]
                self.close()
                raise DatasetError(
                    f"clip {clip.id!r} takes longer than {self.clip_timeout_seconds:.0f} s to read: its"
                    f" decoder hangs, or the disk is too slow ({clip.path}, process {process_id:.0f})"
                )

    def _raise_if_lost(self) -> None:
        """What a worker has read comes within a moment, unless it could not be sent."""
        now = time.monotonic()
        begun = self._board[:, 1] >= 0
        if not begun.all() and now - self._asked_at > self.clip_timeout_seconds:
            self.close()
            raise DatasetError(
                f"a process that reads clips did not start within {self.clip_timeout_seconds:.0f} s: the"
                " machine is overloaded or out of memory; use fewer processes (data.num_workers)"
            )
        is_idle = (self._board[:, 0] < 0) & (now - self._board[:, 1] > LOST_SECONDS)
        if begun.all() and is_idle.all() and now - self._asked_at > LOST_SECONDS:
            self.close()
            raise DatasetError(
                "a batch was lost between the process that read it and training; shared memory"
                f" ({SHARED_MEMORY}) has {_free_shared_memory() / 1e6:.0f} MB left: {_MORE_SHARED_MEMORY}"
            )

    def _death(self) -> DatasetError:
        self.close()
        suspects = []
        for index, _, process_id in self._board.tolist():
            if index >= 0 and not _is_running(int(process_id)):
                clip = self.clips[int(index)]
                suspects.append(f"{clip.id!r} ({clip.path})")
        if not suspects:
            return DatasetError(
                "a process that reads clips ended while it read none: memory may be short, or shared memory"
                f" ({SHARED_MEMORY}): {_MORE_SHARED_MEMORY}"
            )
        return DatasetError(
            f"a process that reads clips ended while it read clip {', '.join(suspects)}: its decoder crashed,"
            " or memory was short"
        )


@dataclass(frozen=True)
class _WorkerStart:
    """What a worker does first.

    Ctrl-C in a terminal reaches every process in it, but the one that trains decides when to stop. When that
    one is killed nothing is left to end the workers, so each watches for it by itself.
    """

    trainer_process_id: int

    def __call__(self, worker_number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._end_with_trainer, daemon=True).start()

    def _end_with_trainer(self) -> None:
        while _is_running(self.trainer_process_id):
            time.sleep(_CHECK_TRAINER_SECONDS)
        os._exit(1)


class _ClipFrames(Dataset[Any]):
    """What a worker holds."""

    def __init__(self, clips: tuple[Clip, ...], reader: FrameReader, board: Any) -> None:
        """board: memory shared with the workers. For each one: index of the clip it is reading, or -1; since
        when it reads it, or none; its process id."""
        self._clips = clips
        self._reader = reader
        self._board = board

    def __getitem__(self, request: LoadRequest) -> _Sent | _Unreadable:
        worker = get_worker_info()
        board = None if worker is None else _view(self._board)[worker.id]
        frames: dict[int, NDArray[np.uint8]] = {}
        try:
            for index in request.clip_indices:
                if index in frames:
                    continue
                if board is not None:
                    board[:] = index, time.monotonic(), os.getpid()
                frames[index] = self._reader.read(self._clips[index], request.epoch)
        except DatasetError as error:
            return _Unreadable(str(error))
        finally:
            if board is not None:
                board[:2] = -1, time.monotonic()
        padded = pad_frames([frames[index] for index in request.clip_indices], self._reader.recipe.num_frames)
        return padded if worker is None else _to_send(*padded)


class _Requests(Sampler[LoadRequest]):
    """What is to be loaded next. Lives in the main process, so that it may change between epochs."""

    def __init__(self) -> None:
        self.pending: Sequence[LoadRequest] = ()

    def __iter__(self) -> Iterator[LoadRequest]:
        return iter(self.pending)

    def __len__(self) -> int:
        return len(self.pending)


def pad_frames(frames: Sequence[NDArray[np.uint8]], num_frames: int) -> tuple[Tensor, Tensor]:
    """Clips of one size in one tensor.

    Args:
        frames: N arrays uint8 [n, R, R, 3], n <= num_frames.

    Returns:
        Pixels, uint8 [N, F, R, R, 3], zeros where there is no frame, and frame_mask, bool [N, F].
    """
    pixels = torch.zeros(len(frames), num_frames, *frames[0].shape[1:], dtype=torch.uint8)
    frame_mask = torch.zeros(len(frames), num_frames, dtype=torch.bool)
    for row, clip_frames in enumerate(frames):
        pixels[row, : len(clip_frames)] = torch.from_numpy(clip_frames)
        frame_mask[row, : len(clip_frames)] = True
    return pixels, frame_mask


_Sent = tuple[Tensor | NDArray[np.uint8], Tensor | NDArray[np.bool_]]


def _to_send(pixels: Tensor, frame_mask: Tensor) -> _Sent:
    """What a worker hands to the queue: arrays are written through a pipe, tensors lie in shared memory.

    Here and not by the queue's own thread: an error there loses the batch. Half of what is free is left, to
    other workers and to NCCL.
    """
    if _free_shared_memory() >= 2 * pixels.nbytes:
        try:
            return pixels.share_memory_(), frame_mask.numpy()  # type: ignore[no-untyped-call]
        except (RuntimeError, OSError):
            pass  # Another process took the space first.
    return pixels.numpy(), frame_mask.numpy()


def _received(
    pixels: Tensor | NDArray[np.uint8], frame_mask: Tensor | NDArray[np.bool_]
) -> tuple[Tensor, Tensor]:
    """Tensors, in pinned memory on a machine with CUDA."""
    tensors = torch.as_tensor(pixels), torch.as_tensor(frame_mask)
    if not torch.cuda.is_available():
        return tensors
    return tensors[0].pin_memory(), tensors[1].pin_memory()


def _free_shared_memory() -> int:
    """Bytes; practically unlimited where the system has no such folder."""
    try:
        free = os.statvfs(SHARED_MEMORY)
    except OSError:
        return sys.maxsize
    return free.f_bavail * free.f_frsize


def _view(board: Any) -> NDArray[np.float64]:
    """float64 [workers, 3] on shared memory."""
    return np.frombuffer(board, np.float64).reshape(-1, 3)


def _as_it_is(item: Any) -> Any:
    return item


def _process_context() -> Any:
    """How workers start: forked from a server that has imported all they need; spawned where there is none.

    Never as copies of this process, whose threads and CUDA context would not survive that. Children of a
    server also end quietly: their death is seen where a batch is awaited, not by a signal anywhere.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.data.loading"])
    return context


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except OSError:
        return False
    return True
