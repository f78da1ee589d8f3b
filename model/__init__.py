"""The X-CLIP network and its scores.

This room turns text and pixels into features and features into scores. It uses torch and open_clip;
it imports none of our other packages, opens no video and no socket (weights come through open_clip and
huggingface_hub). Importing the package is cheap: torch is loaded when a name below is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.config import XClipConfig as XClipConfig
    from model.errors import CheckpointError as CheckpointError
    from model.errors import ModelError as ModelError
    from model.errors import ShapeError as ShapeError
    from model.errors import SpecError as SpecError
    from model.errors import TokenError as TokenError
    from model.features import Scores as Scores
    from model.features import TextFeatures as TextFeatures
    from model.features import VideoFeatures as VideoFeatures
    from model.xclip import XClip as XClip

_HOMES = {
    "CheckpointError": "model.errors",
    "ModelError": "model.errors",
    "Scores": "model.features",
    "ShapeError": "model.errors",
    "SpecError": "model.errors",
    "TextFeatures": "model.features",
    "TokenError": "model.errors",
    "VideoFeatures": "model.features",
    "XClip": "model.xclip",
    "XClipConfig": "model.config",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
