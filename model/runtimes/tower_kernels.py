"""CLIP's towers by the kernel of `model.kernels.numba_transformer`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from model.architecture import Architecture
from model.runtimes import UsedRuntime
from model.runtimes.transformer_kernel import Projection, TransformerKernel, is_clips
from model.tokenization import TextTokenizer
from model.towers import sentence_position

MAX_TOKENS: Final = 64
"""Of texts at once, but for a longer one: more are hardly cheaper for each, and leave the second cache."""

MAX_PATCHES: Final = 1024
"""Of frames at once, but for a larger one: more are no cheaper, and take more memory."""


@dataclass(frozen=True, eq=False)
class _First:
    """The first position, which is the same for all texts that begin with a token.

    seen: its key and value in each block, float32, flat [num_blocks, 2, width]. feature: float32 [1, D].
    """

    seen: NDArray[np.float32]
    feature: NDArray[np.float32]


class TextKernel:
    """A text tower whose weights do not change. Several threads may call it."""

    runtime: Final[UsedRuntime] = "numba"

    def __init__(
        self, tower: Any, architecture: Architecture, tokenizer: TextTokenizer, skips_padding: bool
    ) -> None:
        """Packs the weights of a tower from `model.towers.text_tower` that `has_text_kernel`.

        skips_padding: leave zeros at the positions of padding.
        """
        self._architecture, self._tokenizer = architecture, tokenizer
        self._skips_padding = skips_padding
        self._tokens = tower.token_embedding.weight.detach().float().numpy()
        self._positions = tower.positional_embedding.detach().float().numpy()
        matrix = _projection(tower)
        bias = getattr(tower.text_projection, "bias", None)
        projection = Projection(tower.ln_final, matrix, torch.zeros(len(matrix)) if bias is None else bias)
        blocks = list(tower.transformer.resblocks)
        self._transformer = TransformerKernel(blocks, is_causal=True, projection=projection)
        self._first = lru_cache(4)(self._computed_first)

    def __call__(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """As `model.towers.encode_positions`, of T texts, at least one."""
        return self._encode(input_ids, self._skips_padding)

    def every_position(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The same, with those of padding."""
        return self._encode(input_ids, False)

    def _encode(self, input_ids: Tensor, skips_padding: bool) -> tuple[Tensor, Tensor]:
        ids = input_ids.numpy()
        if (ids[:, 0] != ids[0, 0]).any():  # No tokenizer that we know begins like that.
            parts = [self._encode(row[None], skips_padding) for row in input_ids]
            return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        sentence = sentence_position(self._architecture, input_ids).numpy()
        is_read = np.ones(ids.shape, bool)
        if skips_padding:
            number = np.arange(ids.shape[1])
            last = (self._tokenizer.mask(input_ids).numpy() * number).max(axis=1)
            is_read = number <= np.maximum(last, sentence)[:, None]
        features = np.zeros((*ids.shape, self._transformer.shape.dimension), np.float32)
        first = self._first(int(ids[0, 0]))
        features[:, 0] = first.feature
        is_read[:, 0] = False
        if is_read.any():
            rows = self._tokens[ids[is_read]] + self._positions[is_read.nonzero()[1]]
            features[is_read] = self._encode_rows(rows, is_read.sum(axis=1).tolist(), first)
        of_sentences = features[np.arange(len(ids)), sentence]
        return torch.from_numpy(of_sentences), torch.from_numpy(features)

    def _computed_first(self, token_id: int) -> _First:
        shape, rows = self._transformer.shape, self._tokens[token_id] + self._positions[:1]
        seen = np.empty(shape.num_blocks * 2 * shape.width, np.float32)
        return _First(seen, self._transformer(rows, [1], (False, seen)))

    def _encode_rows(
        self, rows: NDArray[np.float32], lengths: list[int], first: _First
    ) -> NDArray[np.float32]:
        """Texts of so many rows each behind a first one, which are changed; [M, D]."""
        ends = [0, *accumulate(lengths)]
        parts, begin = [], 0
        for number in range(1, len(ends)):
            if number == len(lengths) or ends[number + 1] - ends[begin] > MAX_TOKENS:
                part = rows[ends[begin] : ends[number]]
                parts.append(self._transformer(part, lengths[begin:number], (True, first.seen)))
                begin = number
        return np.concatenate(parts)


class VisionKernel:
    """A vision tower whose weights do not change. Several threads may call it."""

    runtime: Final[UsedRuntime] = "numba"

    def __init__(self, tower: Any) -> None:
        """Packs the weights of a tower that `has_vision_kernel`. What is before and behind its blocks stays
        PyTorch's."""
        of_first = tower.pool_type == "tok" and tower.attn_pool is None
        self._tower = copy.copy(tower)
        self._tower._modules = {
            **tower._modules,
            "transformer": _Blocks(tower.transformer.resblocks, of_first),
        }

    def __call__(self, pixels: Tensor) -> tuple[Tensor]:
        """From normalised pixels, float [N, 3, R, R], at least one, to frames, float [N, D]."""
        with torch.no_grad():
            features: Tensor = self._tower(pixels)
        return (features,)


class _Blocks(nn.Module):
    """`open_clip.transformer.Transformer` without masks. of_first: of the first positions alone."""

    def __init__(self, blocks: Any, of_first: bool) -> None:
        super().__init__()
        self._kernel = TransformerKernel(list(blocks), of_first=of_first)

    def forward(self, x: Tensor) -> Tensor:
        """float [N, L, width] to the same, or to [N, 1, width]."""
        length, width = x.shape[1:]
        parts = []
        for part in torch.split(x.float(), max(1, MAX_PATCHES // length)):
            rows = part.clone(memory_format=torch.contiguous_format).view(-1, width).numpy()
            found = self._kernel(rows, [length] * len(part))
            parts.append(torch.from_numpy(found).view(len(part), -1, width))
        return torch.cat(parts)


def has_text_kernel(tower: Any, architecture: Architecture) -> bool:
    """Whether a text tower is a transformer as CLIP's, of sizes that the kernel is for."""
    return (
        architecture.sentence_at in ("argmax", "eos")
        and not architecture.reads_padding
        and is_clips(tower.transformer.resblocks, len(_projection(tower)))
    )


def has_vision_kernel(tower: Any) -> bool:
    """Whether a vision tower is a transformer as CLIP's, of sizes that the kernel is for."""
    return type(tower) is VisionTransformer and is_clips(tower.transformer.resblocks)


def _projection(tower: Any) -> Tensor:
    """The matrix of the last product, [D, width]; without one, the identity."""
    projection = tower.text_projection
    if projection is None:
        return torch.eye(tower.positional_embedding.shape[1])
    matrix: Tensor = projection.weight if isinstance(projection, nn.Linear) else projection.T
    return matrix
