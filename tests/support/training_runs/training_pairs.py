"""Small models and batches of pairs for the tests of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from model import XClip, XClipConfig


@dataclass(frozen=True)
class Pairs:
    """N texts, each with its video."""

    input_ids: NDArray[np.int64]
    frame_mask: NDArray[np.bool_]
    pixels: NDArray[np.uint8] | None = None
    frame_features: NDArray[np.float32] | None = None

    def __getitem__(self, rows: slice) -> Pairs:
        return Pairs(
            self.input_ids[rows],
            self.frame_mask[rows],
            None if self.pixels is None else self.pixels[rows],
            None if self.frame_features is None else self.frame_features[rows],
        )


def small_model(seed: int = 0, **changes: object) -> XClip:
    """A network of about 110 thousand weights in training mode, its AOSM matrices away from the identity."""
    config = XClipConfig.tiny(
        num_words=10, num_frames=4, temporal_layers=2, vocabulary=tuple(range(200)), **changes
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = XClip(config)
        with torch.no_grad():
            for matrix in model.matrices.parameters():
                matrix.add_(0.05 * torch.randn_like(matrix))
    return model.train()


def random_pairs(model: XClip, num_pairs: int, seed: int = 0) -> Pairs:
    """Texts of 1 to W - 2 tokens with videos of 1 to F frames of noise."""
    rng = np.random.default_rng(seed)
    num_words, num_frames, side = model.config.num_words, model.config.num_frames, model.config.image_size
    size = model.clip.token_embedding.num_embeddings
    input_ids = np.zeros((num_pairs, num_words), np.int64)
    frame_mask = np.zeros((num_pairs, num_frames), np.bool_)
    for pair in range(num_pairs):
        length = int(rng.integers(1, num_words - 1))
        input_ids[pair, 0] = size - 2
        input_ids[pair, 1 : length + 1] = rng.integers(1, size - 2, length)
        input_ids[pair, length + 1] = size - 1
        frame_mask[pair, : int(rng.integers(1, num_frames + 1))] = True
    pixels = rng.integers(0, 256, (num_pairs, num_frames, side, side, 3), np.uint8)
    pixels[~frame_mask] = 0
    return Pairs(input_ids, frame_mask, pixels)


def gradients(model: XClip) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_relative_difference(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> tuple[float, float]:
    """Length of the difference over length: of all tensors as one vector, and the worst tensor."""
    assert found.keys() == expected.keys()
    apart = {name: float((found[name] - expected[name]).norm()) for name in expected}
    length = {name: float(expected[name].norm()) for name in expected}
    together = np.hypot.reduce(list(apart.values())) / np.hypot.reduce(list(length.values()))
    return float(together), max(apart[name] / length[name] for name in expected if length[name] > 0)


@contextmanager
def double_precision() -> Iterator[None]:
    """Everything in float64, the casts to float32 too.

    What is equal by the chain rule is equal to 1e-12 here, where float32 would need a looser tolerance.
    """
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
