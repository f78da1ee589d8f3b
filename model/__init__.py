"""The X-CLIP network and its scores: text and pixels to features, features to scores.

Imports none of our other packages, opens no video and no socket (weights come through open_clip and
huggingface_hub). torch is loaded when a name below is first used, not before: decoders import
`model.preprocessing` in processes that never need it, and commands import `model.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from model.errors import CheckpointError, ModelError, ShapeError, SpecError, TokenError

if TYPE_CHECKING:
    from model.config import XClipConfig
    from model.features import Scores, TextFeatures, VideoFeatures
    from model.xclip import XClip

__all__ = [
    "CheckpointError",
    "ModelError",
    "Scores",
    "ShapeError",
    "SpecError",
    "TextFeatures",
    "TokenError",
    "VideoFeatures",
    "XClip",
    "XClipConfig",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("model.xclip"), name)  # it imports the others
    raise AttributeError(f"module 'model' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
