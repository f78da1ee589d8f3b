"""Optimizers, schedules, freezing and the update that joins them."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.training_runs.training_pairs import gradients, random_pairs, small_model
from training.config import OptimizerChoices
from training.errors import ConfigError
from training.loop.loss import loss_and_gradients
from training.loop.optimizer import (
    GROUP_NAMES,
    BertAdam,
    make_optimizer,
    parameter_groups,
    update,
    warmup_cosine,
    warmup_then_cosine,
)
from training.loop.preparation import freeze

KINDS = ("bert-adam", "adamw")


def reference_bert_adam(
    value: np.ndarray, gradients: list[np.ndarray], lr: float, num_steps: int, warmup: float, decay: float
) -> np.ndarray:
    """The docstring's formulas in float64."""
    m = v = np.zeros_like(value)
    for step, gradient in enumerate(gradients):
        gradient = gradient * min(1.0, 1.0 / (np.linalg.norm(gradient) + 1e-6))
        m, v = 0.9 * m + 0.1 * gradient, 0.98 * v + 0.02 * gradient**2
        rate = lr * (1.0 if num_steps == -1 else warmup_cosine(step / num_steps, warmup))
        value = value - rate * (m / (np.sqrt(v) + 1e-6) + decay * value)
    return value


@pytest.mark.parametrize("num_steps", [-1, 10])
@pytest.mark.parametrize("size", [1e-6, 0.1, 100.0])
def test_bert_adam_follows_its_formulas(num_steps, size):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((3, 4))
    steps = [size * rng.standard_normal((3, 4)) for _ in range(6)]
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = BertAdam([parameter], lr=0.1, num_steps=num_steps, warmup_share=0.3)
    for gradient in steps:
        parameter.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    expected = reference_bert_adam(start, steps, 0.1, num_steps, 0.3, decay=0.2)
    np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-12)


def test_bert_adam_leaves_a_parameter_without_a_gradient_alone():
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = BertAdam([used, unused], lr=0.1)
    used.grad = torch.ones(3)
    optimizer.step()
    assert (used < 1).all() and (unused == 1).all()
    assert unused not in optimizer.state


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_bert_adam_takes_the_same_steps_for_all_tensors_together(device):
    models = [small_model().to(device) for _ in range(2)]
    optimizers = [
        BertAdam(
            parameter_groups(model, OptimizerChoices("bert-adam", 1e-2, 0.1)),
            lr=1e-2,
            num_steps=8,
            foreach=foreach,
        )
        for model, foreach in zip(models, (False, True), strict=True)
    ]
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        for number, pair in enumerate(zip(*(model.parameters() for model in models), strict=True)):
            # Some below the norm of 1, some above; in each step another part of them has none.
            gradient = torch.randn(pair[0].shape, generator=generator) * 10.0 ** (number % 4 - 3)
            for parameter in pair:
                parameter.grad = gradient.clone().to(device) if (number + step) % 5 else None
        for optimizer in optimizers:
            optimizer.step()
    for name, tensor in models[0].state_dict().items():
        # On a processor to the bit; on a GPU the kernels may round differently.
        atol = 0.0 if device == "cpu" else 1e-6
        torch.testing.assert_close(models[1].state_dict()[name], tensor, rtol=0, atol=atol)


def test_bert_adam_evaluates_a_closure_with_gradients():
    parameter = torch.nn.Parameter(torch.tensor(2.0))
    optimizer = BertAdam([parameter], lr=0.1)

    def closure() -> float:
        loss = parameter**2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert parameter < 2


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"weight_decay": -0.1}, {"num_steps": 0}, {"warmup_share": 1.0}]
)
def test_bert_adam_refuses_values_out_of_range(wrong):
    with pytest.raises(ValueError, match="must"):
        BertAdam([torch.nn.Parameter(torch.ones(1))], **{"lr": 0.1, **wrong})


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_optimizer_takes_the_same_steps_to_the_bit(kind):
    def made(model):
        return make_optimizer(model, OptimizerChoices(kind, 1e-2, warmup_share=0.25), num_steps=8)

    def train(model, optimizer, steps):
        for step in steps:
            loss_and_gradients(model, random_pairs(model, 3, seed=step))
            update(model, optimizer)

    through, first = small_model(), small_model()
    train(through, made(through), range(5))
    optimizer = made(first)
    train(first, optimizer, range(2))
    stored = io.BytesIO()
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=True)
    resumed = small_model(seed=9)
    resumed.load_state_dict(loaded["model"])
    optimizer = made(resumed)
    optimizer.load_state_dict(loaded["optimizer"])
    train(resumed, optimizer, range(2, 5))
    for name, tensor in through.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_parts_learn_at_the_rate_and_the_towers_at_their_share_of_it(kind):
    model = small_model()
    optimizer = make_optimizer(model, OptimizerChoices(kind, 1e-2, 0.1, warmup_share=0.5), num_steps=4)
    seen = []
    for _ in range(4):
        seen.append(optimizer.learning_rates())
        loss_and_gradients(model, random_pairs(model, 2))
        update(model, optimizer)
    factors = {"bert-adam": [0, 0.5, 0.5, 0.5 * (1 - math.sqrt(0.5))], "adamw": [0.5, 1, 1, 0.5]}[kind]
    for rates, factor in zip(seen, factors, strict=True):
        assert rates == pytest.approx([1e-3 * factor, 1e-2 * factor, 1e-3 * factor, 1e-2 * factor])


