"""Which metrics a split is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model import XClip
from training.errors import EvaluationError
from training.evaluation.encoding import OnProgress, encode_split
from training.evaluation.similarity import similarity
from training.metrics import (
    RetrievalMetrics,
    multi_caption_metrics,
    require_finite,
    retrieval_metrics,
    video_to_text_similarity,
)

if TYPE_CHECKING:
    from training.datasets.split import Split
    from training.frames import FrameReader


@dataclass(frozen=True)
class RetrievalResult:
    """Both directions of one split. Video to text counts clips as queries, text to video texts."""

    text_to_video: RetrievalMetrics
    video_to_text: RetrievalMetrics
    num_texts: int
    num_clips: int


def judge(total: NDArray[np.floating], split: Split) -> RetrievalResult:
    """The official metrics of scores of all T texts (rows) with all V clips (columns), both directions.

    One text a clip: plain metrics of the square matrix and its transpose. Several: each text is a query of
    its own, and a clip's best caption stands for the clip (`training.metrics`).
    Raises EvaluationError, naming text and clip, where a score is not finite.
    """
    if total.shape != (len(split.texts), len(split.clips)):
        raise EvaluationError(
            f"scores {list(total.shape)} for {len(split.texts)} texts and {len(split.clips)} clips"
        )
    require_finite(total, split.texts, [clip.id for clip in split.clips])
    if split.has_several_texts_per_clip:
        text_to_video = multi_caption_metrics(total, split.clip_of_text)
        by_video = video_to_text_similarity(total, split.clip_of_text)
    else:
        text_to_video = retrieval_metrics(total)
        by_video = total.T
    return RetrievalResult(text_to_video, retrieval_metrics(by_video), len(split.texts), len(split.clips))


def evaluate_split(
    model: XClip,
    split: Split,
    reader: FrameReader,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    on_progress: OnProgress | None = None,
) -> RetrievalResult:
    """Encode a split, score all its pairs and judge them. The model keeps its mode and its gradients.

    batch_size: clips encoded together. num_workers: processes that decode.
    """
    encoded = encode_split(
        model, split, reader, batch_size=batch_size, num_workers=num_workers, on_progress=on_progress
    )
    return judge(similarity(model, encoded.text, encoded.video, on_progress=on_progress), split)
