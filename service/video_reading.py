"""From an untrusted file to what the catalog stores: decoded in a child process, encoded by the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from indexer.catalog_records import SegmentRecord
from indexer.decode_pool import DecodedSegment, DecodedVideo, DecodePool, DecodeRequest
from indexer.errors import MediaError
from indexer.sampling import Sampling

if TYPE_CHECKING:
    from model import XClip

SEGMENTS_AT_ONCE = 4
"""Decoded and encoded together: bounds memory for films of hours, and lets a stop come through."""


class VideoReader:
    """Reads videos for one index. Use as a context manager: it owns a decoding process.

    sampling_json: the index's. timeout_seconds: for decoding SEGMENTS_AT_ONCE segments.
    """

    def __init__(self, model: XClip, sampling_json: str, timeout_seconds: float) -> None:
        self._model = model
        self._sampling = Sampling.from_json(sampling_json)
        self._pool = DecodePool(1, timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def read(self, path: Path) -> dict[str, Any]:
        """The fields of `Catalog.add_video` that a file itself tells. Blocks; raises MediaError."""
        first = self._decode(path, 0)
        records = encode_segments(self._model, first.segments)
        fraction_read = first.fraction_read
        while len(records) < first.num_segments:
            more = self._decode(path, len(records))
            if more.content_sha256 != first.content_sha256:
                raise MediaError("the file changed while it was read")
            records += encode_segments(self._model, more.segments)
            fraction_read = min(fraction_read, more.fraction_read)
        info = first.info
        return {
            "content_sha256": first.content_sha256,
            "segments": records,
            "duration_seconds": info.duration_seconds,
            "width": info.width,
            "height": info.height,
            "frame_rate": info.frame_rate,
            "codec": info.codec,
            "size_bytes": info.size_bytes,
            "partial": fraction_read < 1,
            "fraction_read": fraction_read,
        }

    def _decode(self, path: Path, first_segment: int) -> DecodedVideo:
        request = DecodeRequest(
            str(path),
            self._sampling,
            self._model.image_size,
            trusted=False,
            first_segment=first_segment,
            max_segments=SEGMENTS_AT_ONCE,
        )
        return self._pool.submit(request).result()


def encode_segments(model: XClip, segments: Sequence[DecodedSegment]) -> list[SegmentRecord]:
    """Features of decoded segments, encoded as one batch, in the form that the catalog stores."""
    num_frames, size = model.num_frames, model.image_size
    # Padding frames are zeros after the normalisation: that is what the model was trained with.
    pixels = torch.zeros(len(segments), num_frames, 3, size, size, device=model.device)
    mask = torch.zeros(len(segments), num_frames, dtype=torch.bool)
    for number, segment in enumerate(segments):
        pixels[number, : len(segment.frames)] = model.normalize_pixels(segment.frames)
        mask[number, : len(segment.frames)] = True
    with torch.inference_mode():
        features = model.encode_video(pixels, mask)
    video = features.video.float().cpu().numpy()
    frames = features.frames.cpu().numpy().astype(np.float16)
    return [
        SegmentRecord(
            start_seconds=segment.start_seconds,
            end_seconds=segment.end_seconds,
            video_feature=video[number],
            frame_features=frames[number],
            num_frames=len(segment.frames),
            frame_times=segment.frame_times,
        )
        for number, segment in enumerate(segments)
    ]
