"""The optimizers of a run with their schedules inside: which parameter is updated how, and one update.

`bert-adam` is the official one (github.com/xuguohai/X-CLIP, modules/optimization.py), `adamw` PyTorch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from model import XClip
from model.checkpoints.official import official_name
from model.errors import CheckpointError
from training.config import OptimizerChoices


def warmup_cosine(progress: float, warmup_share: float) -> float:
    """The official factor (github.com/xuguohai/X-CLIP, modules/optimization.py, `warmup_cosine`).

    A linear rise over `warmup_share` of the run, then 0.5 (1 + cos(pi progress)). The cosine counts from the
    start of the run, not from the end of the warm-up: at the junction the factor drops a little (from 1 to
    0.976 for a share of 0.1). A share of 0 or below means no warm-up.

    Args:
        progress: Steps done before this one / steps of the run, so that the FIRST step of a run with warm-up
            has the factor 0.
    """
    if progress < warmup_share:
        return progress / warmup_share
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_then_cosine(step: int, num_steps: int, warmup_share: float) -> float:
    """The usual factor (open_clip's open_clip_train/scheduler.py, `cosine_lr`).

    The first of the W = round(warmup_share x num_steps) warm-up steps has 1/W, the last one 1; then a half
    cosine over the remaining steps, from 1 towards 0. Past the end, 0.

    Args:
        step: Steps done before this one.
    """
    num_warmup_steps = round(warmup_share * num_steps)
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


CONSTANT_RATE = -1
"""As `num_steps`: no schedule."""


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, decoupled decay inside the update, each gradient clipped on its own.

    For each parameter p with gradient g, clipped to the norm `max_grad_norm` by itself (in addition to any
    clipping of all gradients together that the caller has done):

        m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
        p = p - rate (m / (sqrt(v) + e) + weight_decay p)

    The rate is `lr` times `warmup_cosine(steps done / num_steps, warmup_share)`, counted for each parameter
    from the first step in which it had a gradient. Parameters without one are left alone: not decayed either.

    Defaults are those of the official main_xclip.py (`prep_optimizer`). The state (`state_dict`) is plain
    tensors and numbers; an optimizer that continues from it takes the same steps, bit for bit.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float,
        num_steps: int = CONSTANT_RATE,
        warmup_share: float = 0.1,
        weight_decay: float = 0.2,
        foreach: bool | None = None,
    ) -> None:
        """Make one for all steps of a run.

        Args:
            parameters: Tensors, or groups that may differ in any of the options and in `b1`, `b2`, `e` and
                `max_grad_norm` (0 or below: gradients are left as they are).
            lr: The peak rate.
            num_steps: Steps of the whole run; -1 keeps the rate constant.
            warmup_share: Share of the steps in which the rate rises.
            weight_decay: 0 or more.
            foreach: Update all tensors of a group in each call, which has fewer calls and needs more memory;
                None for on a GPU only, as in PyTorch's own optimizers. The steps are the same.

        Raises:
            ValueError: A value out of range.
        """
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, not {lr} and {weight_decay}")
        if warmup_share >= 1:
            raise ValueError(f"warmup_share must be below 1, not {warmup_share}")
        if num_steps != CONSTANT_RATE and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, or -1 for a constant rate, not {num_steps}")
        defaults = {
            "lr": lr,
            "num_steps": num_steps,
            "warmup_share": warmup_share,
            "b1": 0.9,
            "b2": 0.98,
            "e": 1e-6,
            "weight_decay": weight_decay,
            "max_grad_norm": 1.0,
        }
        super().__init__(parameters, defaults)
        self._foreach = foreach

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Evaluates the model again and returns the loss, which is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            foreach = self._foreach
            if foreach is None:
                foreach = all(parameter.is_cuda for parameter in parameters)
            for some in [parameters] if foreach else [[parameter] for parameter in parameters]:
                self._update(some, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        states = [self._state(parameter) for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        next_m, next_v = [state["next_m"] for state in states], [state["next_v"] for state in states]
        if group["max_grad_norm"] > 0:
            norms = torch.stack(torch._foreach_norm(gradients))
            # The constant is that of torch.nn.utils.clip_grad_norm_, which the official code calls.
            factors = (group["max_grad_norm"] / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, factors.unbind())
        torch._foreach_mul_(next_m, group["b1"])
        torch._foreach_add_(next_m, gradients, alpha=1 - group["b1"])
        torch._foreach_mul_(next_v, group["b2"])
        torch._foreach_addcmul_(next_v, gradients, gradients, value=1 - group["b2"])
        roots = torch._foreach_sqrt(next_v)
        torch._foreach_add_(roots, group["e"])
        updates = torch._foreach_div(next_m, roots)
        if group["weight_decay"] > 0:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        torch._foreach_mul_(updates, [rate_at(group, state["step"]) for state in states])
        torch._foreach_sub_(parameters, updates)
        for state in states:
            state["step"] += 1

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = 0
            state["next_m"] = torch.zeros_like(parameter)
            state["next_v"] = torch.zeros_like(parameter)
        return state

    def learning_rates(self) -> list[float]:
        """The rate of each group at the next step. A group's first parameter with a state speaks for it."""
        rates = []
        for group in self.param_groups:
            steps = (self.state[p]["step"] for p in group["params"] if p in self.state)
            rates.append(rate_at(group, next(steps, 0)))
        return rates


def rate_at(group: dict[str, Any], step: int) -> float:
    """The rate of a BertAdam group's step number `step`, counted from 0."""
    if group["num_steps"] == CONSTANT_RATE:
        return float(group["lr"])
    return float(group["lr"]) * warmup_cosine(step / group["num_steps"], group["warmup_share"])


GROUP_NAMES = ("clip_decay", "other_decay", "clip_no_decay", "other_no_decay")
"""The four parameter groups, in the official order."""


def make_optimizer(model: XClip, choices: OptimizerChoices, num_steps: int) -> BertAdam | ScheduledAdamW:
    """An optimizer over all parameters of `model`, frozen ones included (they are skipped), schedule inside.

    Both kinds have `learning_rates()`, the rate of each group (`GROUP_NAMES`) at the next step, and a state
    of plain tensors and numbers: an optimizer that continues from it takes the same steps, bit for bit.

    Args:
        model: What learns.
        choices: `bert-adam` follows `warmup_cosine`, `adamw` `warmup_then_cosine`; see `parameter_groups`.
        num_steps: Steps of the whole run; -1 keeps the rate constant, without warm-up.

    Raises:
        ValueError: Another number of steps below 1.
    """
    groups, share = parameter_groups(model, choices), choices.warmup_share
    if choices.kind == "bert-adam":
        return BertAdam(groups, lr=choices.learning_rate, num_steps=num_steps, warmup_share=share)
    return ScheduledAdamW(groups, num_steps=num_steps, warmup_share=share)


def parameter_groups(model: XClip, choices: OptimizerChoices) -> list[dict[str, Any]]:
    """The parameters by `GROUP_NAMES`, each group with its peak rate `lr` and its `weight_decay`.

    CLIP's towers have the rate times `clip_learning_rate_factor` (the official `--lr` and `--coef_lr`).
    For `bert-adam` the groups are the official ones (github.com/xuguohai/X-CLIP, main_xclip.py,
    `prep_optimizer`): by substring of the OFFICIAL name, with "clip." or without, with "bias" (not decayed)
    or without. So weights of LayerNorms, embeddings, logit_scale and the matrices of AOSM are decayed, and
    the temporal transformer ("transformerClip.") is not of CLIP. For `adamw` vectors and scalars (biases,
    gains, logit_scale) are not decayed, the usual rule for transformers (open_clip_train/main.py).
    """
    members: dict[str, list[Tensor]] = {name: [] for name in GROUP_NAMES}
    for name, parameter in model.named_parameters():
        official = _name_for_rules(name)
        decays = "bias" not in official if choices.kind == "bert-adam" else parameter.ndim >= 2
        part = "clip" if "clip." in official else "other"
        members[f"{part}_{'decay' if decays else 'no_decay'}"].append(parameter)
    rate = choices.learning_rate
    return [
        {
            "params": parameters,
            "lr": rate * choices.clip_learning_rate_factor if name.startswith("clip_") else rate,
            "weight_decay": 0.0 if name.endswith("no_decay") else choices.weight_decay,
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
        if num_steps != CONSTANT_RATE and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, or -1 for a constant rate, not {num_steps}")
        for group in groups:
            group.update(
                peak_lr=group["lr"], num_steps=num_steps, warmup_share=warmup_share, num_steps_done=0
            )
        super().__init__(groups, betas=(0.9, 0.98), eps=1e-6)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Evaluates the model again and returns the loss, which is returned.
        """
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
    """One update from the present gradients, which are then cleared; returns their norm.

    In the official order (main_xclip.py, `train_epoch`): all gradients together are clipped to
    `max_gradient_norm` (0 or below: they are not), the optimizer steps, logit_scale is clamped.

    Args:
        scaler: The one that scaled the loss (`loss_and_gradients`); it skips the step where a gradient is not
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
