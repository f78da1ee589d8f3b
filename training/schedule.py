"""How the learning rate moves during a run: factors of the peak rate, 0 to 1."""

from __future__ import annotations

import math


def warmup_cosine(progress: float, warmup_share: float) -> float:
    """The official factor (github.com/xuguohai/X-CLIP, modules/optimization.py, `warmup_cosine`).

    progress: steps done before this one / steps of the run, so that the FIRST step of a run with warm-up has
    the factor 0. A linear rise over `warmup_share` of the run, then 0.5 (1 + cos(pi progress)). The cosine
    counts from the start of the run, not from the end of the warm-up: at the junction the factor drops a
    little (from 1 to 0.976 for a share of 0.1). A share of 0 or below means no warm-up.
    """
    if progress < warmup_share:
        return progress / warmup_share
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_then_cosine(step: int, num_steps: int, warmup_share: float) -> float:
    """The usual factor (open_clip's open_clip_train/scheduler.py, `cosine_lr`).

    step: steps done before this one. The first of the W = round(warmup_share x num_steps) warm-up steps has
    1/W, the last one 1; then a half cosine over the remaining steps, from 1 towards 0. Past the end, 0.
    """
    num_warmup_steps = round(warmup_share * num_steps)
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
