"""What can go wrong in `model`.

ModelError
├── SpecError         a model spec that names nothing we can load
├── CheckpointError   weights that are missing, unexpected, misshapen or not ours
├── ConversionError   a model that the other layout cannot represent, or a destination that is taken
├── HubError          a repository on the Hub that cannot be written
├── ShapeError        an array of the wrong shape, dtype or length
└── TokenError        text that cannot be turned into tokens
"""

from __future__ import annotations


class ModelError(Exception):
    """Base of all errors raised by `model`."""


class SpecError(ModelError):
    """A model spec that names nothing we can load; the message says which forms exist."""


class CheckpointError(ModelError):
    """Weights that are missing, unexpected, misshapen or not ours; the message names the tensor."""


class ConversionError(ModelError):
    """A model that the other layout cannot represent, with every reason, or a destination that is taken."""


class HubError(ModelError):
    """A repository on the Hub that cannot be written: no token, no permission, no network."""


class ShapeError(ModelError, ValueError):
    """An array of the wrong shape, dtype or length; the message says what was expected."""


class TokenError(ModelError, ValueError):
    """Text that cannot be turned into tokens, such as one with a lone surrogate."""
