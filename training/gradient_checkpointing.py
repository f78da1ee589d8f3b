"""Memory for time: what the backward pass needs is computed again instead of kept."""

from __future__ import annotations

from model import XClip


def checkpoint_activations(model: XClip, enabled: bool = True) -> None:
    """Keep only the input of each transformer block, of both towers and the temporal transformer.

    Gradients are the same; a step costs one more forward pass of the blocks (Chen et al. 2016,
    arXiv:1604.06174). It is not part of the weights or the config: set it for each run.
    """
    model.clip.set_grad_checkpointing(enabled)
    if model.temporal is not None:
        model.temporal.grad_checkpointing = enabled
