"""The frames of a clip as the network sees them: chosen, decoded, resized and cropped.

The official rule is that of github.com/xuguohai/X-CLIP, dataloaders/rawvideo_util.py and the loaders next to
it: frames by number with the truncated frame rate, seconds of an interval as whole numbers, its last second
included. The rule by time is this project's own (`indexer.media.sampling`).
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from indexer.errors import MediaError
from indexer.media.frame_reader import Backend, VideoFile
from indexer.media.probing import MediaLimits
from indexer.media.sampling import (
    TIME_TOLERANCE_SECONDS,
    Rule,
    SliceMode,
    frame_indices_at,
    official_frame_positions,
    slice_positions,
)
from indexer.media.timeline import Timeline
from model.preprocessing import PREPROCESSING, Resizing
from training.data.frame_cache import FrameCache
from training.datasets.split import Clip
from training.errors import ConfigError, DatasetError

Order = Literal["forward", "reversed", "shuffled"]

_logger = logging.getLogger(__name__)

_DECODING: Final = 2
"""Part of what cached frames are known by: raise it when decoding gives other frames or pixels."""


@dataclass(frozen=True)
class FrameRecipe:
    """Which frames stand for a clip, in which order and size.

    Attributes:
        num_frames: F, the most that are kept.
        resizing: How a frame becomes the model's square.
        frames_per_second: Candidates a second, of which F are kept; a whole number for the official rule.
        slice_mode: Which F of more candidates: the first, the last, or evenly spread (official slice_framepos
            0, 1, 2).
        order: Official frame_order 0, 1, 2.
        rule: `official` or `time`, see `frame_positions`.

    Raises:
        ConfigError: A value is out of its range.
    """

    num_frames: int
    resizing: Resizing
    frames_per_second: float = 1.0
    slice_mode: SliceMode = "uniform"
    order: Order = "forward"
    rule: Rule = "official"

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.resizing.image_size < 1:
            raise ConfigError("num_frames and image_size are at least 1")
        if not (math.isfinite(self.frames_per_second) and 0 < self.frames_per_second <= 1000):
            raise ConfigError("frames_per_second is above 0 and at most 1000")
        if self.slice_mode not in ("head", "tail", "uniform"):
            raise ConfigError(f"slice_mode is head, tail or uniform, not {self.slice_mode!r}")
        if self.order not in ("forward", "reversed", "shuffled"):
            raise ConfigError(f"the order of frames is forward, reversed or shuffled, not {self.order!r}")
        if self.rule not in ("official", "time"):
            raise ConfigError(f"the rule for frames is official or time, not {self.rule!r}")
        if self.rule == "official" and self.frames_per_second != int(self.frames_per_second):
            raise ConfigError("the official rule needs a whole number of frames_per_second")
        object.__setattr__(self, "frames_per_second", float(self.frames_per_second))


class FrameReader:
    """Reads clips by one recipe, from the cache where it holds them. Light to send to other processes.

    Args:
        cache: Where decoded frames are kept, or None.
        seed: Of the shuffled order, 0 or more.
        backend: What decodes, see `indexer.media.frame_reader.VideoFile.frames_at`. Its pixels differ between
            backends by rounding, so that each has its own entries in the cache.
    """

    def __init__(
        self,
        recipe: FrameRecipe,
        cache: FrameCache | Path | None = None,
        *,
        seed: int = 0,
        backend: Backend = "auto",
    ) -> None:
        self.recipe = recipe
        self.cache = FrameCache(cache) if isinstance(cache, Path) else cache
        self.seed = seed
        self.backend: Backend = backend

    def read(self, clip: Clip, epoch: int = 0) -> NDArray[np.uint8]:
        """RGB uint8 [n, R, R, 3], 1 <= n <= F, ready for `model` but for the scaling of its values.

        Args:
            epoch: Decides the shuffled order together with the seed and the clip's id; nothing else.

        Raises:
            DatasetError: Its file cannot be read or has no frame in the interval; the message names the clip.
        """
        frames = self._read_forward(clip)
        if self.recipe.order == "reversed":
            return np.ascontiguousarray(frames[::-1])
        if self.recipe.order == "shuffled":
            return frames[_shuffle(len(frames), self.seed, epoch, clip.id)]
        return frames

    def _read_forward(self, clip: Clip) -> NDArray[np.uint8]:
        try:
            if self.cache is None:
                return self._decode(clip)
            description = self._describe(clip, self.cache)
            frames = self.cache.read(description, self.recipe.resizing.image_size, self.recipe.num_frames)
            if frames is None:
                frames = self._decode(clip)
                self.cache.write(description, frames)
            return frames
        except MediaError as error:
            raise DatasetError(unreadable(clip, error.reason)) from error
        except OSError as error:
            raise DatasetError(unreadable(clip, error.strerror or str(error))) from error

    def _decode(self, clip: Clip) -> NDArray[np.uint8]:
        file = VideoFile(clip.path, MediaLimits(max_duration_seconds=math.inf))
        positions = frame_positions(file.timeline, clip, self.recipe)
        if not positions:
            raise DatasetError(
                f"clip {clip.id!r} has no frames: it starts at {clip.start_seconds} s, but the video ends"
                f" at {file.timeline.end_seconds:.1f} s ({clip.path})"
            )
        if file.timeline.fraction_present < 1:
            share = 100 * file.timeline.fraction_present
            _logger.warning("clip %r is truncated: %.0f %% of it is present (%s)", clip.id, share, clip.path)
        times = [float(file.timeline.times[position]) for position in positions]
        squares: list[NDArray[np.uint8]] = []
        last = None
        for frame in file.frames_at(times, self.backend, min_side=2 * self.recipe.resizing.image_size):
            # A picture that is shown for seconds is resized and cropped once.
            squares.append(squares[-1] if frame is last else self.recipe.resizing(frame.rgb))
            last = frame
        return np.stack(squares)

    def _describe(self, clip: Clip, cache: FrameCache) -> dict[str, Any]:
        """What decides the pixels of a clip in forward order."""
        recipe = self.recipe
        described = cache.describe_file(clip.path) | {
            "start_seconds": clip.start_seconds,
            "end_seconds": clip.end_seconds,
            "num_frames": recipe.num_frames,
            "image_size": recipe.resizing.image_size,
            "frames_per_second": recipe.frames_per_second,
            "slice_mode": recipe.slice_mode,
            "rule": recipe.rule,
            "backend": self.backend,
            "decoding": _DECODING,
            "preprocessing": PREPROCESSING,
        }
        if recipe.resizing != Resizing(recipe.resizing.image_size):  # CLIP's own way has never been named
            described["resizing"] = asdict(recipe.resizing)
        return described


def unreadable(clip: Clip, reason: str) -> str:
    """What error messages say of a clip that cannot be read."""
    return f"clip {clip.id!r} cannot be read: {reason} ({clip.path})"


def frame_positions(timeline: Timeline, clip: Clip, recipe: FrameRecipe) -> list[int]:
    """Which frames of a file, by their positions in its timeline, ascending; a position may come twice.

    By the official rule, or by time: `frames_per_second` from the start of the interval up to before its end.
    The official rule has no answer for a video with fewer frames a second than that (the official code fails
    there): such a video is read by time. Of all candidates the recipe's slice is kept. Empty where the
    interval starts after the video's end.

    Raises:
        DatasetError: A start or end that is no number.
    """
    for bound in (clip.start_seconds, clip.end_seconds):
        if bound is not None and not math.isfinite(bound):
            raise DatasetError(f"clip {clip.id!r} starts or ends at {bound} seconds")
    if recipe.rule == "official" and has_official_answer(timeline, recipe):
        rate = int(recipe.frames_per_second)
        positions = official_frame_positions(len(timeline), timeline.frame_rate, rate)
        first, last = official_seconds(clip.start_seconds, clip.end_seconds)
        # Every second but the last has `rate` positions, so they can be counted off.
        candidates = positions[first * rate : None if last is None else (last + 1) * rate]
    else:
        candidates = _positions_by_time(timeline, clip, recipe.frames_per_second)
    kept = slice_positions(len(candidates), recipe.num_frames, recipe.slice_mode)
    return [candidates[number] for number in kept]


def has_official_answer(timeline: Timeline, recipe: FrameRecipe) -> bool:
    """Whether the official rule can take `frames_per_second` frames from each second of this video."""
    return int(timeline.frame_rate) >= max(1, int(recipe.frames_per_second))


def official_seconds(start_seconds: float | None, end_seconds: float | None) -> tuple[int, int | None]:
    """The first and the last second that the official loaders read of an interval; None: to the end.

    Truncated to whole seconds, not below 0, swapped if reversed, the end one later if they are equal
    (dataloaders/dataloader_activitynet_retrieval.py, dataloader_didemo_retrieval.py: `_get_rawvideo`). The
    last second is read too. An interval that extends beyond the video's end needs no capping here:
    reading stops at the last frame.
    """
    start = max(0, int(start_seconds or 0))
    if end_seconds is None:
        return start, None
    end = max(0, int(end_seconds))
    if start > end:
        return end, start
    return start, end if end > start else end + 1


def _positions_by_time(timeline: Timeline, clip: Clip, frames_per_second: float) -> list[int]:
    start = max(0.0, clip.start_seconds or 0.0)
    end = timeline.end_seconds if clip.end_seconds is None else max(0.0, clip.end_seconds)
    if clip.end_seconds is not None and start > end:
        start, end = end, start
    end = min(end, timeline.end_seconds)
    if start >= timeline.end_seconds:
        return []
    # As `indexer.media.sampling.sample_times`: a candidate within the tolerance of the end is outside.
    count = max(1, math.ceil((end - start - TIME_TOLERANCE_SECONDS) * frames_per_second))
    times = [start + number / frames_per_second for number in range(count)]
    return [int(position) for position in frame_indices_at(timeline.times, times)]


def _shuffle(count: int, seed: int, epoch: int, clip_id: str) -> NDArray[np.int64]:
    """A permutation of 0..count-1, the same for the same arguments on every machine and in every version."""
    digest = hashlib.sha256(f"{seed} {epoch} {clip_id}".encode()).digest()
    keys = np.random.PCG64(int.from_bytes(digest)).random_raw(count)
    return np.argsort(keys, kind="stable")
