"""The temporal transformer: frames of one video attend to each other (the official `seqTransf`)."""

from __future__ import annotations

from functools import partial

import torch
from open_clip.transformer import LayerNorm, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

MASKED_LOGIT = -1e6
"""Added to the attention logits of padding frames (official modules/modeling.py)."""


class TemporalTransformer(nn.Module):
    """Position embeddings, residual attention blocks, and one outer residual; no final LayerNorm.

    LayerNorm epsilon is 1e-12 here and 1e-5 in the towers (official modules/module_cross.py).

    Attributes:
        grad_checkpointing: Keep only each block's input for the backward pass and compute the rest again;
            named as in open_clip's transformers.
    """

    def __init__(self, width: int, num_layers: int, num_heads: int, context_length: int) -> None:
        super().__init__()
        self.frame_position_embeddings = nn.Embedding(context_length, width)
        self.resblocks = nn.ModuleList(
            ResidualAttentionBlock(
                width, num_heads, act_layer=QuickGELU, norm_layer=partial(LayerNorm, eps=1e-12)
            )
            for _ in range(num_layers)
        )
        self.num_heads = num_heads
        self.grad_checkpointing = False
        nn.init.normal_(self.frame_position_embeddings.weight, std=0.01)
        # CLIP's own initialisation of its text tower (openai/CLIP clip/model.py).
        stds = {
            "attn.in_proj_weight": width**-0.5,
            "attn.out_proj.weight": width**-0.5 * (2 * num_layers) ** -0.5,
            "mlp.c_fc.weight": (2 * width) ** -0.5,
            "mlp.c_proj.weight": width**-0.5 * (2 * num_layers) ** -0.5,
        }
        for block in self.resblocks:
            for name, parameter in block.named_parameters():
                if name in stds:
                    nn.init.normal_(parameter, std=stds[name])

    @torch.no_grad()
    def start_without_effect(self) -> None:
        """Let each block add nothing at first, so that frames keep their directions but for the positions.

        The last layer of each residual branch becomes zero; the others stay random, so that it learns at
        once.
        """
        for block in self.resblocks:
            for name, parameter in block.named_parameters():
                if name.startswith(("attn.out_proj.", "mlp.c_proj.")):
                    nn.init.zeros_(parameter)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Frames that have seen the others.

        Args:
            frames: float [V, F, D], not normalised.
            frame_mask: bool [V, F], true for real frames.

        Returns:
            float [V, F, D].
        """
        num_videos, num_frames, _ = frames.shape
        key_mask = torch.zeros(frame_mask.shape, dtype=frames.dtype, device=frames.device)
        key_mask = key_mask.masked_fill(~frame_mask, MASKED_LOGIT)  # [V, F]
        key_mask = key_mask[:, None, None, :].expand(-1, self.num_heads, num_frames, -1)
        key_mask = key_mask.reshape(num_videos * self.num_heads, num_frames, num_frames)
        x = frames + self.frame_position_embeddings.weight[:num_frames]  # [V, F, D]
        for block in self.resblocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, attn_mask=key_mask, use_reentrant=False)
            else:
                x = block(x, attn_mask=key_mask)
        out: Tensor = x + frames  # the outer residual of the official `seqTransf`
        return out


def pool_frames(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """Video feature: each frame to unit length, mean over the real ones, unit length again.

    Args:
        frames: float [V, F, D].
        frame_mask: bool [V, F], at least one true per row.

    Returns:
        float [V, D].
    """
    unit = normalize_real(frames, frame_mask)
    mean = unit.sum(dim=1) / frame_mask.sum(dim=1, keepdim=True)
    pooled: Tensor = mean / mean.norm(dim=-1, keepdim=True)
    return pooled


def normalize_real(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """Real frames to unit length, padding to zeros.

    Args:
        frames: float [V, F, D].
        frame_mask: bool [V, F], true for real frames.

    Returns:
        float [V, F, D].
    """
    padding = ~frame_mask[..., None]
    # Padding may be all zeros: its length is not divided by, so that neither value nor gradient is NaN. A
    # mask after the division alone would not do: 0 times an infinite gradient is NaN.
    frames = frames.masked_fill(padding, 1.0)
    unit: Tensor = (frames / frames.norm(dim=-1, keepdim=True)).masked_fill(padding, 0.0)
    return unit
