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
    from indexer.media.decode_messages import DecodedSegment
    from indexer.media.probing import MediaInfo
    from indexer.media.sampling import Sampling
    from model import XClip


def encode_segments(model: XClip, segments: Sequence[DecodedSegment]) -> list[SegmentRecord]:
    """Features of segments, in their order; they may belong to different videos.

    Padding frames are zeros after normalisation, as in training; their encodings take part in the scores of
    some checkpoints.

    Args:
        model: the encoder.
        segments: frames uint8 [n, R, R, 3] each, 1 <= n <= F, of the model's R and F.

    Returns:
        Records with video features as float32 [D] and frame features as float16 [F, D].
    """
    import torch  # Here, so that a library that has not changed is looked through without loading it.

    num_frames, size = model.config.num_frames, model.config.image_size
    counts = [len(segment.frames) for segment in segments]
    mask = torch.arange(num_frames) < torch.tensor(counts)[:, None]  # [S, F]
    with torch.inference_mode():
        pixels = torch.zeros(len(segments), num_frames, 3, size, size, device=model.device)
        real = np.concatenate([segment.frames for segment in segments])  # [sum of counts, R, R, 3]
        pixels[mask.to(model.device)] = model.normalize_pixels(real)
        features = model.encode_video(pixels, mask)
        video = features.video.float().cpu().numpy()  # [S, D]
        frames = features.frames.half().cpu().numpy()  # [S, F, D]
    return [
        SegmentRecord(
            start_seconds=segment.start_seconds,
            end_seconds=segment.end_seconds,
            video_feature=video[row],
            frame_features=frames[row],
            num_frames=counts[row],
            frame_times=segment.frame_times,
        )
        for row, segment in enumerate(segments)
    ]


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
