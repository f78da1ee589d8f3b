"""The contrastive loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(scores: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy with the diagonal as the truth (arXiv:2207.07285 equation 11).

    scores: float [N, N], scaled, text t belongs to video t; every other item in the batch is a negative.
    ignore: bool [N, N], true for pairs that are neither: a caption that another video satisfies too.
        The diagonal must be false. Returns a scalar.
    """
    if ignore is not None:
        scores = scores.masked_fill(ignore, float("-inf"))
    targets = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, targets) + functional.cross_entropy(scores.T, targets)) / 2
