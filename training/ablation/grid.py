"""All runs of a grid, several at once in processes of their own; one that fails stops no other."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from training.ablation.folders import Folders
from training.ablation.plans import RunPlan
from training.ablation.settings import AblationSettings

OnSteps = Callable[[RunPlan, int], None]
"""Called with a run and how many optimizer steps of it are done."""

OnEnd = Callable[[RunPlan, str | None], None]
"""Called with a run that has ended, and why it failed, None where it did not."""

_STEPS_BETWEEN_MESSAGES = 5
_STOP_SECONDS = 60.0
"""A run that is interrupted writes its checkpoint first."""


@dataclass(frozen=True)
class WorkerOptions:
    """What every run of a grid is given. threads: of the processor, for one run."""

    settings: AblationSettings
    folders: Folders
    threads: int = 1
    device: str = "auto"
    keep_models: bool = False


def run_grid(
    plans: Sequence[RunPlan],
    options: WorkerOptions,
    jobs: int,
    on_steps: OnSteps,
    on_end: OnEnd,
) -> None:
    """Do all runs, `jobs` at once; with one job in this process.

    KeyboardInterrupt stops all of them; what was done so far is kept, and the next time goes on from there.
    """
    if jobs == 1:
        import torch

        torch.set_num_threads(options.threads)
        for plan in plans:
            on_end(plan, _attempt(plan, options, partial(on_steps, plan)))
        return
    waiting = deque(plans)
    workers = [_Worker(options) for _ in range(min(jobs, len(plans)))]
    try:
        for worker in workers:
            worker.give(waiting.popleft())
        while any(worker.plan for worker in workers):
            busy = {worker.connection: worker for worker in workers if worker.plan}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                ended = worker.plan
                assert ended is not None
                message = worker.receive()
                if isinstance(message, int):
                    on_steps(ended, message)
                    continue
                on_end(ended, message)
                worker.plan = None
                if waiting:
                    worker.give(waiting.popleft())
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that does one run after another. plan: the run it is at."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self.plan: RunPlan | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, self._options), daemon=True)
        self._process.start()
        theirs.close()

    def give(self, plan: RunPlan) -> None:
        self.plan = plan
        if not self._process.is_alive():
            self.connection.close()
            self._start()
        self.connection.send(plan)

    def receive(self) -> int | str | None:
        """Steps done, or why the run failed, or None where it is done. A process that died has failed."""
        try:
            message: int | str | None = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            return f"its process ended with status {self._process.exitcode}"
        return message

    def end(self) -> None:
        """Let the process end; one that is at a run after `_STOP_SECONDS` is ended."""
        with suppress(OSError):
            self.connection.send(None)
        self._process.join(_STOP_SECONDS if self.plan else 5.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self.connection.close()


def _work(connection: Connection[Any, Any], options: WorkerOptions) -> None:
    """The worker's own life: runs come in, step counts and endings go out."""
    import torch

    torch.set_num_threads(options.threads)
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while (plan := connection.recv()) is not None:
            connection.send(_attempt(plan, options, connection.send))


def _attempt(plan: RunPlan, options: WorkerOptions, on_step: Callable[[int], None]) -> str | None:
    """Do a run; returns why it failed, None where it did not. Raises KeyboardInterrupt where stopped."""
    from training.ablation.runner import execute
    from training.stopping import TrainingStoppedError

    def tell(num_done: int) -> None:
        if num_done % _STEPS_BETWEEN_MESSAGES == 0:
            on_step(num_done)

    try:
        execute(
            plan,
            options.settings,
            options.folders,
            device=options.device,
            keep_model=options.keep_models,
            on_step=tell,
        )
    except TrainingStoppedError:
        raise KeyboardInterrupt from None
    except Exception as error:  # Whatever it is, it is this run's own, and is told.
        return f"{type(error).__name__}: {error}"
    return None
