"""From many similarities to one: attention over the similarity matrix (AOSM) and what it is compared with.

Attention (arXiv:2207.07285 section 3.3): weights come from a softmax of the similarities at a temperature,
are multiplied by a learned matrix from the right and not normalised again:
score = sum_j (sum_i a_i W[i, j]) c_j. That equals sum_i a_i (W c)_i. With W the identity it approaches the
maximum as the temperature falls to 0, and the mean as it grows.

The paper's table 7 compares it with four aggregations without parameters. Their names are read from the
outside in: "mean-max", for which the paper cites FILIP and ColBERT, is the mean of the maxima. A similarity
matrix, words by frames, is reduced twice, first by the inner reduction and then by the outer one. The
similarity vectors of the cross-grained scores have one dimension, and the outer one reduces it: a vector is
what the first step leaves of a matrix. The paper does not say how the names apply to vectors; that part is
our reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from torch import Tensor

from model.score_names import DEFAULT_TEMPERATURE, Aggregation

Reduction = Literal["attention", "max", "mean"]

REDUCTIONS: Mapping[Aggregation, tuple[Reduction, Reduction]] = MappingProxyType(
    {
        "attention": ("attention", "attention"),
        "max-max": ("max", "max"),
        "mean-mean": ("mean", "mean"),
        "mean-max": ("max", "mean"),
        "max-mean": ("mean", "max"),
    }
)
"""The inner and the outer reduction of each aggregation: the name says the outer one first."""


def attend(
    similarity: Tensor,
    matrix: Tensor,
    mask: Tensor | None,
    dim: int,
    temperature: float = DEFAULT_TEMPERATURE,
) -> Tensor:
    """AOSM: reduce dimension `dim` of `similarity` to one value (section 3.3 of the paper).

    Args:
        similarity: float, any shape.
        matrix: float [N, N] with N the size of `dim`.
        mask: bool, broadcastable to `similarity`, or None. Masked entries take no part; where all are masked
            the result is 0.
        dim: 1 or the last.
        temperature: Above 0.

    >>> import torch
    >>> attend(torch.tensor([[0.1, 0.9]]), torch.eye(2), None, dim=1)
    tensor([0.9000])
    """
    if mask is None:
        attention = (similarity / temperature).softmax(dim)
    else:
        attention = (similarity / temperature).masked_fill(~mask, float("-inf")).softmax(dim)
        # A softmax over nothing is NaN; nothing is what it weighs.
        attention = attention.masked_fill(~mask, 0.0)
        similarity = similarity.masked_fill(~mask, 0.0)
    # The matrix goes to the similarities, not to the attention: the same sum without a transposed copy.
    if dim == similarity.ndim - 1:
        projected = similarity @ matrix.T
    else:
        projected = (matrix @ similarity.flatten(2)).view_as(similarity)
    return (attention * projected).sum(dim)


def largest(similarity: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """The maximum over dimension `dim`; equal maxima share the gradient.

    Args:
        similarity: float, any shape.
        mask: bool, broadcastable to `similarity`, or None. Masked entries take no part; where all are masked
            the result is 0.
        dim: The dimension that goes.
    """
    if mask is None:
        return similarity.amax(dim)
    # amax, not max: it divides the gradient among equal maxima, so that no order of words is preferred.
    found = similarity.masked_fill(~mask, float("-inf")).amax(dim)
    return found.masked_fill(found == float("-inf"), 0.0)


def average(similarity: Tensor, mask: Tensor | None, dim: int, weights: Tensor | None = None) -> Tensor:
    """The mean over dimension `dim`.

    Args:
        similarity: float, any shape.
        mask: bool, broadcastable to `similarity` and as long along `dim`, or None. Masked entries take no
            part; where all are masked the result is 0.
        dim: The dimension that goes.
        weights: float, not negative, of such a shape too, or None for equal ones; where they sum to 0 the
            result is 0.
    """
    if mask is not None:
        similarity = similarity.masked_fill(~mask, 0.0)
        weights = mask.to(similarity.dtype) if weights is None else weights.masked_fill(~mask, 0.0)
    if weights is None:
        return similarity.mean(dim)
    sum_of_weights = weights.sum(dim - similarity.ndim, keepdim=True)
    shares = weights / sum_of_weights.masked_fill(sum_of_weights == 0, 1.0)
    return (shares * similarity).sum(dim)
