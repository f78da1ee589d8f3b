"""The processes of tests/training/test_gather.py: `OMP_NUM_THREADS=1 python gather_process.py NUM_PROCESSES
FOLDER`.

Each does everything that those tests check and writes what it found to FOLDER/RANK.safetensors.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[3]))

from model.quick_start import shorten_import

if __name__ == "__main__":
    shorten_import()

from model import TextFeatures, VideoFeatures, XClip
from tests.support.training_runs.training_pairs import double_precision, gradients, random_pairs, small_model
from training.config import OptimizerChoices
from training.distributed import (
    average_gradients,
    check_equal_parameters,
    gather_features,
    rank,
    share_parameters,
    world_size,
)
from training.errors import RunError
from training.loop.loss import loss_and_gradients
from training.loop.optimizer import make_optimizer, update

GLOBAL_BATCH = 6
NUM_STEPS = 3
Found = dict[str, torch.Tensor]


def trained_model() -> XClip:
    """The model before training, the same in every process and in the test."""
    return small_model(mask_padding=False)


def take_steps(model: XClip, rows: slice, micro_batch_size: int | None = None) -> list[float]:
    """Train `model` on the given rows of each global batch; returns the losses."""
    optimizer = make_optimizer(model, OptimizerChoices("bert-adam", 1e-3, 0.1), num_steps=10)
    losses = []
    for step in range(NUM_STEPS):
        batch = random_pairs(model, GLOBAL_BATCH, seed=step)[rows]
        losses.append(loss_and_gradients(model, batch, micro_batch_size=micro_batch_size))
        update(model, optimizer)
    return losses


def own_rows() -> slice:
    """This process's part of a global batch."""
    size = GLOBAL_BATCH // world_size()
    return slice(rank() * size, (rank() + 1) * size)


def first_gradients() -> Found:
    """Loss and gradients of the first batch, in both modes, whole and in micro-batches, in float64."""
    found: Found = {}
    with double_precision():
        model = trained_model()
        batch = random_pairs(model, GLOBAL_BATCH)[own_rows()]
        for mode in ("exact", "official"):
            for size in (None, 2):
                name = f"{mode}-{size or 'whole'}"
                loss = loss_and_gradients(model, batch, gather=mode, micro_batch_size=size)
                found[f"{name}/loss"] = torch.tensor(loss)
                found |= {f"{name}/{key}": value for key, value in gradients(model).items()}
    return found


def three_steps() -> Found:
    """Parameters and losses of training in float32."""
    found: Found = {}
    for size in (None, 2):
        model = trained_model()
        losses = take_steps(model, own_rows(), size)
        name = f"steps-{size or 'whole'}"
        found[f"{name}/loss"] = torch.tensor(losses)
        found |= {f"{name}/{key}": value for key, value in model.state_dict().items()}
    return found


def gathered_features() -> Found:
    """Features that identify the process and row they come from."""
    row = 10.0 * rank() + torch.arange(2.0)
    text = TextFeatures(
        row[:, None], row[:, None, None].expand(2, 3, 1), row[:, None] == 10 + torch.arange(3)
    )
    video = VideoFeatures(-row[:, None], -row[:, None, None].expand(2, 4, 1), row[:, None] < torch.arange(4))
    all_text, all_video = gather_features(text, video)
    return {
        "gathered/sentence": all_text.sentence,
        "gathered/words": all_text.words,
        "gathered/word_mask": all_text.word_mask,
        "gathered/video": all_video.video,
        "gathered/frames": all_video.frames,
        "gathered/frame_mask": all_video.frame_mask,
    }


def averaged_gradients() -> Found:
    """Gradients known on both processes, on one, on none; in one message and in many."""
    found: Found = {}
    for bucket_bytes in (1, 2**20):
        both, one, none, frozen = (torch.nn.Parameter(torch.zeros(3)) for _ in range(4))
        frozen.requires_grad_(False)
        both.grad = torch.full((3,), 1.0 + rank())
        if rank() == 1:
            one.grad = torch.full((3,), 8.0)
        average_gradients([both, one, none, frozen], bucket_bytes)
        assert none.grad is None and frozen.grad is None
        found |= {f"average-{bucket_bytes}/both": both.grad, f"average-{bucket_bytes}/one": one.grad}
    return found


def shared_parameters() -> Found:
    """Weights of another seed in each process, before and after sharing; then one bit is changed."""
    model = small_model(seed=rank())

    def identifiable() -> torch.Tensor:
        try:
            check_equal_parameters(model)
        except RunError:
            return torch.tensor(True)
        return torch.tensor(False)

    found = {"shared/before": identifiable()}
    share_parameters(model)
    found["shared/after"] = identifiable()
    found |= {f"shared/{name}": value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        if rank() == 1:
            weight = model.clip.visual.proj
            weight[3, 2] = torch.nextafter(weight[3, 2], torch.tensor(torch.inf))
    found["shared/changed"] = identifiable()
    return found


def take_part(own_rank: int, size: int, folder: Path) -> None:
    """Meet the others, do it all, write it down."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=own_rank,
        world_size=size,
        timeout=timedelta(minutes=1),
    )
    warnings.simplefilter("error")
    parts: list[Callable[[], Found]] = [
        gathered_features,
        averaged_gradients,
        shared_parameters,
        first_gradients,
        three_steps,
    ]
    found = {name: value.contiguous() for part in parts for name, value in part().items()}
    save_file(found, folder / f"{own_rank}.safetensors")
    distributed.destroy_process_group()


def main() -> None:
    """Start the processes and wait for them. They are forked before anything is computed: torch is imported
    once, not once for each."""
    size, folder = int(sys.argv[1]), Path(sys.argv[2])
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=take_part, args=(number, size, folder)) for number in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))


if __name__ == "__main__":
    main()
