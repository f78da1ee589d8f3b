"""Training equals the official code on its own arrays (github.com/xuguohai/X-CLIP, commit 6b5344f)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model import XClip
from model.checkpoints.official import official_name, our_name
from tests.support.training_runs.training_pairs import Pairs
from training.config import OptimizerChoices
from training.loop.loss import loss_and_gradients
from training.loop.optimizer import make_optimizer, parameter_groups, update
from training.loop.preparation import freeze

GOLDENS = Path(__file__).parents[1] / "goldens"
FACTS = json.loads((GOLDENS / "tiny_train.json").read_text())
GROUPS = ("clip_decay", "noclip_decay", "clip_nodecay", "noclip_nodecay")


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDENS / name) as stored:
        return dict(stored)


ARRAYS = arrays("tiny_train.npz")


def fresh_model() -> XClip:
    return XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu").train()


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    inputs = arrays("tiny_inputs.npz")
    num_videos = len(inputs["frames_rgb_u8"])
    return Pairs(inputs["input_ids"][:num_videos], inputs["video_mask"].astype(bool), inputs["frames_rgb_u8"])


def stored(prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Our name and the official value of what is stored under a prefix; of [D, D] only the first 8 rows."""
    names = [name for name in ARRAYS if name.startswith(prefix)]
    assert len(names) >= 10
    for name in names:
        ours = our_name(name.removeprefix(prefix))
        assert ours is not None
        yield ours, ARRAYS[name]


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_loss_and_gradients_equal_the_official_ones(pairs, micro_batch_size):
    model = fresh_model()
    loss = loss_and_gradients(model, pairs, micro_batch_size=micro_batch_size)
    assert loss == pytest.approx(FACTS["loss"], rel=1e-5)
    norms = {official_name(name): float(p.grad.norm()) for name, p in model.named_parameters()}
    assert norms == pytest.approx(FACTS["grad_norm_per_parameter"], rel=1e-4)
    parameters = dict(model.named_parameters())
    for name, expected in stored("grad/"):
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(parameters[name].grad, expected, rtol=1e-4, atol=atol, err_msg=name)


def test_parameters_fall_into_the_official_groups_with_the_official_gradient_norms(pairs):
    model = fresh_model()
    loss_and_gradients(model, pairs)
    names = {id(parameter): official_name(name) for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerChoices())
    for name, group in zip(GROUPS, groups, strict=True):
        assert {names[id(p)] for p in group["params"]} == set(FACTS["param_groups"][name])
        assert group["weight_decay"] == (0.0 if "nodecay" in name else 0.2)
        norm = np.sqrt(sum(float(p.grad.norm()) ** 2 for p in group["params"]))
        assert norm == pytest.approx(FACTS["grad_norm_per_group_unfrozen"][name], rel=1e-4)


def test_the_official_scripts_freeze_the_same_parameters():
    frozen = freeze(fresh_model(), num_layers=0)
    assert {official_name(name) for name in frozen} == set(FACTS["frozen_parameters"])


def official_choices(facts: dict) -> OptimizerChoices:
    return OptimizerChoices(
        "bert-adam",
        facts["lr"],
        facts["coef_lr"],
        weight_decay=facts.get("weight_decay", 0.2),
        warmup_share=max(0.0, facts.get("warmup", 0.1)),
    )


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("run", ["sched", "const"])
def test_every_step_equals_the_official_one(pairs, run, micro_batch_size):
    facts = FACTS[f"optimizer_{run}"]
    *steps, last = facts["steps"]
    model = fresh_model()
    freeze(model, num_layers=0)
    optimizer = make_optimizer(model, official_choices(facts), num_steps=facts["t_total"])
    assert len(steps) == (3 if run == "sched" else 1)
    for step in steps:
        loss = loss_and_gradients(model, pairs, micro_batch_size=micro_batch_size)
        assert loss == pytest.approx(step["loss"], rel=1e-5)
        assert [group["lr"] for group in optimizer.param_groups] == step["group_base_lr"]
        assert update(model, optimizer) == pytest.approx(step["global_grad_norm_before_clip"], rel=1e-4)
        assert model.clip.logit_scale.item() == pytest.approx(step["logit_scale_after"], abs=1e-6)
        parameters = dict(model.named_parameters())
        for name, expected in stored(f"{run}/step{step['step']}/"):
            found = parameters[name].detach()[: len(expected)] if expected.ndim else parameters[name].detach()
            # 1 % of the rate; what rounding alone can do is under 0.2 % of it.
            np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * facts["lr"], err_msg=name)
    assert loss_and_gradients(model, pairs) == pytest.approx(last["loss_after_last_step"], rel=1e-4)


def test_a_step_at_a_thousandfold_rate_equals_the_official_one(pairs):
    facts = FACTS["optimizer_biglr"]
    model = fresh_model()
    freeze(model, num_layers=0)
    optimizer = make_optimizer(model, official_choices(facts), num_steps=facts["t_total"])
    loss_and_gradients(model, pairs)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()  # alone: logit_scale was not clamped in this run
    parameters = dict(model.named_parameters())
    for name, expected in stored("biglr/step0/"):
        found = parameters[name].detach()[: len(expected)] if expected.ndim else parameters[name].detach()
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * facts["lr"], err_msg=name)
