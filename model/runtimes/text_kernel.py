"""CLIP's text tower by the kernel of `model.kernels.numba_text_tower`: packs weights, and hands it texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from model.architecture import Architecture
from model.kernels.numba_text_tower import (
    Scratch,
    Shape,
    Texts,
    Weights,
    encode_texts,
    scratch_sizes,
)
from model.kernels.stages import dissolve, new_team
from model.kernels.threads import helped
from model.kernels.vectors import LANES
from model.tokenization import TextTokenizer
from model.towers import sentence_position

MAX_ROWS: Final = 64
"""Tokens at once, but for a longer text: more are hardly cheaper for each, and leave the second cache."""

MAX_THREADS: Final = 8
"""Of a processor: so many heads has the smallest tower of CLIP, and its stages are short."""


@dataclass(frozen=True, eq=False)
class _First:
    """The first position, which is the same for all texts that begin with a token.

    seen: its key and value in each block, float32, flat [num_blocks, 2, width]. feature: float32 [1, D].
    """

    seen: NDArray[np.float32]
    feature: NDArray[np.float32]


class TextKernel:
    """A text tower whose weights do not change. Several threads may call it.

    What is done here is done by NumPy: behind some of PyTorch's operators its threads go on looking for the
    next one, on the processors that the kernel's threads are for.
    """

    runtime: Final = "numba"

    def __init__(
        self, tower: Any, architecture: Architecture, tokenizer: TextTokenizer, skips_padding: bool
    ) -> None:
        """Packs the weights of a tower from `model.towers.text_tower` that `is_clips`, in float16.

        skips_padding: leave zeros at the positions of padding.
        """
        self._architecture, self._tokenizer = architecture, tokenizer
        self._skips_padding = skips_padding
        self._tokens = tower.token_embedding.weight.detach().float().numpy()
        self._positions = tower.positional_embedding.detach().float().numpy()
        self._shape, self._weights = _packed(tower)
        self._first = lru_cache(4)(self._computed_first)

    def __call__(self, input_ids: Tensor, *, every_position: bool = False) -> tuple[Tensor, Tensor]:
        """As `model.towers.encode_positions`, of T texts, at least one.

        every_position: padding too.
        """
        ids = input_ids.numpy()
        if (ids[:, 0] != ids[0, 0]).any():  # No tokenizer that we know begins like that.
            parts = [self(row[None], every_position=every_position) for row in input_ids]
            return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        sentence = sentence_position(self._architecture, input_ids).numpy()
        is_read = np.ones(ids.shape, bool)
        if self._skips_padding and not every_position:
            number = np.arange(ids.shape[1])
            last = (self._tokenizer.mask(input_ids).numpy() * number).max(axis=1)
            is_read = number <= np.maximum(last, sentence)[:, None]
        features = np.zeros((*ids.shape, self._shape.dimension), np.float32)
        first = self._first(int(ids[0, 0]))
        features[:, 0] = first.feature
        is_read[:, 0] = False
        if is_read.any():
            rows = self._tokens[ids[is_read]] + self._positions[is_read.nonzero()[1]]
            features[is_read] = self._encode(rows, is_read.sum(axis=1).tolist(), first)
        of_sentences = features[np.arange(len(ids)), sentence]
        return torch.from_numpy(of_sentences), torch.from_numpy(features)

    def _computed_first(self, token_id: int) -> _First:
        rows = self._tokens[token_id] + self._positions[:1]
        seen = np.empty(self._shape.num_blocks * 2 * self._shape.width, np.float32)
        return _First(seen, self._encode_rows(rows, [1], (False, seen)))

    def _encode(self, rows: NDArray[np.float32], lengths: list[int], first: _First) -> NDArray[np.float32]:
        """Texts of so many rows each behind a first one, which are changed; [M, D]."""
        ends = [0, *accumulate(lengths)]
        parts, begin = [], 0
        for number in range(1, len(ends)):
            if number == len(lengths) or ends[number + 1] - ends[begin] > MAX_ROWS:
                part = rows[ends[begin] : ends[number]]
                parts.append(self._encode_rows(part, lengths[begin:number], (True, first.seen)))
                begin = number
        return np.concatenate(parts)

    def _encode_rows(
        self, rows: NDArray[np.float32], lengths: list[int], first: tuple[bool, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """On no more threads than PyTorch uses. first: see `Texts.follow` and `Texts.first`."""
        features = np.empty((len(rows), self._shape.dimension), np.float32)
        sizes = scratch_sizes(self._shape, len(rows), len(self._positions))
        team = new_team()
        given = (
            team,
            Texts(rows.reshape(-1), np.cumsum([0, *lengths]), *first, features.reshape(-1)),
            self._weights,
            self._shape,
            Scratch(*[np.empty(size, np.float32) for size in sizes]),
        )
        try:
            with helped(partial(encode_texts, True, *given), min(MAX_THREADS, torch.get_num_threads())):
                encode_texts(False, *given)
        finally:
            dissolve(team)
        return features


def is_clips(tower: Any, architecture: Architecture) -> bool:
    """Whether a text tower is a transformer as CLIP's, of sizes that the kernel is for."""
    if architecture.sentence_at not in ("argmax", "eos") or architecture.reads_padding:
        return False
    blocks = list(tower.transformer.resblocks)
    if any(type(block) is not ResidualAttentionBlock for block in blocks):
        return False
    mlp = blocks[0].mlp
    width = tower.positional_embedding.shape[1]
    sizes = (width // blocks[0].attn.num_heads, mlp.c_fc.out_features, len(_projection(tower)))
    return (
        all(isinstance(part, nn.Identity) for block in blocks for part in (block.ls_1, block.ls_2))
        and (type(mlp.gelu) is QuickGELU or (type(mlp.gelu) is nn.GELU and mlp.gelu.approximate == "none"))
        and all(size % LANES == 0 for size in sizes)
    )


def _projection(tower: Any) -> Tensor:
    """The matrix of the last product, [D, width]; without one, the identity."""
    projection = tower.text_projection
    if projection is None:
        return torch.eye(tower.positional_embedding.shape[1])
    matrix: Tensor = projection.weight if isinstance(projection, nn.Linear) else projection.T
    return matrix


def _packed(tower: Any) -> tuple[Shape, Weights]:
    blocks = list(tower.transformer.resblocks)
    width = tower.positional_embedding.shape[1]
    matrices, vectors = [], []
    for block in blocks:
        attention, mlp = block.attn, block.mlp
        matrices += [attention.in_proj_weight, attention.out_proj.weight, mlp.c_fc.weight, mlp.c_proj.weight]
        vectors += [block.ln_1.weight, block.ln_1.bias, attention.in_proj_bias, attention.out_proj.bias]
        vectors += [block.ln_2.weight, block.ln_2.bias, mlp.c_fc.bias, mlp.c_proj.bias]
    projection = _projection(tower)
    bias = getattr(tower.text_projection, "bias", None)
    matrices.append(projection)
    vectors += [tower.ln_final.weight, tower.ln_final.bias]
    vectors.append(torch.zeros(len(projection)) if bias is None else bias)
    shape = Shape(
        len(blocks),
        blocks[0].attn.num_heads,
        width,
        blocks[0].mlp.c_fc.out_features,
        len(projection),
        tower.ln_final.eps,
        isinstance(blocks[0].mlp.gelu, QuickGELU),
    )
    packed = torch.cat([_in_lanes(matrix.detach()) for matrix in matrices])
    floats = torch.cat([vector.detach().float() for vector in vectors])
    return shape, Weights(packed.numpy().view(np.uint8), floats.numpy())


def _in_lanes(matrix: Tensor) -> Tensor:
    """[N, K] as [N / LANES, K, LANES], flat, in float16."""
    size, dimension = matrix.shape
    return matrix.half().view(size // LANES, LANES, dimension).transpose(1, 2).reshape(-1)
