"""The errors of this package. Each message says what to do; it is shown without a traceback.

TrainingError
├── ConfigError           an invalid training config
├── DatasetError          annotations or videos that are missing or not as their layout says
├── RunError              a run that cannot begin, resume or be written
├── FullMemoryError       more memory needed than there is
├── EvaluationError       scores that cannot be evaluated
└── TrainingStoppedError  a run that was asked to stop, and did (`training.loop.stopping`)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TrainingError(Exception):
    """Anything that this package refuses."""


class ConfigError(TrainingError):
    """An invalid training config: an unknown field, a value out of range, two that contradict."""


class DatasetError(TrainingError):
    """Annotations or videos that are missing, unreadable or not as their layout says."""


class RunError(TrainingError):
    """A run that cannot begin, resume or be written: another config, other data, a damaged checkpoint."""


class FullMemoryError(TrainingError):
    """More memory needed than there is; the message says what takes less."""


class EvaluationError(TrainingError):
    """Scores that cannot be evaluated: not finite, or not one row a text and one column a video."""


_SIGNS = ("out of memory", "DefaultCPUAllocator")
"""In the message of what torch raises: on a GPU its own class, elsewhere a plain RuntimeError."""


@contextmanager
def explained_if_full(doing: str, advice: str) -> Iterator[None]:
    """Turn an allocation that fails inside into FullMemoryError with what was done and what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS):
            raise FullMemoryError(f"memory is full while {doing}: {advice}") from error
        raise
