"""Attention scores on a GPU by the Triton kernel, where it can be had.

The one place that knows when: `FusedAttention` answers None where the caller has to score in another way.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from model.config import XClipConfig
from model.features import TextFeatures, VideoFeatures

logger = logging.getLogger(__name__)


class FusedAttention:
    """The kernel; not asked again after it failed once.

    device_type: of the devices that it is for; another than "cuda" needs Triton's interpreter.
    """

    def __init__(self, device_type: str = "cuda") -> None:
        self._device_type = device_type
        self._has_failed = False

    def is_for(self, config: XClipConfig, text: TextFeatures, video: VideoFeatures) -> bool:
        """Whether to ask for scores: attention, and features of an index (float16) on such a device."""
        return (
            video.video.device.type == self._device_type
            and text.words.device == video.video.device
            and video.frames.dtype == torch.float16
            and config.aggregation == "attention"
            and not self._has_failed
        )

    def scores(
        self,
        config: XClipConfig,
        matrices: Mapping[str, Tensor],
        text: TextFeatures,
        video: VideoFeatures,
        wanted: Collection[str],
        rows: Tensor | None = None,
    ) -> dict[str, Tensor] | None:
        """The wanted scores, not scaled, float32 [T, V] each, or [T, K] with rows.

        None for more words or frames than the kernel is for, and where it failed, which is logged.

        Args:
            config: Of the model.
            matrices: Of the `ScoreHead`, by name.
            text: T texts.
            video: V videos that `is_for` accepts.
            wanted: The scores to compute.
            rows: int64 [K], which of the videos to score, in which order; None for all. Not checked.

        Raises:
            torch.OutOfMemoryError: The device has no memory left.
        """
        try:
            # Here, because Triton is there only where PyTorch was built for GPUs.
            from model.kernels.triton_attention import attention_scores

            return attention_scores(config, matrices, text, video, wanted, rows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # Triton's errors have no common class: no C compiler for what launches a kernel, no folder for
            # compiled kernels, a GPU that it does not know. Whatever it is, the caller has another way.
            self._has_failed = True
            logger.warning("scoring goes without its Triton kernel: %s: %s", type(error).__name__, error)
            return None
