"""The names of the four scores; a module of its own, so that reading a training config loads no torch."""

from __future__ import annotations

SCORE_NAMES = ("video_sentence", "video_word", "sentence_frame", "frame_word")
"""The four grains, in the order of the paper's equation 10 (arXiv:2207.07285)."""
