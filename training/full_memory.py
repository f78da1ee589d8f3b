"""Memory that is full, told with what takes less of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from training.errors import FullMemoryError

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
