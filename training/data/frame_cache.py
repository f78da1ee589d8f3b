"""Decoded frames kept in a folder, so that each clip is decoded once and not in every epoch.

    DIR/3f/3f9a...c1.safetensors     one clip: `frames` uint8 [n, R, R, 3], and in the header what they are of

The name is a hash of a description: the file's path, size and time of change, the interval, how frames are
chosen and cut. Whatever of that changes gives another name, so that nothing stale is ever found. An entry is
written under a temporary name and renamed when it is complete; several processes may fill one folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
import warnings
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

_logger = logging.getLogger(__name__)

_FORMAT: Final = 1
"""Part of every description: raise it when what is stored changes its meaning."""


class FrameCache:
    """Entries in one folder, which is made when the first is written.

    Args:
        directory: Where.
        corpus: A folder of videos. Files below it are known by their path inside it, so that the entries
            still fit when the corpus is mounted elsewhere; all others are known by their full path.
    """

    def __init__(self, directory: Path, corpus: Path | None = None) -> None:
        self.directory = Path(directory)
        self._corpus = None if corpus is None else Path(corpus).resolve()
        self._warned = False

    def describe_file(self, path: Path) -> dict[str, Any]:
        """What identifies a version of a video file. Raises OSError."""
        resolved = path.resolve()
        status = resolved.stat()
        name = str(resolved)
        if self._corpus is not None and resolved.is_relative_to(self._corpus):
            name = str(resolved.relative_to(self._corpus))
        return {"file": name, "size_bytes": status.st_size, "modified_ns": status.st_mtime_ns}

    def read(
        self, description: Mapping[str, Any], image_size: int, max_frames: int
    ) -> NDArray[np.uint8] | None:
        """The frames of this description, uint8 [n, R, R, 3] with R = image_size and 1 <= n <= max_frames.

        None where there is no entry, or one that is damaged: that is logged, and the next `write` replaces
        it.

        Args:
            description: JSON values.
        """
        text, path = self._entry(description)
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                frames: NDArray[np.uint8] = file.get_tensor("frames")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            _logger.warning("decoding again what the frame cache holds damaged (%s): %s", error, path)
            return None
        if (
            frames.dtype != np.uint8
            or frames.ndim != 4
            or frames.shape[1:] != (image_size, image_size, 3)
            or not 1 <= len(frames) <= max_frames
            or header != _header(text, frames)
        ):
            _logger.warning("decoding again what the frame cache holds damaged: %s", path)
            return None
        return frames

    def write(self, description: Mapping[str, Any], frames: NDArray[np.uint8]) -> bool:
        """Keep frames, uint8 [n, R, R, 3], under a description; replaces an existing entry.

        Where the disk is full or may not be written to, a warning says so once in this process, and nothing
        half written stays.

        Returns:
            Whether it worked.
        """
        text, path = self._entry(description)
        unfinished = path.with_name(f".{path.stem}.{os.getpid()}.{uuid.uuid4().hex}.unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                # Not synchronised to disk: what a power failure leaves is found damaged and decoded again.
                unfinished.write_bytes(safetensors.numpy.save({"frames": frames}, _header(text, frames)))
                unfinished.replace(path)
            except BaseException:
                with suppress(OSError):
                    unfinished.unlink()
                raise
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"decoded frames cannot be kept in {self.directory} ({error.strerror or error});"
                    " these clips are decoded again each time",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return False
        return True

    def _entry(self, description: Mapping[str, Any]) -> tuple[str, Path]:
        """A description's text, and the file that holds its frames."""
        text = json.dumps({"format": _FORMAT, **description}, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()
        return text, self.directory / name[:2] / f"{name}.safetensors"


def _header(text: str, frames: NDArray[np.uint8]) -> dict[str, str]:
    """What an entry holds in addition to its frames. One value: safetensors writes several in any order."""
    checksum = zlib.crc32(np.ascontiguousarray(frames).data)
    return {"entry": json.dumps({"description": text, "crc32": f"{checksum:08x}"})}
