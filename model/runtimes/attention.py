"""Attention in the words of a converter: fewer operations for the same numbers."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from torch import Tensor, nn
from torch.nn import functional


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
