"""Which parameters do not learn."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from model import XClip
from training.errors import ConfigError

Tower = Literal["vision", "text"]
NOTHING = -1
"""As `num_layers`: the official rule freezes nothing."""

_ALWAYS_TRAINED = ("ln_final.", "text_projection", "logit_scale", "visual.ln_post.", "visual.proj")


def freeze(
    model: XClip,
    *,
    num_layers: int = NOTHING,
    towers: Collection[Tower] = (),
    names: Collection[str] = (),
) -> list[str]:
    """Say for every parameter of `model` whether it learns; returns the names of those that do not.

    num_layers: the official `--freeze_layer_num` (github.com/xuguohai/X-CLIP, main_xclip.py, `main`), -1 or 0
        up to the layers of the deeper tower. -1 freezes nothing; 0, which all official scripts use, what lies
        below the blocks of both towers: `conv1`, `class_embedding`, both `positional_embedding`, `ln_pre` and
        `token_embedding`; n also the first n blocks of both. What lies above the blocks (`ln_post`, `proj`,
        `ln_final`, `text_projection`), `logit_scale` and all that is not CLIP's always learn by this rule.
    towers: whole towers that stay, projections included: `vision`, `text`. `logit_scale` belongs to neither.
    names: parameters that stay, by our names, for example `matrices.global_matrix`.
    Raises ConfigError on a number out of range, an unknown tower or an unknown name.
    """
    depth = max(len(model.clip.visual.transformer.resblocks), len(model.clip.transformer.resblocks))
    if not NOTHING <= num_layers <= depth:
        raise ConfigError(f"layers to freeze must be within -1 and {depth}, not {num_layers}")
    if wrong_towers := sorted(set[str](towers) - {"vision", "text"}):
        raise ConfigError(f"unknown towers {wrong_towers}: vision or text")
    if wrong_names := sorted(set(names) - {name for name, _ in model.named_parameters()}):
        raise ConfigError(f"the model has no parameters {wrong_names}")
    frozen = []
    for name, parameter in model.named_parameters():
        stays = name in names or _tower(name) in towers or _is_low(name, num_layers)
        parameter.requires_grad_(not stays)
        if stays:
            frozen.append(name)
            parameter.grad = None
    return frozen


def _tower(name: str) -> Tower | None:
    if not name.startswith("clip.") or name == "clip.logit_scale":
        return None
    return "vision" if name.startswith("clip.visual.") else "text"


def _is_low(name: str, num_layers: int) -> bool:
    """Whether the official rule freezes a parameter."""
    inner = name.removeprefix("clip.")
    if num_layers == NOTHING or inner == name or inner.startswith(_ALWAYS_TRAINED):
        return False
    if inner.startswith(("visual.transformer.resblocks.", "transformer.resblocks.")):
        return int(inner.split(".resblocks.")[1].split(".")[0]) < num_layers
    return True
