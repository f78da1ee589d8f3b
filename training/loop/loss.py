"""The contrastive loss of a batch and its gradients, however few of its pairs fit into memory together.

A smaller batch is not a substitute for a large one in a contrastive loss, because it has fewer negatives.
Cached features (Gao et al. 2021, arXiv:2101.06983, "GradCache") are: encode all pairs in micro-batches
without keeping what a backward pass needs; score all of them, which gives the loss and its gradient with
respect to each feature; then encode each micro-batch once more and pass those gradients on. By the chain rule
loss and gradients are those of the whole batch. It costs one more forward pass of the encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model import TextFeatures, VideoFeatures, XClip
from training.distributed import GatherMode, average_gradients, gather_features
from training.errors import ConfigError


def contrastive_loss(scores: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy with the diagonal as the truth (arXiv:2207.07285 equation 11).

    Args:
        scores: float [N, N], scaled, text t belongs to video t; every other item in the batch is a negative.
        ignore: bool [N, N], true for pairs that are neither: a caption that another video satisfies too. The
            diagonal must be false.

    Returns:
        A scalar.

    >>> round(contrastive_loss(torch.zeros(4, 4)).item(), 4)  # log(4): a guess among four
    1.3863
    """
    if ignore is not None:
        scores = scores.masked_fill(ignore, float("-inf"))
    targets = torch.arange(len(scores), device=scores.device)
    return (functional.cross_entropy(scores, targets) + functional.cross_entropy(scores.T, targets)) / 2


Precision = Literal["float32", "bfloat16", "float16"]
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}

Features = TypeVar("Features", TextFeatures, VideoFeatures)
Array = Tensor | NDArray[Any]


class PairBatch(Protocol):
    """N texts, each with its video. Exactly one of `pixels` and `frame_features` is given."""

    @property
    def input_ids(self) -> Array:
        """int64 [N, W]."""

    @property
    def frame_mask(self) -> Array:
        """bool [N, F], at least one true in each row."""

    @property
    def pixels(self) -> Array | None:
        """uint8 [N, F, R, R, 3], RGB."""

    @property
    def frame_features(self) -> Array | None:
        """float32 [N, F, D], the vision tower's output; what stands in padding frames does not matter."""


def loss_and_gradients(
    model: XClip,
    batch: PairBatch,
    *,
    micro_batch_size: int | None = None,
    precision: Precision = "float32",
    gather: GatherMode = "exact",
    scaler: torch.amp.GradScaler | None = None,
) -> float:
    """The contrastive loss of the global batch; leaves its gradients, and no others, in the parameters.

    Args:
        model: In training mode. Parameters that do not require a gradient, and parts that this configuration
            does not use, have None.
        batch: This process's pairs, as many on every process. The loss is that of all processes' pairs
            together, the same number on each, and the gradients are averaged over the processes (see
            `gather_features` for what `gather` means).
        micro_batch_size: Pairs encoded together; None for all. Loss and gradients are the same, up to
            rounding.
        precision: Of the encoders, by autocast; scores and loss are always float32.
        scaler: For float16, multiplies the loss so that small gradients survive; the gradients are left
            multiplied, for `training.loop.optimizer.update` with the same scaler to divide.

    Raises:
        ConfigError: A micro-batch below 1, or the batch has not exactly one of its two kinds of frames.
    """
    if micro_batch_size is not None and micro_batch_size < 1:
        raise ConfigError(f"a micro-batch has at least 1 pair, not {micro_batch_size}")
    if (batch.pixels is None) == (batch.frame_features is None):
        raise ConfigError("a batch has either pixels or frame features")
    model.zero_grad(set_to_none=True)
    num_pairs = len(batch.input_ids)

    def text_rows(rows: slice) -> TextFeatures:
        with _autocast(model, precision):
            return model.encode_tokens(_tensor(batch.input_ids)[rows])

    def video_rows(rows: slice) -> VideoFeatures:
        with _autocast(model, precision):
            return _encode_videos(model, batch, rows)

    if micro_batch_size is None or micro_batch_size >= num_pairs:
        everything = slice(0, num_pairs)
        loss = _backward_of_scores(model, text_rows(everything), video_rows(everything), gather, scaler)
    else:
        # The loss needs all pairs as each other's negatives: first the features of the whole batch without
        # their graphs, then each part once more with its graph, which gets the gradient of its features.
        starts = range(0, num_pairs, micro_batch_size)
        rows = [slice(first, min(first + micro_batch_size, num_pairs)) for first in starts]
        text, replay_text = _encode_without_gradients(text_rows, rows, model.device)
        video, replay_video = _encode_without_gradients(video_rows, rows, model.device)
        loss = _backward_of_scores(model, text, video, gather, scaler)
        replay_text()
        replay_video()
    average_gradients(model.parameters())
    return loss


