"""BertAdam, the official optimizer (github.com/xuguohai/X-CLIP, modules/optimization.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from training.schedule import warmup_cosine

CONSTANT_RATE = -1
"""As `num_steps`: no schedule."""


class BertAdam(torch.optim.Optimizer):
    """Adam without bias correction, decoupled decay inside the update, each gradient clipped on its own.

    For each parameter p with gradient g, clipped to the norm `max_grad_norm` by itself (beside any clipping
    of all gradients together that the caller has done):

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
        b1: float = 0.9,
        b2: float = 0.98,
        e: float = 1e-6,
        weight_decay: float = 0.2,
        max_grad_norm: float = 1.0,
        foreach: bool | None = None,
    ) -> None:
        """parameters: tensors, or groups that may differ in any of the options.

        lr: the peak rate. num_steps: steps of the whole run; -1 keeps the rate constant.
        max_grad_norm: 0 or below leaves the gradients as they are.
        foreach: update all tensors of a group in each call, which has fewer calls and needs more memory;
            None for on a GPU only, as in PyTorch's own optimizers. The steps are the same.
        Raises ValueError on values out of range.
        """
        if lr < 0 or e < 0 or weight_decay < 0:
            raise ValueError(f"lr, e and weight_decay must not be negative, not {lr}, {e} and {weight_decay}")
        if not (0 <= b1 < 1 and 0 <= b2 < 1 and warmup_share < 1):
            raise ValueError(f"b1, b2 and warmup_share must be below 1, not {b1}, {b2} and {warmup_share}")
        if num_steps != CONSTANT_RATE and num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, or -1 for a constant rate, not {num_steps}")
        defaults = {
            "lr": lr,
            "num_steps": num_steps,
            "warmup_share": warmup_share,
            "b1": b1,
            "b2": b2,
            "e": e,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(parameters, defaults)
        self._foreach = foreach

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step. closure: evaluates the model again and returns the loss, which is returned."""
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
