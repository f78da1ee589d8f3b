"""The towers of a model as something to convert: modules from one tensor to tensors, and probes."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import XClipConfig
from model.tokenization import TextTokenizer
from model.towers import encode_positions, text_tower

if TYPE_CHECKING:
    from model.runtimes.tower_kernels import TextKernel, VisionKernel

TEXT_TOLERANCE = math.sqrt(2 * (1 - 0.99999))
"""Longest difference between a unit vector of a text and PyTorch's: a cosine of 0.99999. Weights in float16
give 0.9999998."""

FRAME_TOLERANCE = 2e-4
"""The same for frames, which are stored, and meet those that PyTorch computed: what rounding to float16
changes a unit vector by in the store. CLIP's kernel changes it by less (`python -m benchmarks.towers` with
`--clips`), and OpenVINO, in float32 like PyTorch, sums in another order."""

BFLOAT16_TOLERANCE = math.sqrt(2 * (1 - 0.99))
"""The same for frames that are computed in bfloat16: a cosine of 0.99, without which something is wrong. They
meet no others."""

PROBE_TEXTS = (
    "a dog",
    "two people ride bicycles on a narrow road between green fields while it begins to rain",
    "A red car moves to the left!",
    "close-up of hands that fold a sheet of paper 3 times",
)
"""Of different lengths: what the tracer took for constant shows."""


@dataclass(frozen=True)
class Tower:
    """A tower, and what its conversion needs to know.

    Attributes:
        name: For messages.
        module: From one tensor to a tuple of tensors [..., D]; in evaluation mode, on the CPU.
        shape: Of its inputs, -1 where any length may come.
        probes: Makes the inputs with which a conversion is traced (the first) and checked (all).
        tolerance: Longest difference of unit vectors between PyTorch and a conversion.
        half: Whether weights may be rounded to float16. A single text takes as long as its weights take to
            be read, so that half the bytes are half the time; frames gain nothing.
        bfloat16: Whether it is computed in bfloat16. PyTorch cannot stand in then: its features are others.
        kernel: Makes the kernel that computes it, or None where it is of another kind than the kernel's.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    probes: Callable[[], list[Tensor]]
    tolerance: float
    half: bool
    bfloat16: bool = False
    kernel: Callable[[], TextKernel | VisionKernel | None] | None = None

    @property
    def num_parameters(self) -> int:
        """Weights of the tower. CLIP keeps the vision tower within what holds the parts of the text tower."""
        parameters = self.module.named_parameters()
        return sum(weight.numel() for name, weight in parameters if not name.startswith("tower.visual."))


def text_to_convert(clip: nn.Module, config: XClipConfig, tokenizer: TextTokenizer) -> Tower:
    """The text tower: from token ids, int64 [T, L], to what `encode_positions` makes of them."""
    architecture = config.architecture
    reads_padding = architecture.reads_padding
    text = text_tower(clip)

    def kernel() -> TextKernel | None:
        from model.runtimes.tower_kernels import TextKernel, has_text_kernel

        if not has_text_kernel(text, architecture):
            return None
        return TextKernel(text, architecture, tokenizer, skips_padding=config.mask_padding)

    def probes() -> list[Tensor]:
        ids = tokenizer(PROBE_TEXTS)
        if reads_padding:
            return [ids[:2], ids, ids[:1]]
        lengths = tokenizer.mask(ids).sum(dim=1).tolist()
        short, longest = lengths[0], max(lengths)
        return [ids[2:, : max(lengths[2:])], ids[:, :longest], ids[:1, :short]]

    return Tower(
        name="text",
        module=_Text(text, architecture),
        shape=(-1, config.num_tokens if reads_padding else -1),
        probes=probes,
        tolerance=TEXT_TOLERANCE,
        half=True,
        kernel=kernel,
    )


def vision_to_convert(clip: nn.Module, config: XClipConfig, bfloat16: bool = False) -> Tower:
    """The vision tower: from normalised pixels, float [N, 3, R, R], to frames, float [N, D].

    bfloat16: compute them in bfloat16.
    """
    size, visual = config.image_size, cast(nn.Module, clip.visual)

    def kernel() -> VisionKernel | None:
        from model.runtimes.tower_kernels import VisionKernel, has_vision_kernel

        return VisionKernel(visual) if has_vision_kernel(visual) else None

    def probes() -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        # From coarse to fine, as pictures have both; three standard deviations are all that pixels reach.
        drawn = [
            functional.interpolate(
                torch.randn(2, 3, side, side, generator=generator), (size, size), mode="bicubic"
            )
            for side in (3, 16, size)
        ]
        pictures = torch.cat(drawn).clamp(-3, 3)
        return [pictures[::3], pictures, pictures[:1]]

    return Tower(
        name="vision",
        module=_Vision(visual),
        shape=(-1, 3, size, size),
        probes=probes,
        tolerance=BFLOAT16_TOLERANCE if bfloat16 else FRAME_TOLERANCE,
        half=False,
        bfloat16=bfloat16,
        kernel=None if bfloat16 else kernel,
    )


class _Text(nn.Module):
    def __init__(self, tower: Any, architecture: Any) -> None:
        super().__init__()
        self.tower = tower
        self.architecture = architecture

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        return encode_positions(self.tower, self.architecture, input_ids)


class _Vision(nn.Module):
    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        return (self.tower(pixels),)


# Attention


def with_plain_attention(module: nn.Module) -> nn.Module:
    """The module with `PlainAttention` for each `nn.MultiheadAttention`; a copy that shares its weights."""
    weights = itertools.chain(module.parameters(), module.buffers())
    changed = copy.deepcopy(module, {id(weight): weight for weight in weights})
    for parent in list(changed.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.MultiheadAttention and _is_of_one_source(child):
                setattr(parent, name, PlainAttention(child))
    return changed


def _is_of_one_source(attention: nn.MultiheadAttention) -> bool:
    """Whether it is as CLIP's towers have it: batch first, one matrix for query, key and value, no extras."""
    return (
        attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


class PlainAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself, without the eight transpositions that the tracer
    sees in it: query, key and value are cut from one product, and of each the heads are moved once."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, attn_mask: Tensor | None = None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`, without weights where they are not needed; of float [N, L, D]."""
        inner = self.attention
        is_usual = query is key is value and options == {"need_weights": False}
        if attn_mask is not None:  # One of numbers to add, for all heads of all sequences.
            is_usual &= attn_mask.is_floating_point() and attn_mask.ndim == 2
        if not is_usual:
            attended: tuple[Tensor, Tensor | None] = inner(query, key, value, attn_mask=attn_mask, **options)
            return attended
        num_texts, length, dimension = query.shape
        shape = (num_texts, length, inner.num_heads, dimension // inner.num_heads)
        projected = functional.linear(query, inner.in_proj_weight, inner.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.view(shape).transpose(1, 2) for part in projected)  # [N, H, L, D / H]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return inner.out_proj(mixed.transpose(1, 2).reshape(num_texts, length, dimension)), None
