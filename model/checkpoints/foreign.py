"""Checkpoint files as other programs leave them: wrappings are taken off, other networks are called by their
name.

Trainers wrap what they save. DistributedDataParallel puts `module.` before every name, Lightning `model.`,
torch.compile `_orig_mod.`, and a training checkpoint holds the weights below a key next to other things. None
of it changes a weight. Another network is refused with what it is and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

from torch import Tensor

from model.errors import CheckpointError

KEYS_OF_WEIGHTS = (
    *("model_state_dict", "state_dict", "model", "module", "net", "network", "weights", "checkpoint"),
    *("ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema"),
)
"""Keys under which a training checkpoint holds the weights next to other things, the first first: averaged
weights (EMA) are taken where there are no others."""

MARKER = "word_mat_weight"
"""A tensor of every X-CLIP, and of nothing else known."""

_WRAPPERS_WITHIN = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|(?<=\.)module\."
)
"""Parts of a name that torch puts in where a part of a network is compiled, sharded or checkpointed."""

_COUNTER = "n_averaged"
"""Of torch's AveragedModel: how often it was updated, next to its `module.`."""

_NO_XCLIP = (
    "Take an official X-CLIP checkpoint (docs/checkpoints.md says where some are), or train a model:"
    " xclip-search train --list"
)


def find_weights(content: object) -> object:
    """What lies below KEYS_OF_WEIGHTS in a loaded file, however deep; `content` itself where nothing does."""
    while isinstance(content, dict):
        inner = next((content[key] for key in KEYS_OF_WEIGHTS if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    return content


def without_wrappings(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names that the network gives them.

    Whatever is before all names is a wrapping, since an official checkpoint has names without a dot. Where
    only some names have it all stay as they are, and the first that does not belong is named later.

    Raises:
        CheckpointError: Two tensors have the same name without their wrappings.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = _WRAPPERS_WITHIN.sub("", name)
        if plain in found:
            raise CheckpointError(f"two tensors are called {plain} once wrappers are taken off their names")
        found[plain] = tensor
    while (prefix := _common_prefix(found)) is not None:
        found.pop(_COUNTER, None)
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def _common_prefix(names: Collection[str]) -> str | None:
    """The first part of all names, with its dot. `clip.` is none: a CLIP4Clip may have nothing else."""
    firsts = {name.partition(".")[0] if "." in name else None for name in names if name != _COUNTER}
    first = firsts.pop() if len(firsts) == 1 else None
    return None if first in (None, "clip") else f"{first}."


def require_xclip(names: Collection[str]) -> None:
    """Refuse the weights of a network that is known to be another one, by its name.

    Args:
        names: Of the tensors, without wrappings.

    Raises:
        CheckpointError: What it is, and what to do.
    """
    if MARKER in names:
        return
    holders = sorted({name.removesuffix(f".{MARKER}") for name in names if name.endswith(f".{MARKER}")})
    if holders:
        others = sorted(
            {name.partition(".")[0] for name in names} - {one.partition(".")[0] for one in holders}
        )
        raise CheckpointError(
            f"the X-CLIP of this file lies below {' and '.join(holders)}"
            + (f", next to {', '.join(others[:5])}" if others else "")
            + ": save the weights of one network alone, as torch.save(network.state_dict(), FILE) does"
        )
    if (reason := _known_network(names)) is not None:
        raise CheckpointError(reason)


def _known_network(names: Collection[str]) -> str | None:
    def has(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    if has("mit.", "prompts_generator."):
        return _other_xclip()
    if has("matrices.") and has("clip."):
        return (
            "these are weights in the layout of this program, which needs their config.json: name the"
            " directory that holds both, not the file"
        )
    if has("vision_model.") or has("text_model."):
        return f"these are weights of transformers' CLIP. {_PLAIN_CLIP}"
    if has("visual.conv1.", "visual.trunk.", "visual.proj") and not has("clip."):
        return f"these are weights of a plain CLIP. {_PLAIN_CLIP}"
    if has("clip."):
        return (
            "this is a checkpoint of CLIP4Clip (arXiv:2104.08860) or of another network above CLIP: it has"
            f" none of the matrices by which X-CLIP compares words and frames. {_NO_XCLIP}"
        )
    return None


_PLAIN_CLIP = (
    "CLIP searches without training as openclip:ARCHITECTURE/PRETRAINED, for example"
    " openclip:ViT-B-32-quickgelu/openai; in place of PRETRAINED may stand a file of open_clip's or OpenAI's"
    " names. The paper's X-CLIP is trained from it: xclip-search train --list"
)


def _other_xclip() -> str:
    return (
        "this is Microsoft's X-CLIP (arXiv:2208.02816, microsoft/xclip-... on the Hub, transformers'"
        " XCLIPModel), for action recognition: another network of the same name, not the X-CLIP of"
        f" text-to-video search (arXiv:2207.07285). {_NO_XCLIP}"
    )


def require_our_config(content: bytes) -> None:
    """Refuse the config.json of a model of transformers, by the model's name.

    Args:
        content: Of the file. What is no JSON object is left to the reader of ours.

    Raises:
        CheckpointError: What it is, and what to do.
    """
    try:
        values = json.loads(content)
    except ValueError:
        return
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind == "xclip":
        raise CheckpointError(_other_xclip())
    if kind in ("clip", "clip_text_model", "clip_vision_model"):
        raise CheckpointError(f"this is a CLIP of transformers. {_PLAIN_CLIP}")
    if isinstance(kind, str):
        raise CheckpointError(
            f"this is a model of transformers, of the type {kind!r}, no X-CLIP. {_NO_XCLIP}"
        )
