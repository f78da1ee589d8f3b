"""What can go wrong in this room.

TrainingError
├── ConfigError           a training config that cannot be meant
├── DatasetError          annotations or videos that are missing or not as their layout says
├── RunError              a run that cannot begin, go on or be written down
├── FullMemoryError       more memory needed than there is
├── EvaluationError       scores that cannot be judged
└── TrainingStoppedError  a run that was asked to stop, and did (`training.loop.stopping`)

Memory that is full, told with what takes less of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TrainingError(Exception):
    """Anything that this room refuses. The message says what to do; it is shown without a traceback."""


class ConfigError(TrainingError):
    """A training config that cannot be meant: an unknown field, a value out of range, two that contradict."""


class DatasetError(TrainingError):
    """Annotations or videos that are missing, unreadable or not as their layout says."""


class RunError(TrainingError):
    """A run that cannot begin, go on or be written: another config, other data, a damaged checkpoint."""


class FullMemoryError(TrainingError):
    """More memory needed than there is; the message says what takes less."""


class EvaluationError(TrainingError):
    """Scores that cannot be judged: not finite, or not one row a text and one column a video."""


_SIGNS = ("out of memory", "DefaultCPUAllocator")
"""In the message of what torch raises: on a GPU its own class, elsewhere a plain RuntimeError."""


@contextmanager
def explained_if_full(doing: str, advice: str) -> Iterator[None]:
    """Turn an allocation that fails inside into FullMemoryError, which says both."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS):
            raise FullMemoryError(f"memory is full while {doing}: {advice}") from error
        raise
