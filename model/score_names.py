"""What a config can choose for its scores; apart, so that reading a training config loads no torch."""

from __future__ import annotations

from typing import Literal, get_args

ScoreName = Literal["video_sentence", "video_word", "sentence_frame", "frame_word"]

SCORE_NAMES: tuple[str, ...] = get_args(ScoreName)
"""The four grains, in the order of the paper's equation 10 (arXiv:2207.07285)."""

Aggregation = Literal["attention", "max-max", "mean-mean", "mean-max", "max-mean"]
"""How similarities become a score (see `model.aggregation`)."""

DEFAULT_TEMPERATURE = 0.01
"""Softmax temperature of AOSM (official modules/modeling_xclip.py; the best of the paper's table 9)."""
