"""What a row of `metrics.jsonl` says of a validation, the same on every process."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import distributed

from training.evaluation.protocol import RetrievalResult
from training.processes import world_size

DIRECTIONS: Final = ("text_to_video", "video_to_text")
RATES: Final = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank")
"""Percent, percent, percent, rank from 1, rank from 1."""


def figures_of(result: RetrievalResult) -> dict[str, Any]:
    """The figures of both directions, and the numbers of texts and clips, as JSON values."""
    figures: dict[str, Any] = {}
    for direction in DIRECTIONS:
        metrics = getattr(result, direction)
        figures[direction] = {name: getattr(metrics, name) for name in RATES}
        figures[direction]["num_queries"] = metrics.num_queries
    return {**figures, "num_texts": result.num_texts, "num_clips": result.num_clips}


def shared_figures(figures: dict[str, Any] | None, device: torch.device) -> dict[str, Any]:
    """The first process's figures, on all processes; the others give None."""
    if world_size() == 1:
        assert figures is not None
        return figures
    names = (*RATES, "num_queries")
    numbers = [0.0] * (len(DIRECTIONS) * len(names) + 2)
    if figures is not None:
        numbers = [float(figures[direction][name]) for direction in DIRECTIONS for name in names]
        numbers += [figures["num_texts"], figures["num_clips"]]
    sent = torch.tensor(numbers, dtype=torch.float64, device=device)
    distributed.broadcast(sent, src=0)
    *rates, num_texts, num_clips = sent.tolist()
    waiting = iter(rates)
    found: dict[str, Any] = {direction: {name: next(waiting) for name in names} for direction in DIRECTIONS}
    for direction in DIRECTIONS:
        found[direction]["num_queries"] = int(found[direction]["num_queries"])
    return {**found, "num_texts": int(num_texts), "num_clips": int(num_clips)}
