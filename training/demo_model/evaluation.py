"""The demo model's tables: retrieval on held-out sets, for the total, each score, and pairs of scores."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model import Scores, VideoFeatures, XClip
from model.score_names import SCORE_NAMES
from training.demo_corpus.captions import (
    NOT_SAID,
    NOTHING_SHOWN,
    Description,
    EventDescription,
    names,
    satisfies,
    say,
    shown,
)
from training.demo_corpus.scene import Scene
from training.evaluation.metrics import retrieval_metrics

BRIEF_QUERIES = {
    "a thing": ("kind",),
    "a thing and its colour": ("kind", "colour"),
    "a thing and what it does": ("kind", "action"),
    "a colour and what happens": ("colour", "action"),
    "one event": ("kind", "colour", "action"),
}

LABELS = {"video_sentence": "VS", "video_word": "VW", "sentence_frame": "SF", "frame_word": "FW"}


def encode_frames(model: XClip, frames: NDArray[np.uint8]) -> VideoFeatures:
    """Features of whole videos, uint8 [N, F, R, R, 3], in batches of 64."""
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    return VideoFeatures.cat(
        [
            model.encode_video(model.normalize_pixels(frames[first : first + 64]), mask[first : first + 64])
            for first in range(0, len(frames), 64)
        ]
    )


def score_set(model: XClip, frames: NDArray[np.uint8], captions: Sequence[str]) -> Scores:
    """All N captions with all N videos."""
    return model.score(model.encode_text(list(captions)), encode_frames(model, frames))


def table(scores: Scores) -> list[dict[str, Any]]:
    """One row a combination of scores: the total, each alone, each pair, all four; both directions."""
    singles = {name: getattr(scores, name).numpy() for name in SCORE_NAMES}
    subsets: dict[str, NDArray[np.float32]] = {"total": scores.total.numpy()}
    for size in (1, 2):
        for chosen in combinations(SCORE_NAMES, size):
            label = " + ".join(chosen) if size == 1 else " + ".join(LABELS[name] for name in chosen)
            subsets[label] = np.mean([singles[name] for name in chosen], axis=0)
    rows = []
    for label, similarity in subsets.items():
        for direction, matrix in (("text to video", similarity), ("video to text", similarity.T)):
            rows.append({"scores": label, "direction": direction, **asdict(retrieval_metrics(matrix))})
    return rows


def brief_table(
    model: XClip, scenes: Sequence[Scene], frames: NDArray[np.uint8], seed: int
) -> list[dict[str, Any]]:
    """How often, in percent, the first result of a brief query satisfies it: one row for each kind of query.

    Each query describes the first event of one of the N scenes.

    Args:
        frames: uint8 [N, F, R, R, 3].
    """
    rng = random.Random(seed)
    video = encode_frames(model, frames)
    rows = []
    for kind, attributes in BRIEF_QUERIES.items():
        descriptions = []
        for scene in scenes:
            event = scene.events[0]
            said = {"kind": event.actor.kind, "colour": event.actor.colour, "action": event.action}
            kept = {name: said[name] if name in attributes else None for name in said}
            descriptions.append(Description(None, (EventDescription(**kept),)))
        queries = [say(description, rng) for description in descriptions]
        first = model.score(model.encode_text(queries), video).total.argmax(dim=1).tolist()
        right = [satisfies(one, scenes[index]) for one, index in zip(descriptions, first, strict=True)]
        rows.append(
            {"query": kind, "example": queries[0], "first_result_right": 100.0 * float(np.mean(right))}
        )
    return rows


def named_right(model: XClip, scenes: Sequence[Scene], frames: NDArray[np.uint8]) -> dict[str, float]:
    """How many single frames, in percent, have their own name first among all: of kinds, colours, and both.

    What the vision tower alone can tell; frames that show nothing are left out.

    Args:
        frames: uint8 [N, F, R, R, 3], of N scenes.
    """
    facts = np.array([[shown(scene, float(second)) for second in range(frames.shape[1])] for scene in scenes])
    visible = facts[..., 0] != NOTHING_SHOWN
    pictures = encode_frames(model, frames).frames[torch.from_numpy(visible)]
    wordings, claims = zip(*names(), strict=True)
    sentences = model.encode_text([first for first, _ in wordings]).sentence
    ranked, numbers = (sentences @ pictures.T).numpy(), np.array(claims)
    found = {}
    for name, said in (("kind", (True, False)), ("colour", (False, True)), ("both", (True, True))):
        of_this_form = np.flatnonzero(((numbers != NOT_SAID) == said).all(axis=1))
        best = numbers[of_this_form[ranked[of_this_form].argmax(axis=0)]]
        found[name] = 100.0 * float((best == facts[visible])[:, list(said)].all(axis=1).mean())
    return found


def brief_markdown(num_videos: int, rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `brief_table` as a Markdown table."""
    lines = [
        f"### Brief queries, {num_videos} videos",
        "",
        "| query | example | first result right |",
        "| --- | --- | ---: |",
    ]
    lines += [f"| {row['query']} | {row['example']} | {row['first_result_right']:.1f} |" for row in rows]
    return "\n".join(lines) + "\n"


def recall(rows: Sequence[dict[str, Any]], scores: str, direction: str = "text to video") -> float:
    """R@1 of one row of `table`, percent."""
    return next(
        float(row["recall_at_1"]) for row in rows if row["scores"] == scores and row["direction"] == direction
    )


def markdown(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        f"### {name}",
        "",
        "| scores | direction | R@1 | R@5 | R@10 | median rank | mean rank |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['scores']} | {row['direction']} | {row['recall_at_1']:.1f} | {row['recall_at_5']:.1f} | "
        f"{row['recall_at_10']:.1f} | {row['median_rank']:.0f} | {row['mean_rank']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"
