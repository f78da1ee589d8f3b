"""The demo model's table: retrieval on held-out sets, for the total, each score alone, and pairs.

Which captions are true of which videos, for a whole batch at once: descriptions and scenes as numbers.

The same relation as `training.demo_corpus.captions.satisfies`, which a test holds it to.
"""

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
from model.features import SCORE_NAMES
from training.demo_corpus.captions import Description, EventDescription, satisfies, say
from training.demo_corpus.scene import ACTIONS, BACKGROUNDS, COLOURS, KINDS, Scene
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
        for names in combinations(SCORE_NAMES, size):
            label = " + ".join(names) if size == 1 else " + ".join(LABELS[name] for name in names)
            subsets[label] = np.mean([singles[name] for name in names], axis=0)
    rows = []
    for label, similarity in subsets.items():
        for direction, matrix in (("text to video", similarity), ("video to text", similarity.T)):
            rows.append({"scores": label, "direction": direction, **asdict(retrieval_metrics(matrix))})
    return rows


def brief_table(
    model: XClip, scenes: Sequence[Scene], frames: NDArray[np.uint8], seed: int
) -> list[dict[str, Any]]:
    """How often the first result of a brief query satisfies it, one row for each sort of query.

    Each query speaks of the first event of one of the N scenes. frames: uint8 [N, F, R, R, 3]. Percent.
    """
    rng = random.Random(seed)
    video = encode_frames(model, frames)
    rows = []
    for sort, attributes in BRIEF_QUERIES.items():
        descriptions = []
        for scene in scenes:
            event = scene.events[0]
            said = {"kind": event.actor.kind, "colour": event.actor.colour, "action": event.action}
            kept = {name: said[name] if name in attributes else None for name in said}
            descriptions.append(Description(None, (EventDescription(**kept),)))
        queries = [say(description, rng) for description in descriptions]
        first = model.score(model.encode_text(queries), video).total.argmax(dim=1).tolist()
        right = [satisfies(one, scenes[place]) for one, place in zip(descriptions, first, strict=True)]
        rows.append(
            {"query": sort, "example": queries[0], "first_result_right": 100.0 * float(np.mean(right))}
        )
    return rows


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


NOT_SAID = -1
NUM_CLAIMS = 9
NUM_FACTS = 9
"""Columns of both: background, number of events, same actor, then kind, colour, action of two events."""


def describe_briefly(scene: Scene, rng: random.Random) -> Description:
    """What a person in a hurry types: one thing, by its kind or colour or both, and perhaps more."""
    event = rng.choice(scene.events)
    attributes = rng.choice((("kind",), ("kind", "colour"), ("colour",)))
    said = EventDescription(
        kind=event.actor.kind if "kind" in attributes else None,
        colour=event.actor.colour if "colour" in attributes else None,
        action=event.action if rng.random() < 0.5 else None,
    )
    return Description(scene.background if rng.random() < 0.3 else None, (said,))


def facts_of(scene: Scene) -> list[int]:
    """A scene as `NUM_FACTS` numbers; a second event that is not there has kind, colour and action -2."""
    row = [BACKGROUNDS.index(scene.background), len(scene.events), int(scene.same_actor)]
    for event in scene.events:
        row += [KINDS.index(event.actor.kind), COLOURS.index(event.actor.colour), ACTIONS.index(event.action)]
    return row + [-2] * (NUM_FACTS - len(row))


def claims_of(description: Description) -> list[int]:
    """A description as `NUM_CLAIMS` numbers, `NOT_SAID` where it says nothing."""

    def number(value: str | None, values: tuple[str, ...]) -> int:
        return NOT_SAID if value is None else values.index(value)

    row = [number(description.background, BACKGROUNDS), len(description.events), int(description.same_actor)]
    for said in description.events:
        row += [number(said.kind, KINDS), number(said.colour, COLOURS), number(said.action, ACTIONS)]
    return row + [NOT_SAID] * (NUM_CLAIMS - len(row))


def true_of(claims: NDArray[np.int64], facts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each caption is true of each video: bool [T, V].

    claims: int64 [T, NUM_CLAIMS], from `claims_of`. facts: int64 [V, NUM_FACTS], from `facts_of`.
    """
    claimed, actual = claims[:, None, :], facts[None, :, :]  # [T, 1, 9], [1, V, 9]

    def matches(said: int, event: int) -> NDArray[np.bool_]:
        of_caption = claimed[..., 3 + 3 * said : 6 + 3 * said]
        of_video = actual[..., 3 + 3 * event : 6 + 3 * event]
        same: NDArray[np.bool_] = ((of_caption == NOT_SAID) | (of_caption == of_video)).all(axis=-1)
        return same

    has_two = actual[..., 1] == 2
    background = (claimed[..., 0] == NOT_SAID) | (claimed[..., 0] == actual[..., 0])
    one = matches(0, 0) | (matches(0, 1) & has_two)
    two = matches(0, 0) & matches(1, 1) & has_two & ((claimed[..., 2] == 0) | (actual[..., 2] == 1))
    true: NDArray[np.bool_] = background & np.where(claimed[..., 1] == 1, one, two)
    return true
