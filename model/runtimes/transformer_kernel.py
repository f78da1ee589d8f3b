"""open_clip's transformer by the kernel of `model.kernels.numba_transformer`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import LayerScale, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from model.kernels.fixed_point import BLOCK, packed
from model.kernels.numba_transformer import Sequences, Shape, Weights, encode, new_scratch
from model.kernels.stages import dissolve, new_team
from model.kernels.threads import helped
from model.kernels.vectors import LANES

MAX_THREADS: Final = 32
"""Of a processor. The shortest stages have about as many items."""

ROWS_A_THREAD: Final = 8
"""At least, as a tile has them. A short text takes about as long as its weights take to be read, which two
threads of a processor do hardly sooner than one."""


class Projection(NamedTuple):
    """What comes after the last block: a normalisation, and a matrix [D, width] with a bias [D]."""

    normalisation: nn.LayerNorm
    matrix: Tensor
    bias: Tensor


class TransformerKernel:
    """A transformer whose weights do not change. Several threads may call it.

    What is done here is done by NumPy: behind some of PyTorch's operators its threads go on looking for the
    next one, on the processors that the kernel's threads are for.
    """

    def __init__(
        self,
        blocks: Sequence[ResidualAttentionBlock],
        *,
        is_causal: bool = False,
        of_first: bool = False,
        projection: Projection | None = None,
    ) -> None:
        """Packs the weights of blocks that `is_clips`. is_causal, of_first: see `Shape`."""
        first = blocks[0]
        self.shape: Final = Shape(
            len(blocks),
            first.attn.num_heads,
            first.attn.embed_dim,
            first.mlp.c_fc.out_features,
            0 if projection is None else len(projection.matrix),
            first.ln_1.eps,
            isinstance(first.mlp.gelu, QuickGELU),
            is_causal,
            of_first,
        )
        matrices: list[NDArray[np.int32]] = []
        vectors: list[NDArray[np.float32]] = []
        for block in blocks:
            attention, mlp = block.attn, block.mlp
            _add_normalisation(vectors, block.ln_1)
            _add_product(matrices, vectors, attention.in_proj_weight, attention.in_proj_bias)
            _add_product(matrices, vectors, *_scaled(attention.out_proj, block.ls_1))
            _add_normalisation(vectors, block.ln_2)
            _add_product(matrices, vectors, mlp.c_fc.weight, mlp.c_fc.bias)
            _add_product(matrices, vectors, *_scaled(mlp.c_proj, block.ls_2))
        if projection is not None:
            _add_normalisation(vectors, projection.normalisation)
            _add_product(matrices, vectors, projection.matrix, projection.bias)
        self._weights = Weights(np.concatenate(matrices), np.concatenate(vectors))
        self._unseen = np.empty(self.shape.num_blocks * 2 * self.shape.width, np.float32)

    def __call__(
        self,
        rows: NDArray[np.float32],
        lengths: Sequence[int],
        first: tuple[bool, NDArray[np.float32]] | None = None,
    ) -> NDArray[np.float32]:
        """Sequences through the transformer, on no more threads than PyTorch uses.

        Args:
            rows: float32 [M, width], which are changed.
            lengths: Of the sequences, M together.
            first: See `Sequences.follow` and `Sequences.first`; not used by default.

        Returns:
            float32 [M, D]; without a projection what became of the rows, or of the first of each sequence.
        """
        shape = self.shape
        features = np.empty((len(rows), shape.dimension), np.float32)
        num_threads = min(MAX_THREADS, torch.get_num_threads(), max(1, len(rows) // ROWS_A_THREAD))
        starts = np.cumsum([0, *lengths])
        given = (
            team := new_team(),
            Sequences(rows.reshape(-1), starts, *(first or (False, self._unseen)), features.reshape(-1)),
            self._weights,
            shape,
            new_scratch(shape, list(lengths), num_threads),
        )
        try:
            with helped(partial(encode, True, *given), num_threads):
                encode(False, *given)
        finally:
            dissolve(team)
        if shape.dimension:
            return features
        return rows[: len(lengths)] if shape.of_first else rows


def is_clips(blocks: Sequence[nn.Module], dimension: int = BLOCK) -> bool:
    """Whether blocks are of a transformer as CLIP's, of sizes that the kernel is for. dimension: of a
    projection behind them."""
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        return False
    shapes = {_facts(block) for block in blocks}
    if len(shapes) != 1:
        return False
    ((width, num_heads, hidden, activation, *_),) = shapes
    return (
        activation in ("quick", "none")
        and width // num_heads % LANES == 0
        and all(size % BLOCK == 0 for size in (width, hidden, dimension))
    )


def _facts(block: Any) -> tuple[Any, ...]:
    gelu = block.mlp.gelu
    activation = "quick" if type(gelu) is QuickGELU else getattr(gelu, "approximate", "another")
    epsilons = (block.ln_1.eps, block.ln_2.eps)
    return block.attn.embed_dim, block.attn.num_heads, block.mlp.c_fc.out_features, activation, epsilons


def _add_normalisation(vectors: list[NDArray[np.float32]], norm: nn.LayerNorm) -> None:
    vectors += [_floats(norm.weight), _floats(norm.bias)]


def _add_product(
    matrices: list[NDArray[np.int32]], vectors: list[NDArray[np.float32]], weight: Tensor, bias: Tensor
) -> None:
    matrix, scales = packed(weight.detach().float())
    matrices.append(matrix)
    vectors += [scales, _floats(bias)]


def _scaled(linear: nn.Linear, scale: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias, with those of a `LayerScale` behind it in them."""
    if isinstance(scale, LayerScale):
        return linear.weight * scale.gamma[:, None], linear.bias * scale.gamma
    return linear.weight, linear.bias


def _floats(values: Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = values.detach().float().numpy()
    return found
