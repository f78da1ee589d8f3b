"""The contrastive loss and its gradients: of the whole batch, however few pairs are encoded together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import VideoFeatures, XClip, XClipConfig
from tests.support.training_runs.training_pairs import (
    Pairs,
    double_precision,
    gradients,
    largest_relative_difference,
    random_pairs,
    small_model,
)
from training.config import OptimizerChoices
from training.errors import ConfigError
from training.loop.loss import contrastive_loss, loss_and_gradients
from training.loop.optimizer import make_optimizer, update
from training.loop.preparation import checkpoint_activations, freeze

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_the_loss_of_the_true_vit_b32_shape_equals_the_official_one():
    with np.load(GOLDENS / "b32_outputs.npz") as stored:
        logits = torch.from_numpy(stored["logits"])
    paired = logits[: logits.shape[1]]
    expected = json.loads((GOLDENS / "b32.json").read_text())["loss"]
    assert contrastive_loss(paired).item() == pytest.approx(expected, rel=1e-5)


def test_loss_and_gradient_norms_in_training_mode_equal_the_official_ones():
    facts = json.loads((GOLDENS / "tiny_train.json").read_text())
    with np.load(GOLDENS / "tiny_inputs.npz") as stored:
        inputs = {name: torch.from_numpy(stored[name]) for name in stored.files}
    model = XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu").train()
    num_videos = len(inputs["pixel_values"])
    text = model.encode_tokens(inputs["input_ids"][:num_videos])
    video = model.encode_video(inputs["pixel_values"], inputs["video_mask"])
    loss = contrastive_loss(model.score(text, video).total)
    loss.backward()
    assert loss.item() == pytest.approx(facts["loss"], rel=1e-5)
    from model.checkpoints.official import official_name

    norms = {
        official_name(name): 0.0 if parameter.grad is None else parameter.grad.norm().item()
        for name, parameter in model.named_parameters()
    }
    for name, expected in facts["grad_norm_per_parameter"].items():
        assert norms[name] == pytest.approx(expected, rel=1e-4, abs=1e-7), name


def test_an_ignored_pair_changes_nothing_whatever_its_score():
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    ignore = torch.zeros(4, 4, dtype=torch.bool)
    ignore[0, 2] = True
    louder = scores.clone()
    louder[0, 2] = 50.0
    assert contrastive_loss(scores, ignore) == contrastive_loss(louder, ignore)
    assert contrastive_loss(scores) != contrastive_loss(louder)


NUM_PAIRS = 7


def plain_loss(model: XClip, batch: Pairs) -> torch.Tensor:
    """The loss as one would write it down."""
    text = model.encode_tokens(torch.from_numpy(batch.input_ids))
    video = model.encode_video(model.normalize_pixels(batch.pixels), torch.from_numpy(batch.frame_mask))
    return contrastive_loss(model.score(text, video).total)


@pytest.mark.parametrize("mask_padding", [True, False])
def test_loss_and_gradients_are_those_of_plain_autograd(mask_padding):
    model = small_model(mask_padding=mask_padding)
    batch = random_pairs(model, NUM_PAIRS)
    loss = loss_and_gradients(model, batch)
    found = gradients(model)
    model.zero_grad()
    expected = plain_loss(model, batch)
    expected.backward()
    assert loss == expected.item()
    assert all(torch.equal(found[name], p.grad) for name, p in model.named_parameters())


@pytest.mark.parametrize("mask_padding", [True, False])
def test_any_micro_batch_gives_the_gradients_of_the_whole_batch(mask_padding):
    with double_precision():
        model = small_model(mask_padding=mask_padding)
        batch = random_pairs(model, NUM_PAIRS)
        loss = loss_and_gradients(model, batch)
        expected = gradients(model)
        assert all(gradient.abs().sum() > 0 for gradient in expected.values())
        for size in (1, 2, 3, 6, 7, 100):
            assert loss_and_gradients(model, batch, micro_batch_size=size) == pytest.approx(loss, rel=1e-12)
            assert max(largest_relative_difference(gradients(model), expected)) < 1e-11, size


@pytest.mark.parametrize("mask_padding", [True, False])
def test_in_single_precision_a_micro_batch_is_a_rounding_away(mask_padding):
    model = small_model(mask_padding=mask_padding)
    batch = random_pairs(model, NUM_PAIRS)
    loss = loss_and_gradients(model, batch)
    expected = gradients(model)
    for size in (1, 3):
        assert loss_and_gradients(model, batch, micro_batch_size=size) == pytest.approx(loss, rel=1e-6)
        assert largest_relative_difference(gradients(model), expected)[0] < 1e-5


def test_gradients_replace_those_of_the_last_batch():
    model = small_model()
    loss_and_gradients(model, random_pairs(model, 3))
    first = gradients(model)
    loss_and_gradients(model, random_pairs(model, 3, seed=1))
    loss_and_gradients(model, random_pairs(model, 3))
    assert all(torch.equal(gradient, first[name]) for name, gradient in gradients(model).items())


def test_gradients_descend():
    model = small_model()
    batch = random_pairs(model, NUM_PAIRS)
    optimizer = make_optimizer(model, OptimizerChoices("bert-adam", 3e-3, 1.0), num_steps=-1)
    losses = []
    for _ in range(15):
        losses.append(loss_and_gradients(model, batch, micro_batch_size=3))
        update(model, optimizer)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("towers", [["vision"], ["text"], ["vision", "text"]])
def test_frozen_towers_get_no_gradient_and_change_no_other(towers):
    with double_precision():
        model = small_model(mask_padding=False)
        batch = random_pairs(model, NUM_PAIRS)
        loss_and_gradients(model, batch)
        everything = gradients(model)
        frozen = freeze(model, towers=towers)
        for size in (None, 2):
            loss_and_gradients(model, batch, micro_batch_size=size)
            found = gradients(model)
            assert set(found) == set(everything) - set(frozen)
            assert max(largest_relative_difference(found, {n: everything[n] for n in found})) < 1e-11


def test_parts_that_the_configuration_does_not_use_have_no_gradient():
    model = small_model(score_names=("video_sentence",))
    batch = random_pairs(model, NUM_PAIRS)
    for size in (None, 2):
        loss_and_gradients(model, batch, micro_batch_size=size)
        assert {name for name in gradients(model) if name.startswith("matrices.")} == {
            "matrices.global_matrix"
        }


@pytest.mark.parametrize("mask_padding", [True, False])
def test_features_of_a_frozen_vision_tower_stand_for_its_pixels(mask_padding):
    with double_precision():
        model = small_model(mask_padding=mask_padding)
        freeze(model, towers=["vision"])
        batch = random_pairs(model, NUM_PAIRS)
        loss = loss_and_gradients(model, batch)
        expected = gradients(model)
        with torch.no_grad():
            pixels = model.normalize_pixels(batch.pixels).flatten(0, 1)
            features = model.clip.visual(pixels).reshape(NUM_PAIRS, model.config.num_frames, -1).numpy()
        features[~batch.frame_mask] = 99.0  # what stands in padding frames does not matter
        cached = Pairs(batch.input_ids, batch.frame_mask, frame_features=features)
        for size in (None, 3):
            assert loss_and_gradients(model, cached, micro_batch_size=size) == pytest.approx(loss, rel=1e-12)
            assert max(largest_relative_difference(gradients(model), expected)) < 1e-11


def test_tensors_serve_as_well_as_arrays():
    model = small_model()
    batch = random_pairs(model, 3)
    loss = loss_and_gradients(model, batch)
    as_tensors = Pairs(*(torch.from_numpy(a) for a in (batch.input_ids, batch.frame_mask, batch.pixels)))
    assert loss_and_gradients(model, as_tensors) == loss


def test_the_second_encoding_draws_the_random_numbers_of_the_first():
    config = XClipConfig.tiny(num_words=10, num_frames=4, vocabulary=tuple(range(200)))
    vision = {**config.clip["vision_cfg"], "image_size": 64, "patch_dropout": 0.5}
    with double_precision():
        torch.manual_seed(0)
        model = XClip(replace(config, clip={**config.clip, "vision_cfg": vision})).train()
        batch = random_pairs(model, 4)
        assert len({loss_and_gradients(model, batch) for _ in range(3)}) == 3  # patches are dropped
        state = torch.get_rng_state()
        loss = loss_and_gradients(model, batch, micro_batch_size=1)
        found, after = gradients(model), torch.get_rng_state()
        model.zero_grad()
        torch.set_rng_state(state)
        pixels, mask = model.normalize_pixels(batch.pixels), torch.from_numpy(batch.frame_mask)
        video = [model.encode_video(pixels[n : n + 1], mask[n : n + 1]) for n in range(4)]
        text = model.encode_tokens(torch.from_numpy(batch.input_ids))
        expected = contrastive_loss(model.score(text, VideoFeatures.cat(video)).total)
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-12)
        assert max(largest_relative_difference(found, gradients(model))) < 1e-11
        assert torch.equal(torch.get_rng_state(), after)


# Precision


NUM_ROUNDINGS = 40
"""Roundings in series on the longest way from a pixel or token through loss and gradient of the small network
(two towers of one block, about ten half-precision operations each, forwards and backwards). Each is off by at
most the unit roundoff, so the whole by at most this many of them, on whatever processor."""


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_and_its_micro_batches_nearer(precision):
    model = small_model()
    batch = random_pairs(model, NUM_PAIRS)
    loss = loss_and_gradients(model, batch)
    expected = gradients(model)
    unit_roundoff = torch.finfo(getattr(torch, precision)).eps / 2
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8) if precision == "float16" else None

    def descaled() -> dict[str, torch.Tensor]:
        scale = scaler.get_scale() if scaler else 1.0
        return {name: gradient / scale for name, gradient in gradients(model).items()}

    half = loss_and_gradients(model, batch, precision=precision, scaler=scaler)
    found = descaled()
    assert half != loss and half == pytest.approx(loss, rel=NUM_ROUNDINGS * unit_roundoff)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    apart = largest_relative_difference(found, expected)[0]
    assert 0 < apart < NUM_ROUNDINGS * unit_roundoff
    small = loss_and_gradients(model, batch, precision=precision, scaler=scaler, micro_batch_size=2)
    assert small == pytest.approx(half, rel=NUM_ROUNDINGS * unit_roundoff)
    # Both round the same sums, only in the order of kernels for other shapes: most of each error is shared.
    assert largest_relative_difference(descaled(), found)[0] < apart


def test_scores_are_computed_in_single_precision_whatever_the_encoders_do(monkeypatch):
    model = small_model()
    seen = []
    score = model.score

    def watched(text, video):
        seen.append((text.words.dtype, video.frames.dtype, torch.is_autocast_enabled("cpu")))
        return score(text, video)

    monkeypatch.setattr(model, "score", watched)
    for size in (None, 2):
        loss_and_gradients(model, random_pairs(model, 4), precision="bfloat16", micro_batch_size=size)
    assert seen == [(torch.float32, torch.float32, False)] * 2


# Checkpointing of activations


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_checkpointed_activations_give_the_same_gradients_from_computing_twice(micro_batch_size):
    model = small_model()
    batch = random_pairs(model, NUM_PAIRS)
    loss = loss_and_gradients(model, batch, micro_batch_size=micro_batch_size)
    expected = gradients(model)
    blocks = [
        model.clip.visual.transformer.resblocks[0],
        model.clip.transformer.resblocks[0],
        model.temporal.resblocks[0],
    ]
    runs = [0, 0, 0]
    for number, block in enumerate(blocks):

        def count(module, inputs, number=number):
            runs[number] += torch.is_grad_enabled()

        block.register_forward_pre_hook(count)
    loss_and_gradients(model, batch, micro_batch_size=micro_batch_size)
    once = list(runs)
    checkpoint_activations(model)
    assert loss_and_gradients(model, batch, micro_batch_size=micro_batch_size) == loss
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(model).items())
    assert [run - first for run, first in zip(runs, once, strict=True)] == [2 * first for first in once]
    checkpoint_activations(model, enabled=False)
    loss_and_gradients(model, batch, micro_batch_size=micro_batch_size)
    assert [run - 3 * first for run, first in zip(runs, once, strict=True)] == once


def test_checkpointed_activations_are_for_training_alone():
    model = small_model()
    batch = random_pairs(model, 2)
    checkpoint_activations(model)
    model.eval()
    video = model.encode_video(model.normalize_pixels(batch.pixels), torch.from_numpy(batch.frame_mask))
    assert not video.video.requires_grad


# Wrong use


def test_a_batch_must_have_one_kind_of_frames_and_micro_batches_a_pair():
    model = small_model()
    batch = random_pairs(model, 2)
    with pytest.raises(ConfigError, match="at least 1"):
        loss_and_gradients(model, batch, micro_batch_size=0)
    features = np.zeros((2, model.config.num_frames, model.config.embedding_dim), np.float32)
    for wrong in (replace(batch, frame_features=features), replace(batch, pixels=None)):
        with pytest.raises(ConfigError, match="either"):
            loss_and_gradients(model, wrong)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "apart"), [("float32", 0.02), ("bfloat16", 0.2), ("float16", 0.05)])
def test_a_gpu_finds_the_gradients_of_the_processor(precision, apart):
    model, on_gpu = small_model(), small_model().to("cuda")
    batch = random_pairs(model, NUM_PAIRS)
    loss = loss_and_gradients(model, batch)
    for size in (None, 3):
        found_loss = loss_and_gradients(on_gpu, batch, precision=precision, micro_batch_size=size)
        found = {name: gradient.cpu() for name, gradient in gradients(on_gpu).items()}
        assert found_loss == pytest.approx(loss, rel=0.02)
        assert largest_relative_difference(found, gradients(model))[0] < apart
