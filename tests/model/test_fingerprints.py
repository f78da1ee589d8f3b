"""Fingerprints are stored in every index: these values must never change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import XClip, XClipConfig

GOLDENS = Path(__file__).parents[1] / "goldens"

CONFIGS = {
    "all defaults": {},
    "every choice changed": {
        "num_words": 10,
        "num_frames": 3,
        "temporal_layers": 0,
        "mask_padding": False,
        "score_names": ("video_sentence", "frame_word"),
        "aggregation": "mean-max",
        "temperature": 0.5,
        "word_weighting": "inverse-document-frequency",
        "frame_word_sides": "words",
        "vocabulary": (5, 8, 320),
        "pixel_mean": (0.5, 0.25, 0.125),
        "pixel_deviation": (0.5, 0.25, 1.0),
        "description": "is not part of it",
    },
}


def with_known_weights(config: XClipConfig) -> XClip:
    """Each tensor counts in steps of 1/1024, which float32 holds exactly: no random generator takes part."""
    model = XClip(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            counted = torch.arange(tensor.numel()).mul(37).remainder(251).sub(125)
            tensor.copy_(counted.reshape(tensor.shape) / 1024)
    return model


def test_the_shipped_demo_model_has_the_fingerprint_it_was_published_with():
    assert (
        XClip.load("demo", device="cpu").fingerprint
        == "32e341b153d05f183eff9e651d4571158f46ac5e9e630b0afaba99cf927671da"
    )


def test_an_official_checkpoint_keeps_its_fingerprint():
    model = XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu")
    assert model.fingerprint == "ee0023ea3480743f0c19e5395908a513064afada17f1a27feda8e09fd90c914e"


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("all defaults", "fdc6923d7da89b4b39cd2411190d00cc3fcbab1f0bb0d97e76afd1bd677d8537"),
        ("every choice changed", "d2f0f2e439ca29d6f3a952006c8b5164bfc64eaf880c2b0283813133e1e27b36"),
    ],
)
def test_a_configuration_with_known_weights_keeps_its_fingerprint(name, fingerprint):
    assert with_known_weights(XClipConfig.tiny(**CONFIGS[name])).fingerprint == fingerprint
