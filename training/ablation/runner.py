"""What all variants share, made once: the corpus, the towers that they start from, the decoded frames.

One variant with one seed: trained by the trainer, judged by the evaluation, of every other data set.

All runs of a grid, several at once in processes of their own; one that fails stops no other.
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
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import XClip
from training.ablation.corpus import HELD_OUT_SETS, make_starting_point, write_training_corpus
from training.ablation.settings import AblationSettings, Folders
from training.ablation.variants import RunPlan
from training.config import TrainingConfig
from training.data.splits import frame_readers
from training.datasets.registry import load_split
from training.evaluation.evaluation import evaluate_split
from training.loop.events import StepDone, TrainingEvent
from training.loop.preparation import starting_model
from training.loop.run_directory import RunDirectory
from training.loop.trainer import train

if TYPE_CHECKING:
    from training.data.frames import FrameReader

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

_MARK = "complete"


def prepare_folder(
    folders: Folders, settings: AblationSettings, num_processes: int, on_progress: OnProgress
) -> None:
    """Make what is not there yet. num_processes: processes, and threads of training, at once.

    Raises DatasetError where a clip that was written cannot be read again.
    """
    mark = folders.frames / _MARK
    if mark.is_file() and folders.start.is_dir():
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
    mark.touch()


def _decode_all(
    folders: Folders, settings: AblationSettings, num_processes: int, on_progress: OnProgress
) -> None:
    from training.data.clip_checks import readable
    from training.data.splits import frame_readers
    from training.datasets.registry import load_split

    config = replace(
        settings.config,
        data=replace(settings.config.data, directory=folders.corpus, cache=folders.frames),
    )
    _, reader = frame_readers(config, settings.start.image_size)
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


def execute(
    plan: RunPlan,
    settings: AblationSettings,
    folders: Folders,
    *,
    device: str = "auto",
    keep_model: bool = False,
    on_step: OnStep = lambda num_done: None,
) -> dict[str, Any]:
    """Train, judge on both held-out sets, write the record and return it.

    A run that was interrupted goes on from its last checkpoint. keep_model: leave the trained model in
    `folders.run(...)`. Raises what training and evaluation raise.
    """
    started = time.perf_counter()
    config = variant_config(settings, plan, folders)
    run_folder = folders.run(plan.name)
    facts: dict[str, Any] = {}
    if plan.variant.trained:
        with _quick_attention(config):
            result = train(
                config,
                run_folder,
                existing="resume" if RunDirectory(run_folder).holds_a_run() else "refuse",
                device=device,
                on_event=lambda event: _tell(event, on_step),
            )
        summary = result.summary
        training_seconds = (
            summary["times"]["forward_backward_seconds"] + summary["times"]["optimizer_seconds"]
        )
        facts = {
            "num_steps": summary["num_steps"],
            "seconds_per_step": training_seconds / summary["num_steps"],
            "training_seconds": summary["wall_seconds"],
            "losses": [row["loss"] for row in result.rows],
        }
        model = XClip.load(result.best, device)
    else:
        train_split = load_split("captions", folders.corpus, "train")
        model = starting_model(config.model, train_split.texts, plan.seed, device).model.eval()
    _, reader = frame_readers(config, model.config.image_size)
    evaluation_started = time.perf_counter()
    sets = {
        name: _judge(model, folders.corpus / manifest, reader, config)
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
    _write(folders.record(plan.name), record)
    if not keep_model:
        shutil.rmtree(run_folder, ignore_errors=True)
    return record


def _judge(model: XClip, manifest: Path, reader: FrameReader, config: TrainingConfig) -> dict[str, Any]:
    split = load_split("captions", manifest, "test")
    result = evaluate_split(model, split, reader, batch_size=config.training.validation_batch_size)
    return {
        "text_to_video": asdict(result.text_to_video),
        "video_to_text": asdict(result.video_to_text),
        "num_texts": result.num_texts,
        "num_clips": result.num_clips,
    }


def _quick_attention(config: TrainingConfig) -> Any:
    """On a processor the backward pass of torch 2.15's fused attention is slow in bfloat16, that of the
    written-out one is not (benchmarks/tower_training.py). Both compute the same."""
    if torch.cuda.is_available() or config.training.precision == "float32":
        return nullcontext()
    return sdpa_kernel([SDPBackend.MATH])


def _tell(event: TrainingEvent, on_step: OnStep) -> None:
    if isinstance(event, StepDone):
        on_step(event.step)


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


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

    from training.loop.stopping import TrainingStoppedError

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
