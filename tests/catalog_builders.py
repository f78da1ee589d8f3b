"""Small catalogs for tests: videos with random or chosen features, told apart by a number."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.catalog import Catalog
from indexer.catalog_records import AddOutcome, SegmentRecord

FINGERPRINT = "f" * 64


def create_catalog(
    directory: Path, *, embedding_dim: int = 8, num_frames: int = 4, **changes: Any
) -> Catalog:
    facts = {"fingerprint": FINGERPRINT, "model_spec": "demo", "sampling_json": "{}", **changes}
    return Catalog.create(directory, embedding_dim=embedding_dim, num_frames=num_frames, **facts)


def unit(vector: NDArray[Any]) -> NDArray[np.float32]:
    return (vector / np.linalg.norm(vector, axis=-1, keepdims=True)).astype(np.float32)


def make_segment(
    random: np.random.Generator,
    embedding_dim: int = 8,
    num_frames: int = 4,
    *,
    num_real_frames: int | None = None,
    start_seconds: float = 0.0,
    video_feature: NDArray[np.float32] | None = None,
) -> SegmentRecord:
    real = num_frames if num_real_frames is None else num_real_frames
    if video_feature is None:
        video_feature = unit(random.standard_normal(embedding_dim))
    return SegmentRecord(
        start_seconds=start_seconds,
        end_seconds=start_seconds + 10.0,
        video_feature=video_feature,
        frame_features=unit(random.standard_normal((num_frames, embedding_dim))).astype(np.float16),
        num_frames=real,
        frame_times=start_seconds + np.arange(real, dtype=np.float64),
    )


def sha256_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def add_video(catalog: Catalog, number: int, segments: Sequence[SegmentRecord], **changes: Any) -> AddOutcome:
    fields: dict[str, Any] = {
        "id": f"video-{number}",
        "content_sha256": sha256_of(number),
        "duration_seconds": 10.0 * len(segments),
        "width": 640,
        "height": 360,
        "frame_rate": 25.0,
        "codec": "h264",
        "size_bytes": 1000 + number,
    }
    return catalog.add_video(segments=segments, **{**fields, **changes})
