"""How far a training step is from the official code on its own arrays: the largest difference to each.

Then the same of this code with itself: micro-batches against the whole batch, and two processes against one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.machine import REPOSITORY
from model import XClip
from model.checkpoints.official import official_name, our_name
from tests.support.training_runs.gather_process import GLOBAL_BATCH, take_steps, trained_model
from tests.support.training_runs.training_pairs import (
    Pairs,
    double_precision,
    gradients,
    largest_relative_difference,
    random_pairs,
    small_model,
)
from training.config import OptimizerChoices
from training.loop.loss import loss_and_gradients
from training.loop.optimizer import make_optimizer, parameter_groups, update
from training.loop.preparation import freeze

TESTS = REPOSITORY / "tests"
GOLDENS = TESTS / "goldens"


def row(name: str, difference: float, unit: str) -> None:
    """Print a row."""
    print(f"| {name} | {difference:.1e} | {unit} |")


def fresh_model() -> XClip:
    """The model of the goldens before training."""
    return XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu").train()


def apart(model: XClip, stored: dict[str, np.ndarray], prefix: str, of_gradients: bool = False) -> float:
    """The largest difference to the arrays under `prefix`; for gradients, relative to the largest value."""
    parameters = dict(model.named_parameters())
    worst = 0.0
    for name, expected in stored.items():
        if not name.startswith(prefix):
            continue
        parameter = parameters[our_name(name.removeprefix(prefix)) or ""]
        value = (parameter.grad if of_gradients else parameter).detach()  # type: ignore[union-attr]
        found = value[: len(expected)].numpy() if expected.ndim else value.numpy()
        scale = np.abs(expected).max() if of_gradients else 1.0
        worst = max(worst, float(np.abs(found - expected).max() / scale))
    return worst


def official() -> None:
    """Print the rows that compare with the official code."""
    facts = json.loads((GOLDENS / "tiny_train.json").read_text())
    stored = dict(np.load(GOLDENS / "tiny_train.npz"))
    inputs = dict(np.load(GOLDENS / "tiny_inputs.npz"))
    frames = inputs["frames_rgb_u8"]
    batch = Pairs(inputs["input_ids"][: len(frames)], inputs["video_mask"].astype(bool), frames)

    model = fresh_model()
    row("loss", abs(loss_and_gradients(model, batch) - facts["loss"]), "absolute")
    norms = {official_name(name): float(p.grad.norm()) for name, p in model.named_parameters()}
    expected = facts["grad_norm_per_parameter"]
    row(
        f"gradient norm of each of {len(norms)} parameters",
        max(abs(norms[name] / expected[name] - 1) for name in expected),
        "relative",
    )
    groups = parameter_groups(model, OptimizerChoices())
    expected = facts["grad_norm_per_group_unfrozen"].values()
    lengths = [np.sqrt(sum(float(p.grad.norm()) ** 2 for p in group["params"])) for group in groups]
    row(
        "gradient norm of the 4 groups",
        max(abs(a / b - 1) for a, b in zip(lengths, expected, strict=True)),
        "relative",
    )
    row("gradients", apart(model, stored, "grad/", of_gradients=True), "of the largest value")

    for run in ("sched", "const", "biglr"):
        run_facts = facts[f"optimizer_{run}"]
        model = fresh_model()
        freeze(model, num_layers=0)
        optimizer = make_optimizer(
            model,
            OptimizerChoices(
                "bert-adam", run_facts["lr"], run_facts["coef_lr"], warmup_share=max(0.0, run_facts["warmup"])
            ),
            num_steps=run_facts["t_total"],
        )
        for step in range(3 if run == "sched" else 1):
            loss_and_gradients(model, batch)
            update(model, optimizer)
            difference = apart(model, stored, f"{run}/step{step}/")
            row(f"{run}: parameters after step {step + 1}", difference / run_facts["lr"], "of the rate")


def ourselves() -> None:
    """Print the rows that compare ways of computing the same."""
    for precision in ("float32", "float64"):
        for mask_padding in (True, False):
            worst = 0.0
            for size in (1, 2, 3, 6):
                if precision == "float64":
                    with double_precision():
                        worst = max(worst, micro_batch_difference(size, mask_padding))
                else:
                    worst = max(worst, micro_batch_difference(size, mask_padding))
            padding = "masked" if mask_padding else "not masked"
            row(f"micro-batches of 1, 2, 3, 6 of 7, {precision}, padding {padding}", worst, "relative")

    model = trained_model()
    take_steps(model, slice(0, GLOBAL_BATCH))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, str(TESTS / "support" / "training_runs" / "gather_process.py"), "2", folder],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        found = load_file(Path(folder) / "0.safetensors")
    for size in ("whole", "2"):
        worst = max(
            float((found[f"steps-{size}/{name}"] - value).abs().max())
            for name, value in model.state_dict().items()
        )
        ways = "" if size == "whole" else " in micro-batches of 2"
        row(f"two processes{ways}: parameters after 3 steps", worst / 1e-3, "of the rate")
    with double_precision():
        model = trained_model()
        loss_and_gradients(model, random_pairs(model, GLOBAL_BATCH))
        together = {name: found[f"exact-whole/{name}"] for name in gradients(model)}
        worst = largest_relative_difference(together, gradients(model))[0]
    row("two processes: gradients, float64", worst, "relative")


def micro_batch_difference(size: int, mask_padding: bool) -> float:
    """Length of the difference of all gradients over their length."""
    model = small_model(mask_padding=mask_padding)
    batch = random_pairs(model, 7)
    loss_and_gradients(model, batch)
    expected = gradients(model)
    loss_and_gradients(model, batch, micro_batch_size=size)
    return largest_relative_difference(gradients(model), expected)[0]


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| compared | largest difference | |\n| --- | ---: | --- |")
    official()
    ourselves()


if __name__ == "__main__":
    main()
