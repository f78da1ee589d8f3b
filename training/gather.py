"""Features of the global batch on every process, with a backward pass."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed

from model import TextFeatures, VideoFeatures
from training.processes import rank, world_size

GatherMode = Literal["exact", "official"]
Features = TypeVar("Features", TextFeatures, VideoFeatures)


def gather_features(
    text: TextFeatures, video: VideoFeatures, mode: GatherMode = "exact"
) -> tuple[TextFeatures, VideoFeatures]:
    """The features of all processes, in the order of their ranks; with one process, the same ones.

    text, video: N each, as many on every process. Returns P x N each, P processes; masks are gathered too.

    Every process computes the same loss L of the global batch from what is returned, and afterwards averages
    the gradients over the processes (`training.processes.average_gradients`). Let E_p be a feature that
    process p encoded and w an encoder weight, so that the true gradient is

        dL/dw = sum over p of (dL/dE_p) (dE_p/dw).

    On its own, process p can form only its own term of the sum, and the average over P processes is then
    dL/dw / P. That is what the official gather does (github.com/xuguohai/X-CLIP, modules/until_module.py,
    `AllGather`, under DistributedDataParallel): mode `official`. In mode `exact` each process's own slice of
    the backward pass is multiplied by P, so that the average is dL/dw itself.

    What is used after the gather, the matrices of AOSM and logit_scale, gets its full gradient dL/dw on every
    process, and the average of equal values is that value, in both modes. So `official` gives the encoders
    1/P of the gradient against these: with clipping to a common norm, that is not the same as a rate P times
    lower.
    """
    if world_size() == 1:
        return text, video
    factor = float(world_size()) if mode == "exact" else 1.0
    return _gather(text, factor), _gather(video, factor)


def _gather(features: Features, factor: float) -> Features:
    columns: list[Any] = []
    for field in fields(features):
        value = getattr(features, field.name)
        if not isinstance(value, Tensor):
            columns.append(value)
        elif value.dtype == torch.bool:
            # One byte each in every backend.
            columns.append(_gather_rows(value.to(torch.uint8)).bool())
        else:
            columns.append(_Gather.apply(value, factor))
    return type(features)(*columns)


def _gather_rows(tensor: Tensor) -> Tensor:
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(world_size())]
    distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    """Join the rows of all processes; back goes the gradient of the own rows, times `factor`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: float) -> Tensor:
        ctx.num_rows, ctx.factor = len(tensor), factor
        return _gather_rows(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first_row = rank() * ctx.num_rows
        return gradient[first_row : first_row + ctx.num_rows] * ctx.factor, None
