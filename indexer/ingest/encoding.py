"""Decoded segments through the model, to what the store keeps of them.

Features of different fingerprints are never compared: `index_fingerprint` hashes all that they depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from indexer.store.records import IndexFacts, NewVideo, SegmentRecord

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from indexer.media.decode_messages import DecodedSegment
    from indexer.media.probing import MediaInfo
    from indexer.media.sampling import Sampling
    from model import XClip


def encode_segments(model: XClip, segments: Sequence[DecodedSegment]) -> list[SegmentRecord]:
    """Features of segments, in their order; they may belong to different videos.

    Args:
        model: the encoder.
        segments: at least one; frames uint8 [n, R, R, 3] each, 1 <= n <= F, of the model's R and F.

    Returns:
        Records with video features as float32 [D] and frame features as float16 [F, D].
    """
    return SegmentBatch(model, segments).records()


class SegmentBatch:
    """Segments that the model encodes together, of any videos.

    With a GPU the constructor only hands over the work, and `records` waits for it: made before the one
    before it is asked for its records, a batch is copied to the GPU while that one is computed.
    """

    def __init__(self, model: XClip, segments: Sequence[DecodedSegment]) -> None:
        """Begin. Padding frames are zeros after normalisation, as in training; their encodings take part in
        the scores of some checkpoints.

        Args:
            model: the encoder.
            segments: see `encode_segments`. Their pixels are not needed any more afterwards.
        """
        import torch  # Here, so that a library that has not changed is looked through without loading it.

        num_frames, size = model.config.num_frames, model.config.image_size
        counts = [len(segment.frames) for segment in segments]
        mask = torch.arange(num_frames) < torch.tensor(counts)[:, None]  # [S, F]
        with torch.inference_mode():
            real = _to_device([segment.frames for segment in segments], model.device)
            pixels = model.normalize_pixels(real)  # [sum of counts, 3, R, R]
            if sum(counts) < mask.numel():
                padded = torch.zeros(*mask.shape, 3, size, size, device=model.device)
                padded[mask.to(model.device)] = pixels
                pixels = padded
            features = model.encode_video(pixels.view(*mask.shape, 3, size, size), mask)
            self._video = _to_host(features.video.float())  # [S, D]
            self._frames = _to_host(features.frames.half())  # [S, F, D]
        self._done = None
        if model.device.type == "cuda":
            self._done = torch.cuda.current_stream(model.device).record_event()
        self._facts = [
            (segment.start_seconds, segment.end_seconds, count, segment.frame_times)
            for segment, count in zip(segments, counts, strict=True)
        ]

    def records(self) -> list[SegmentRecord]:
        """See `encode_segments`; waits for a GPU."""
        video, frames = self._video.numpy(), self._frames.numpy()
        if self._done is not None:
            self._done.synchronize()
            video, frames = video.copy(), frames.copy()  # Pinned memory is not for keeping.
        return [
            SegmentRecord(
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                video_feature=video[row],
                frame_features=frames[row],
                num_frames=count,
                frame_times=frame_times,
            )
            for row, (start_seconds, end_seconds, count, frame_times) in enumerate(self._facts)
        ]


def _to_device(frames: Sequence[NDArray[np.uint8]], device: torch.device) -> Tensor:
    """All frames, uint8 [N, R, R, 3]. To a GPU they travel from pinned memory, on a stream of their own: the
    current one may still be at work on other frames, and only waits before it uses these."""
    import torch

    is_cuda = device.type == "cuda"
    shape = (sum(map(len, frames)), *frames[0].shape[1:])
    joined = torch.empty(shape, dtype=torch.uint8, pin_memory=is_cuda)
    np.concatenate(frames, out=joined.numpy())
    if not is_cuda:
        return joined.to(device)
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    current = torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        there = joined.to(device, non_blocking=True)
    current.wait_stream(copying)
    there.record_stream(current)  # Its memory is not reused before the current stream is done with it.
    return there


def _to_host(features: Tensor) -> Tensor:
    """The features in memory of the host; from a GPU only begun, into pinned memory."""
    import torch

    if features.device.type != "cuda":
        return features.cpu()
    host = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
    return host.copy_(features, non_blocking=True)


def new_video(
    content_sha256: str, info: MediaInfo, segments: Sequence[SegmentRecord], fraction_read: float
) -> NewVideo:
    """What a file itself says of its video; its id, title and so on are for the caller to add.

    Args:
        content_sha256: 64 hex digits over the file's bytes.
        info: what the file says.
        segments: all of it, encoded.
        fraction_read: how much of the file could be read, 0 to 1.
    """
    return NewVideo(
        content_sha256=content_sha256,
        segments=segments,
        duration_seconds=info.duration_seconds,
        width=info.width,
        height=info.height,
        frame_rate=info.frame_rate,
        codec=info.codec,
        size_bytes=info.size_bytes,
        partial=fraction_read < 1,
        fraction_read=fraction_read,
        media_start_seconds=info.media_start_seconds,
        recorded_at=info.recorded_at,
    )


def index_facts(model: XClip, model_spec: str, sampling: Sampling) -> IndexFacts:
    """What an index made with this model and sampling is.

    Args:
        model: encodes its videos.
        model_spec: how to load the model again.
        sampling: which frames the model sees.
    """
    return IndexFacts(
        fingerprint=index_fingerprint(model, sampling),
        model_spec=model_spec,
        embedding_dim=model.config.embedding_dim,
        num_frames=model.config.num_frames,
        sampling_json=sampling.to_json(),
    )


def index_fingerprint(model: XClip, sampling: Sampling | str) -> str:
    """sha256, 64 hex digits, over the model's fingerprint (weights, config, preprocessing) and the sampling.

    Args:
        model: encodes the videos.
        sampling: which frames it sees, or the text that `Sampling.to_json` gave and a catalog stores.
    """
    sampling_json = sampling if isinstance(sampling, str) else sampling.to_json()
    return hashlib.sha256(f"{model.fingerprint}\n{sampling_json}".encode()).hexdigest()
