"""A picture or a clip that is searched with: opened in a decoding child, like every other file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indexer.ingest.encoding import encode_segments
from indexer.media.decode_messages import DecodedSegment, DecodeRequest
from indexer.media.decode_pool import DecodePool
from indexer.media.sampling import Sampling
from model.features import VideoFeatures
from model.preprocessing import Resizing

if TYPE_CHECKING:
    from model.xclip import XClip


@dataclass(frozen=True, eq=False)
class QueryMedia:
    """What a file shows.

    segments: of a clip, its first ones; of a picture one, with one frame. warnings: sentences for the user.
    """

    segments: Sequence[DecodedSegment]
    warnings: Sequence[str] = ()

    def encode(self, model: XClip) -> VideoFeatures:
        """Features of S segments, on the model's device: those that the file would be indexed with."""
        import torch  # Here: the file is read while the model is loaded.

        records = encode_segments(model, self.segments)
        counts = torch.tensor([record.num_frames for record in records])
        return VideoFeatures(
            torch.from_numpy(np.stack([record.video_feature for record in records])),
            torch.from_numpy(np.stack([record.frame_features for record in records])),
            torch.arange(model.config.num_frames) < counts[:, None],
        ).to(model.device)


def read_media(pool: DecodePool, path: Path, resizing: Resizing, sampling: Sampling) -> QueryMedia:
    """Decode a picture or a clip as the videos of an index were.

    Args:
        pool: Whose children open the file.
        path: JPEG, PNG, WebP, AVIF, GIF (its first frame), BMP or TIFF; or any video that can be indexed.
        resizing: Of the model of the index.
        sampling: Of the index.

    Raises:
        MediaError: It is neither, it is damaged, or it exceeds the limits of `pool`.
    """
    still = pool.submit_still(path, resizing).result()
    if still is not None:
        return QueryMedia([DecodedSegment(0.0, 0.0, still[None], np.zeros(1))])
    video = pool.submit(DecodeRequest(str(path), sampling, resizing)).result()
    warnings = []
    if len(video.segments) < video.num_segments:
        end_seconds = video.segments[-1].end_seconds
        warnings.append(
            f"the clip is long: only its first {end_seconds:.0f} of {video.info.duration_seconds:.0f} seconds"
            " were compared"
        )
    if video.partial:
        warnings.append(f"the clip is damaged: {video.fraction_read:.0%} of it could be read")
    return QueryMedia(video.segments, warnings)
