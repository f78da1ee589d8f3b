"""Which optimizer updates which parameter how, and one update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from model import XClip
from model.errors import CheckpointError
from model.official import official_name
from training.bert_adam import CONSTANT_RATE, BertAdam
from training.errors import ConfigError
from training.schedule import warmup_then_cosine

OptimizerKind = Literal["bert-adam", "adamw"]
GROUP_NAMES = ("clip_decay", "other_decay", "clip_no_decay", "other_no_decay")
"""The four parameter groups, in the official order."""


def make_optimizer(
    model: XClip,
    *,
    kind: OptimizerKind = "bert-adam",
    learning_rate: float = 1e-4,
    clip_learning_rate_factor: float = 1e-3,
    weight_decay: float = 0.2,
    num_steps: int,
    warmup_share: float = 0.1,
) -> BertAdam | ScheduledAdamW:
    """An optimizer over all parameters of `model`, frozen ones included (they are skipped), schedule inside.

    kind: `bert-adam`, the official one: groups of `official_groups`, `warmup_cosine`; or `adamw`, PyTorch's
        with the groups of `standard_groups` and `warmup_then_cosine`.
    learning_rate: the peak rate of the new parts; CLIP's towers get it times `clip_learning_rate_factor`
        (the official `--lr` and `--coef_lr`; the defaults are those of the official scripts).
    num_steps: steps of the whole run; -1 keeps the rate constant, without warm-up.
    warmup_share: share of the steps in which the rate rises, 0 to 1.

    Both kinds have `learning_rates()`, the rate of each group (`GROUP_NAMES`) at the next step, and a state
    of plain tensors and numbers: an optimizer that continues from it takes the same steps, bit for bit.
    Raises ConfigError on values out of range.
    """
    values = {
        "learning_rate": learning_rate,
        "clip_learning_rate_factor": clip_learning_rate_factor,
        "weight_decay": weight_decay,
    }
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{name} must be a number from 0 up, not {value}")
    if not 0 <= warmup_share < 1:
        raise ConfigError(f"warmup_share must be within 0 and 1, not {warmup_share}")
    if num_steps != CONSTANT_RATE and num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, or -1 for a constant rate, not {num_steps}")
    if kind == "bert-adam":
        groups = official_groups(model, learning_rate, clip_learning_rate_factor, weight_decay)
        return BertAdam(groups, lr=learning_rate, num_steps=num_steps, warmup_share=warmup_share)
    if kind == "adamw":
        groups = standard_groups(model, learning_rate, clip_learning_rate_factor, weight_decay)
        return ScheduledAdamW(groups, num_steps=num_steps, warmup_share=warmup_share)
    raise ConfigError(f"unknown optimizer {kind!r}: bert-adam or adamw")


def official_groups(
    model: XClip, learning_rate: float, clip_learning_rate_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The official groups (github.com/xuguohai/X-CLIP, main_xclip.py, `prep_optimizer`).

    By substring of the OFFICIAL name: with "clip." or without, with "bias" (not decayed) or without. So
    weights of LayerNorms, embeddings, logit_scale and the matrices of AOSM are decayed, and the temporal
    transformer ("transformerClip.") is not of CLIP. See `GROUP_NAMES` for the order.
    """
    return _groups(
        model,
        lambda name, parameter: "bias" not in _name_for_rules(name),
        learning_rate,
        clip_learning_rate_factor,
        weight_decay,
    )


def standard_groups(
    model: XClip, learning_rate: float, clip_learning_rate_factor: float, weight_decay: float
) -> list[dict[str, Any]]:
    """As `official_groups`, but vectors and scalars (biases, gains, logit_scale) are not decayed.

    The usual rule for transformers (open_clip_train/main.py).
    """
    return _groups(
        model,
        lambda name, parameter: parameter.ndim >= 2,
        learning_rate,
        clip_learning_rate_factor,
        weight_decay,
    )


def _groups(
    model: XClip,
    decays: Callable[[str, Tensor], bool],
    learning_rate: float,
    clip_learning_rate_factor: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    members: dict[str, list[Tensor]] = {name: [] for name in GROUP_NAMES}
    for name, parameter in model.named_parameters():
        part = "clip" if "clip." in _name_for_rules(name) else "other"
        members[f"{part}_{'decay' if decays(name, parameter) else 'no_decay'}"].append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * clip_learning_rate_factor if name.startswith("clip_") else learning_rate,
            "weight_decay": 0.0 if name.endswith("no_decay") else weight_decay,
        }
        for name, parameters in members.items()
    ]


def _name_for_rules(name: str) -> str:
    """The official name of a parameter, or our own where the official model has no such parameter."""
    try:
        return official_name(name)
    except CheckpointError:
        return name


class ScheduledAdamW(torch.optim.AdamW):
    """PyTorch's AdamW that sets its own rate before each step, by `warmup_then_cosine`.

    The number of steps done is kept in the groups, and with them in `state_dict`. Betas and epsilon are those
    that open_clip trains ViTs with (open_clip_train/params.py).
    """

    def __init__(self, groups: list[dict[str, Any]], *, num_steps: int, warmup_share: float) -> None:
        """groups: each with `params`, `lr` (the peak rate) and `weight_decay`. num_steps: -1 for constant."""
        for group in groups:
            group.update(
                peak_lr=group["lr"], num_steps=num_steps, warmup_share=warmup_share, num_steps_done=0
            )
        super().__init__(groups, betas=(0.9, 0.98), eps=1e-6)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step. closure: evaluates the model again and returns the loss, which is returned."""
        for group, rate in zip(self.param_groups, self.learning_rates(), strict=True):
            group["lr"] = rate
            group["num_steps_done"] += 1
        loss: float | None = super().step(closure)
        return loss

    def learning_rates(self) -> list[float]:
        """The rate of each group at the next step."""
        rates = []
        for group in self.param_groups:
            factor = 1.0
            if group["num_steps"] != CONSTANT_RATE:
                factor = warmup_then_cosine(
                    group["num_steps_done"], group["num_steps"], group["warmup_share"]
                )
            rates.append(group["peak_lr"] * factor)
        return rates


def update(
    model: XClip,
    optimizer: BertAdam | ScheduledAdamW,
    *,
    max_gradient_norm: float = 1.0,
    scaler: torch.amp.GradScaler | None = None,
) -> float:
    """One update from the gradients that are there, which are then cleared; returns their norm.

    In the official order (main_xclip.py, `train_epoch`): all gradients together are clipped to
    `max_gradient_norm` (0 or below: they are not), the optimizer steps, logit_scale is clamped.
    scaler: the one that scaled the loss (`loss_and_gradients`); it skips the step where a gradient is not
        finite, and the norm returned is then not finite either. It is the caller's to checkpoint.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    bound = max_gradient_norm if max_gradient_norm > 0 else math.inf
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), bound)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    model.clamp_logit_scale()
    return float(norm)
