"""Several processes that train one model: start, equal weights, gathered features, averaged gradients.

Collectives carry tensors only; nothing is pickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, distributed, nn

from model import TextFeatures, VideoFeatures
from model.checkpoints.tensors import usable_device
from training.errors import RunError

BUCKET_BYTES = 25 * 2**20
"""Gradients averaged in one message, the default of DistributedDataParallel."""

TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others, which may be decoding or evaluating; then it fails."""


@contextmanager
def process_group(device: str = "auto", timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, for the duration; alone where it did not.

    Gives the device of this process. The backend is NCCL between GPUs, Gloo elsewhere.

    Args:
        device: `cpu`; `cuda`, one GPU a process by its local rank; `cuda:1`, only for a process alone; `auto`
            takes GPUs where there are any.

    Raises:
        model.SpecError: There is no such device.
        RunError: A process finds no GPU of its own.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield usable_device(device)
        return
    wanted = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if wanted.type == "cuda":
        local_rank = distributed.get_node_local_rank()
        if local_rank >= torch.cuda.device_count():
            raise RunError(
                f"{torch.cuda.device_count()} GPUs are too few for process {local_rank + 1} of this machine: "
                "start fewer processes, or train on the CPU"
            )
        wanted = torch.device("cuda", local_rank)
        torch.cuda.set_device(wanted)
    with explained_if_others_are_gone(timeout):
        if wanted.type == "cuda":
            distributed.init_process_group("nccl", timeout=timeout, device_id=wanted)
        else:
            distributed.init_process_group("gloo", timeout=timeout)
        try:
            yield wanted
        finally:
            distributed.destroy_process_group()


_SIGNS_OF_OTHERS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
"""In the message of a plain RuntimeError, which is what Gloo raises."""


@contextmanager
def explained_if_others_are_gone(timeout: timedelta) -> Iterator[None]:
    """Turn a failed wait for other processes into RunError with what to check."""
    try:
        yield
    except RuntimeError as error:
        kinds = (distributed.DistError,) if distributed.is_available() else ()
        if not isinstance(error, kinds) and not any(sign in str(error) for sign in _SIGNS_OF_OTHERS):
            raise
        raise RunError(
            f"another process of this training ended, or did not answer for {timeout}: see the reason in"
            " its own lines; full memory, a full /dev/shm (docker run --shm-size=2g) and a network that keeps"
            " the processes apart are usual reasons. Start all of them again with --resume"
        ) from error


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """This process's number, from 0; 0 alone."""
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    """How many processes train together; 1 alone."""
    return distributed.get_world_size() if _together() else 1


def wait_for_others() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        distributed.barrier()


def share_parameters(model: nn.Module) -> None:
    """Give every process the weights of process 0, and check that they arrived.

    Raises RunError, see `check_equal_parameters`.
    """
    if world_size() == 1:
        return
    with torch.no_grad():
        for tensor in model.state_dict().values():
            whole = tensor.contiguous()  # Backends write into contiguous memory only.
            distributed.broadcast(whole, src=0)
            tensor.copy_(whole)
    check_equal_parameters(model)


def check_equal_parameters(model: nn.Module) -> None:
    """Raise RunError on every process where the weights of one differ from another's by a single bit."""
    if world_size() == 1:
        return
    digest = hashlib.sha256()
    device = torch.device("cpu")
    for name, tensor in sorted(model.state_dict().items()):
        device = tensor.device
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8).to(device)
    digests = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(digests, own)
    others = [number for number, other in enumerate(digests) if not torch.equal(other, digests[0])]
    if others:
        raise RunError(f"the weights of process {', '.join(map(str, others))} are not those of process 0")


def average_gradients(parameters: Iterable[Tensor], bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace the gradient of every parameter by its mean over the processes, the same bits on each.

    Args:
        parameters: The same, in the same order, on every process. One without a gradient anywhere keeps none;
            one with a gradient on some processes counts as zero on the others.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if world_size() == 1 or not learning:
        return
    present = torch.tensor([p.grad is not None for p in learning], dtype=torch.uint8).to(learning[0].device)
    # Every process has to join the same reductions, or one would wait for the others for ever.
    distributed.all_reduce(present, distributed.ReduceOp.MAX)
    gradients = []
    for parameter, anywhere in zip(learning, present.tolist(), strict=True):
        if anywhere:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients, bucket_bytes):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= world_size()
        for gradient, mean in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def _buckets(tensors: list[Tensor], bucket_bytes: int) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, up to `bucket_bytes` together or a single larger one."""
    bucket: list[Tensor] = []
    size_bytes = 0
    for tensor in tensors:
        if bucket and (size_bytes + tensor.nbytes > bucket_bytes or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size_bytes = [], 0
        bucket.append(tensor)
        size_bytes += tensor.nbytes
    if bucket:
        yield bucket


GatherMode = Literal["exact", "official"]
Features = TypeVar("Features", TextFeatures, VideoFeatures)


def gather_features(
    text: TextFeatures, video: VideoFeatures, mode: GatherMode = "exact"
) -> tuple[TextFeatures, VideoFeatures]:
    """The features of all processes, in the order of their ranks; with one process, the same ones.

    Every process computes the same loss L of the global batch from what is returned, and afterwards averages
    the gradients over the processes (`training.distributed.average_gradients`). Let E_p be a feature that
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

    Args:
        text, video: N each, as many on every process.

    Returns:
        P x N each, P processes; masks are gathered too.
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
            # Not every backend gathers bools.
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
