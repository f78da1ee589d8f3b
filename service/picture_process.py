"""placeholder"""

from __future__ import annotations

from pathlib import Path


class PictureProcess:
    def __init__(self, t: float) -> None: ...
    def __enter__(self):
        return self

    def __exit__(self, *a): ...
    def __call__(self, path: Path, time_seconds: float, width: int) -> bytes:
        return b""
