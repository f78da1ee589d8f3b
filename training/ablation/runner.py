"""Runs of a grid: what all variants share is made once, then each is trained and evaluated with each seed.

Trainer and evaluation are those of every other data set. Several runs go on in parallel in processes of their
own; one that fails stops no other.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import XClip
from model.preprocessing import Resizing
from training.ablation.corpus import HELD_OUT_SETS, make_starting_point, write_training_corpus
from training.ablation.settings import AblationSettings, Folders, replace_text
from training.ablation.variants import RunPlan
from training.config import TrainingConfig
from training.data.clip_checks import readable
from training.data.frames import FrameReader
from training.data.splits import frame_readers
from training.datasets.registry import load_split
from training.evaluation.encoding import EncodingOptions
from training.evaluation.evaluation import evaluate_split
from training.loop.events import StepDone, TrainingEvent
from training.loop.preparation import starting_model
from training.loop.run_directory import RunDirectory
from training.loop.stopping import TrainingStoppedError
from training.loop.trainer import train

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_COMPLETE = "complete"
"""The file that says that all frames are decoded."""


def prepare_folder(
    folders: Folders, settings: AblationSettings, num_processes: int, on_progress: OnProgress
) -> None:
    """Make what is not there yet.

    Args:
        num_processes: Concurrent processes, and threads of training.

    Raises:
        DatasetError: A clip that was written cannot be read again.
    """
    complete = folders.frames / _COMPLETE
    if complete.is_file() and folders.start.is_dir():
        return
    write_training_corpus(
        folders.corpus,
        settings.corpus,
        num_processes,
        lambda num_done, num_clips: on_progress("writing clips", num_done, num_clips),
    )
    make_starting_point(folders.start, settings.start, num_processes, on_progress)
    _decode_all(folders, settings, num_processes, on_progress)
    folders.frames.mkdir(exist_ok=True)
    complete.touch()


def _decode_all(
    folders: Folders, settings: AblationSettings, num_processes: int, on_progress: OnProgress
) -> None:
    config = replace(
        settings.config,
        data=replace(settings.config.data, directory=folders.corpus, cache=folders.frames),
    )
    _, reader = frame_readers(config, Resizing(settings.start.image_size))
    splits = [
        load_split("captions", folders.corpus, "train"),
        *(load_split("captions", folders.corpus / manifest, "test") for manifest in HELD_OUT_SETS.values()),
    ]
    num_clips, num_done = sum(len(split.clips) for split in splits), 0

    def on_read(count: int) -> None:
        nonlocal num_done
        num_done += count
        on_progress("decoding clips", num_done, num_clips)

    for split in splits:
        readable(split, reader, num_processes=num_processes, on_progress=on_read)


OnStep = Callable[[int], None]
"""Called with the number of optimizer steps done in this run."""


@dataclass(frozen=True)
class RunOptions:
    """What every run of a grid is given.

    Attributes:
        settings: What all of its figures depend on.
        folders: Where it reads and writes.
        num_threads: Of the processor, for one run.
        device: See `training.distributed.process_group`.
        keep_models: Leave the trained models in `folders.run(...)`.
    """

    settings: AblationSettings
    folders: Folders
    num_threads: int = 1
    device: str = "auto"
    keep_models: bool = False


def variant_config(settings: AblationSettings, plan: RunPlan, folders: Folders) -> TrainingConfig:
    """The config that `xclip-search train` would take for this run."""
    config = settings.config
    return replace(
        config,
        model=replace(config.model, start=str(folders.start), **plan.variant.choices),
        data=replace(
            config.data,
            directory=folders.corpus,
            cache=folders.frames,
            validation_split="none",  # A fixed number of steps: nothing is chosen by its figures.
            read_first=False,  # All clips were read when the folder was prepared.
        ),
        training=replace(config.training, seed=plan.seed),
        log=replace(config.log, tensorboard=False),
    )


def execute(plan: RunPlan, options: RunOptions, on_step: OnStep = lambda num_done: None) -> dict[str, Any]:
    """Train, evaluate on both held-out sets, write the record and return it.

    An interrupted run resumes from its last checkpoint. Raises what training and evaluation raise.
    """
    started = time.perf_counter()
    folders = options.folders
    config = variant_config(options.settings, plan, folders)
    if plan.variant.trained:
        model, facts = _train(plan, config, options, on_step)
    else:
        facts, texts = {}, load_split("captions", folders.corpus, "train").texts
        model = starting_model(config.model, texts, plan.seed, options.device).model.eval()
    _, reader = frame_readers(config, model.config.resizing)
    evaluation_started = time.perf_counter()
    sets = {
        name: _evaluate(model, folders.corpus / manifest, reader, config)
        for name, manifest in HELD_OUT_SETS.items()
    }
    record = {
        "variant": plan.variant.name,
        "seed": plan.seed,
        "choices": dict(plan.variant.choices),
        "trained": plan.variant.trained,
        **facts,
        "evaluation_seconds": time.perf_counter() - evaluation_started,
        "seconds": time.perf_counter() - started,
        "fingerprint": model.fingerprint,
        "torch": torch.__version__,
        "sets": sets,
    }
    path = folders.record(plan.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(record, indent=2) + "\n")
    if not options.keep_models:
        shutil.rmtree(folders.run(plan.name), ignore_errors=True)
    return record


def _train(
    plan: RunPlan, config: TrainingConfig, options: RunOptions, on_step: OnStep
) -> tuple[XClip, dict[str, Any]]:
    """The trained model, and what its record says of the training."""

    def on_event(event: TrainingEvent) -> None:
        if isinstance(event, StepDone):
            on_step(event.step)

    run_folder = options.folders.run(plan.name)
    with _fast_attention(config):
        result = train(
            config,
            run_folder,
            existing="resume" if RunDirectory(run_folder).holds_a_run() else "refuse",
            device=options.device,
            on_event=on_event,
        )
    summary = result.summary
    seconds = summary["times"]["forward_backward_seconds"] + summary["times"]["optimizer_seconds"]
    return XClip.load(result.best, options.device, "torch"), {
        "num_steps": summary["num_steps"],
        "seconds_per_step": seconds / summary["num_steps"],
        "training_seconds": summary["wall_seconds"],
        "losses": [row["loss"] for row in result.rows],
    }


def _evaluate(model: XClip, manifest: Path, reader: FrameReader, config: TrainingConfig) -> dict[str, Any]:
    split = load_split("captions", manifest, "test")
    result = evaluate_split(model, split, reader, EncodingOptions(config.training.validation_batch_size))
    return {
        "text_to_video": asdict(result.text_to_video),
        "video_to_text": asdict(result.video_to_text),
        "num_texts": result.num_texts,
        "num_clips": result.num_clips,
    }


def _fast_attention(config: TrainingConfig) -> Any:
    """On a processor the backward pass of torch 2.15's fused attention is slow in bfloat16, that of the
    written-out one is not (benchmarks/training/tower_training.py). Both compute the same."""
    if torch.cuda.is_available() or config.training.precision == "float32":
        return nullcontext()
    return sdpa_kernel([SDPBackend.MATH])


OnSteps = Callable[[RunPlan, int], None]
"""Called with a run and how many optimizer steps of it are done."""

OnEnd = Callable[[RunPlan, str | None], None]
"""Called with a run that has ended, and why it failed, None where it did not."""

_STEPS_BETWEEN_MESSAGES = 5
_STOP_SECONDS = 60.0
"""A run that is interrupted writes its checkpoint first."""


def run_grid(
    plans: Sequence[RunPlan],
    options: RunOptions,
    jobs: int,
    on_steps: OnSteps,
    on_end: OnEnd,
) -> None:
    """Do all runs, `jobs` of them concurrently; with one job in this process.

    KeyboardInterrupt stops all of them; what was done so far is kept, and the next call resumes from there.
    """
    if jobs == 1:
        torch.set_num_threads(options.num_threads)
        for plan in plans:
            on_end(plan, _attempt(plan, options, partial(on_steps, plan)))
        return
    pending = deque(plans)
    workers = [_Worker(options) for _ in range(min(jobs, len(plans)))]
    try:
        for worker in workers:
            worker.give(pending.popleft())
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
                if pending:
                    worker.give(pending.popleft())
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that does one run after another. plan: the current one."""

    def __init__(self, options: RunOptions) -> None:
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
        """Let the process end; one that is still running after `_STOP_SECONDS` is terminated."""
        with suppress(OSError):
            self.connection.send(None)
        self._process.join(_STOP_SECONDS if self.plan else 5.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self.connection.close()


def _work(connection: Connection[Any, Any], options: RunOptions) -> None:
    """The loop of a worker: receives runs, sends step counts and outcomes."""
    torch.set_num_threads(options.num_threads)
    with suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while (plan := connection.recv()) is not None:
            connection.send(_attempt(plan, options, connection.send))


def _attempt(plan: RunPlan, options: RunOptions, on_step: Callable[[int], None]) -> str | None:
    """Do a run; returns why it failed, None where it did not. Raises KeyboardInterrupt where stopped."""

    def report_some(num_done: int) -> None:
        if num_done % _STEPS_BETWEEN_MESSAGES == 0:
            on_step(num_done)

    try:
        execute(plan, options, report_some)
    except TrainingStoppedError:
        raise KeyboardInterrupt from None
    except Exception as error:  # Whatever it is, it stops this run alone and is reported.
        return f"{type(error).__name__}: {error}"
    return None