def _backward_of_scores(
    model: XClip,
    text: TextFeatures,
    video: VideoFeatures,
    gather: GatherMode,
    scaler: torch.amp.GradScaler | None,
) -> float:
    """Score, take the loss, and go back as far as the features' own graph reaches."""
    all_text, all_video = gather_features(text, video, gather)
    loss = contrastive_loss(model.score(all_text, all_video).total)
    torch.autograd.backward(loss if scaler is None else scaler.scale(loss))
    return loss.item()


def _encode_without_gradients(
    encode: Callable[[slice], Features], rows: Sequence[slice], device: torch.device
) -> tuple[Features, Callable[[], None]]:
    """All features as leaves, and what passes their gradients on once they have them.

    The second encoding draws the same random numbers as the first (patch dropout), as GradCache's does.
    """
    parts: list[Features] = []
    states: list[_RandomState] = []
    with torch.no_grad():
        for some in rows:
            states.append(_RandomState(device))
            parts.append(encode(some))
    leaves = type(parts[0]).cat(parts)
    for value in _values(leaves):
        value.requires_grad_()

    def replay() -> None:
        after = _RandomState(device)
        for some, state in zip(rows, states, strict=True):
            state.restore()
            pairs = [
                (value, leaf.grad[some])
                for value, leaf in zip(_values(encode(some)), _values(leaves), strict=True)
                if value.requires_grad and leaf.grad is not None
            ]
            if not pairs:
                break  # This side is frozen: no micro-batch has anything to learn.
            values, gradients = zip(*pairs, strict=True)
            torch.autograd.backward(values, gradients)
        after.restore()

    return leaves, replay


def _values(features: TextFeatures | VideoFeatures) -> Iterable[Tensor]:
    """The tensors of features that a gradient can reach: all but the masks."""
    columns = (getattr(features, field.name) for field in fields(features))
    return [column for column in columns if isinstance(column, Tensor) and column.is_floating_point()]


def _encode_videos(model: XClip, batch: PairBatch, rows: slice) -> VideoFeatures:
    frame_mask = _tensor(batch.frame_mask)[rows].bool()
    if batch.pixels is not None:
        return model.encode_video(model.normalize_pixels(_tensor(batch.pixels)[rows]), frame_mask)
    assert batch.frame_features is not None
    frames = _tensor(batch.frame_features)[rows].to(model.device)
    if not model.config.mask_padding:
        # Here padding frames take part in the scores, as the encoding of an all-zero frame.
        side = model.config.image_size
        padding = model.clip.visual(torch.zeros(1, 3, side, side, device=model.device)).float()
        frames = torch.where(frame_mask.to(model.device)[..., None], frames, padding)
    return model.encode_frames(frames, frame_mask)


def _tensor(array: Array) -> Tensor:
    if isinstance(array, Tensor):
        return array
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _autocast(model: XClip, precision: Precision) -> Any:
    if precision == "float32":
        return nullcontext()
    return torch.autocast(model.device.type, _AUTOCAST[precision])


class _RandomState:
    """The states of torch's random generators when it was made: the processor's and the model's GPU's."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
