"""Features of segments as the model scores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from indexer.store.records import SegmentFeatures
from model.features import VideoFeatures, VideoRecords


@dataclass(frozen=True, eq=False)
class ScorableSegments:
    """Features of N segments on the model's device, row by row.

    segment_ids, video_keys: int64 [N]; rows of one video share its number. videos: frames as stored,
    float16, which scoring widens.
    """

    segment_ids: NDArray[np.int64]
    video_keys: NDArray[np.int64]
    videos: VideoFeatures

    def __len__(self) -> int:
        return len(self.segment_ids)

    def __getitem__(self, rows: NDArray[np.intp]) -> Self:
        videos = self.videos[torch.from_numpy(rows).to(self.videos.video.device)]
        return type(self)(self.segment_ids[rows], self.video_keys[rows], videos)

    @classmethod
    def of(cls, features: SegmentFeatures, device: torch.device) -> Self:
        """What the store has read, on `device`."""
        return cls(
            features.segment_ids,
            features.video_keys,
            VideoFeatures(
                # A copy, aligned as all memory of torch: the last bits of a product may depend on it.
                torch.from_numpy(features.video).to(device, copy=True),
                torch.from_numpy(features.frames).to(device),
                frame_mask(features.num_frames, features.frames.shape[1], device),
            ),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self], order: NDArray[np.intp]) -> Self:
        """The rows of `parts`, one after the other, in another order: row i is what was row `order[i]`."""
        filled = [part for part in parts if len(part)] or list(parts[:1])
        if len(filled) == 1 and np.array_equal(order, np.arange(len(order))):
            return filled[0]
        together = cls(
            np.concatenate([part.segment_ids for part in filled]),
            np.concatenate([part.video_keys for part in filled]),
            VideoFeatures.cat([part.videos for part in filled]),
        )
        return together[order]


@dataclass(frozen=True, eq=False)
class SegmentsInPlace:
    """N segments whose features stay where they are: to be scored, not to be looked at.

    segment_ids, video_keys: as of `ScorableSegments`. videos: their records.
    """

    segment_ids: NDArray[np.int64]
    video_keys: NDArray[np.int64]
    videos: VideoRecords

    def __len__(self) -> int:
        return len(self.segment_ids)


def frame_mask(num_frames: NDArray[np.int64], most: int, device: torch.device) -> Tensor:
    """bool [N, most], true for real frames. num_frames: int64 [N], how many are real; they come first."""
    return torch.from_numpy(np.arange(most) < num_frames[:, None]).to(device)
