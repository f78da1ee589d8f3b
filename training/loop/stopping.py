"""Ctrl-C and SIGTERM end a run between two steps, with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import distributed

from training.distributed import world_size
from training.errors import TrainingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingStoppedError(TrainingError):
    """A run that was asked to stop, and did after it wrote a checkpoint.

    Args:
        signal_number: 2 for Ctrl-C, 15 for SIGTERM.
        checkpoint: What `resume` continues from.
    """

    def __init__(self, signal_number: int, checkpoint: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}; the checkpoint is {checkpoint}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class StopRequest:
    """Whether this process was asked to stop: `signal_number`, 0 if not."""

    def __init__(self) -> None:
        self.signal_number = 0

    def agreed(self, device: torch.device) -> int:
        """The signal that any of the processes was sent, the same answer on all of them; 0 for none."""
        if world_size() == 1:
            return self.signal_number
        answer = torch.tensor(self.signal_number, device=device)
        distributed.all_reduce(answer, distributed.ReduceOp.MAX)
        return int(answer)


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Record the first Ctrl-C or SIGTERM instead of ending; a second one ends the process immediately.

    Does nothing outside the main thread, where signals do not arrive.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    owner = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # In a forked loader process: Ctrl-C reaches it too, but its parent ends it.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if request.signal_number:
            raise KeyboardInterrupt
        request.signal_number = number

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