def test_the_first_official_step_with_warm_up_changes_nothing():
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimizerChoices(), num_steps=10)
    loss_and_gradients(model, random_pairs(model, 3))
    update(model, optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_plain_adamw_is_pytorchs_with_a_schedule_next_to_it():
    ours, theirs = small_model(), small_model()
    choices = OptimizerChoices("adamw", 1e-3, 0.1, warmup_share=0.4)
    optimizer = make_optimizer(ours, choices, num_steps=5)
    plain = torch.optim.AdamW(parameter_groups(theirs, choices), betas=(0.9, 0.98), eps=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: warmup_then_cosine(step, 5, 0.4))
    for step in range(4):
        batch = random_pairs(ours, 3, seed=step)
        loss_and_gradients(ours, batch)
        update(ours, optimizer)
        loss_and_gradients(theirs, batch)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        plain.step()
        theirs.clamp_logit_scale()
        schedule.step()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_exactly_one_group(kind):
    model = small_model()
    groups = parameter_groups(model, OptimizerChoices(kind))
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    assert len(groups) == len(GROUP_NAMES)


def test_the_usual_groups_decay_matrices_only():
    model = small_model()
    for group in parameter_groups(model, OptimizerChoices("adamw")):
        assert all((parameter.ndim >= 2) == (group["weight_decay"] > 0) for parameter in group["params"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sgd"},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"clip_learning_rate_factor": math.inf},
        {"weight_decay": -0.1},
        {"warmup_share": 1.0},
    ],
)
def test_an_optimizer_refuses_what_cannot_be_meant(wrong):
    with pytest.raises(ValidationError):
        OptimizerChoices(**wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_of_no_steps_is_refused(kind):
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        make_optimizer(small_model(), OptimizerChoices(kind), num_steps=0)


# Schedules


@pytest.mark.parametrize(
    ("progress", "warmup", "factor"),
    [
        (0.0, 0.1, 0.0),
        (0.05, 0.1, 0.5),
        (0.1, 0.1, 0.5 * (1 + math.cos(0.1 * math.pi))),  # counted from the start: a drop from 1 to 0.976
        (0.5, 0.1, 0.5),
        (1.0, 0.1, 0.0),
        (0.0, 0.0, 1.0),
        (0.0, -1, 1.0),
    ],
)
def test_the_official_schedule_counts_its_cosine_from_the_start(progress, warmup, factor):
    assert warmup_cosine(progress, warmup) == pytest.approx(factor, abs=1e-12)


def test_the_usual_schedule_rises_to_one_and_falls_to_zero():
    factors = [warmup_then_cosine(step, 10, 0.2) for step in range(12)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[10:] == pytest.approx([0.0, 0.0], abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(0, 0.99), st.data())
def test_every_factor_is_within_zero_and_one(num_steps, warmup, data):
    step = data.draw(st.integers(0, num_steps - 1))
    assert 0 <= warmup_cosine(step / num_steps, warmup) <= 1
    assert 0 <= warmup_then_cosine(step, num_steps, warmup) <= 1


# Freezing


def test_minus_one_freezes_nothing_and_gives_back_what_was_frozen():
    model = small_model()
    assert freeze(model, num_layers=0)
    assert freeze(model, num_layers=-1) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_n_freezes_the_first_n_blocks_of_both_towers_too():
    model = small_model()
    below = set(freeze(model, num_layers=0))
    one_block = set(freeze(model, num_layers=1))
    added = one_block - below
    assert below < one_block
    assert {name.split("resblocks.")[1].split(".")[0] for name in added} == {"0"}
    assert {name.split(".resblocks")[0] for name in added} == {
        "clip.transformer",
        "clip.visual.transformer",
    }
    everything = set(freeze(model, num_layers=2))
    learning = {name for name, _ in model.named_parameters()} - everything
    assert {name for name in learning if name.startswith("clip.")} == {
        "clip.logit_scale",
        "clip.text_projection",
        "clip.ln_final.weight",
        "clip.ln_final.bias",
        "clip.visual.proj",
        "clip.visual.ln_post.weight",
        "clip.visual.ln_post.bias",
    }


def test_whole_towers_and_single_parameters_can_stay():
    model = small_model()
    names = [name for name, _ in model.named_parameters()]
    vision = [name for name in names if name.startswith("clip.visual.")]
    assert freeze(model, towers=["vision"]) == vision
    both = freeze(model, towers=["vision", "text"], names=["matrices.local_matrix"])
    assert set(names) - set(both) == {
        name
        for name in names
        if not name.startswith("clip.") or name == "clip.logit_scale"
        if name != "matrices.local_matrix"
    }


@pytest.mark.parametrize(
    "wrong", [{"num_layers": -2}, {"num_layers": 3}, {"towers": ["audio"]}, {"names": ["matrices.lcoal"]}]
)
def test_freezing_refuses_what_the_model_has_not(wrong):
    with pytest.raises(ConfigError):
        freeze(small_model(), **wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_keeps_its_bits_though_the_rest_decays(kind):
    model = small_model()
    frozen = freeze(model, num_layers=1, towers=["text"], names=["matrices.frame"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimizerChoices(kind, 1e-2, 1.0), num_steps=-1)
    loss_and_gradients(model, random_pairs(model, 3))
    update(model, optimizer)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(before) - set(frozen)


# Updates


def test_an_update_clips_all_gradients_together_and_clears_them():
    model, other = small_model(), small_model()
    batch = random_pairs(model, 4)
    for one, bound in ((model, 0.5), (other, 0.0)):
        loss_and_gradients(one, batch)
        length = math.sqrt(sum(float(g.norm()) ** 2 for g in gradients(one).values()))
        sgd = torch.optim.SGD(one.parameters(), lr=1.0)
        before = [parameter.detach().clone() for parameter in one.parameters()]
        assert update(one, sgd, max_gradient_norm=bound) == pytest.approx(length, rel=1e-5)
        moved = [a - b.detach() for a, b in zip(before, one.parameters(), strict=True)]
        moved_length = math.sqrt(sum(float(g.norm()) ** 2 for g in moved))
        assert length > 0.5
        assert moved_length == pytest.approx(bound or length, rel=1e-4)
        assert gradients(one) == {}


def test_an_update_keeps_the_scale_of_the_scores_at_a_hundred():
    model = small_model()
    with torch.no_grad():
        model.clip.logit_scale.fill_(6.0)
    optimizer = make_optimizer(model, OptimizerChoices(), num_steps=-1)
    loss_and_gradients(model, random_pairs(model, 3))
    update(model, optimizer)
    assert model.logit_scale_exp == pytest.approx(100.0)


def test_a_scaler_divides_what_it_multiplied():
    plain, scaled = small_model(), small_model()
    batch = random_pairs(plain, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loss_and_gradients(plain, batch)
    loss_and_gradients(scaled, batch, scaler=scaler)
    torch.testing.assert_close(
        gradients(scaled)["clip.visual.proj"], gradients(plain)["clip.visual.proj"] * 2**10
    )
    norms = [
        update(plain, make_optimizer(plain, OptimizerChoices(), -1)),
        update(scaled, make_optimizer(scaled, OptimizerChoices(), -1), scaler=scaler),
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(scaled.state_dict()[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_with_an_infinite_gradient_is_skipped_and_the_scale_halved(kind):
    model = small_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, OptimizerChoices(kind, warmup_share=0.5), num_steps=10)
    rates = optimizer.learning_rates()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    loss_and_gradients(model, random_pairs(model, 3), scaler=scaler)
    model.matrices.word.grad[0, 0] = math.inf
    assert not math.isfinite(update(model, optimizer, scaler=scaler))
    assert scaler.get_scale() == 2.0**9
    assert optimizer.learning_rates() == rates
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
