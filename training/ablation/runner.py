"""One variant with one seed: trained by the trainer, judged by the evaluation, of every other data set."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import XClip
from training.ablation.corpus import HELD_OUT_SETS
from training.ablation.folders import Folders
from training.ablation.plans import RunPlan
from training.ablation.settings import AblationSettings
from training.config import TrainingConfig
from training.datasets.registry import load_split
from training.evaluation.protocol import evaluate_split
from training.events import StepDone, TrainingEvent
from training.run_directory import RunDirectory
from training.starting_model import starting_model
from training.trainer import train
from training.training_data import frame_readers

if TYPE_CHECKING:
    from training.frames import FrameReader

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
                resume=RunDirectory(run_folder).holds_a_run(),
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
    _, reader = frame_readers(config, model.image_size)
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
