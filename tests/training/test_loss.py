from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model import XClip
from training.loop.loss import contrastive_loss

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
