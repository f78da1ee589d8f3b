"""What a text that is not wanted should count: right results by the weight of its score.

    python -m benchmarks.facts.less_of [--videos 500] [--json PATH]

Draws scenes, and asks the demo model for a thing ("a boat") without one kind of it ("a red boat", "a boat on
the beach"). Of the first results, as many as there are right ones and ten at most: the share that is right,
that is of the kind that is not wanted, and that is something else.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, arguments
from indexer.search.types import NOT_WEIGHT
from model import VideoFeatures, XClip
from training.demo_corpus.captions import Description, EventDescription, satisfies, say
from training.demo_corpus.held_out import random_set
from training.demo_corpus.scene import Scene
from training.demo_model.evaluation import encode_frames
from training.demo_model.training_set import draw_frames

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
NUM_FIRST = 10
NUM_CASES = 300


def drawn(model: XClip, num_videos: int, seed: int) -> tuple[list[Scene], VideoFeatures]:
    """Scenes that no training has seen, and their features."""
    scenes = [scene for scene, _ in random_set(num_videos, seed)]
    config = model.config
    frames = np.stack([draw_frames(scene, config.num_frames, config.image_size) for scene in scenes])
    return scenes, encode_frames(model, frames)


def wanted_and_unwanted(scene: Scene) -> list[tuple[Description, Description]]:
    """A thing, and that thing of a colour or in a place."""
    actor = scene.events[0].actor

    def described(colour: str | None, background: str | None) -> Description:
        return Description(background, (EventDescription(kind=actor.kind, colour=colour, action=None),))

    thing = described(None, None)
    return [(thing, described(actor.colour, None)), (thing, described(None, scene.background))]


def true_of(description: Description, scenes: list[Scene]) -> NDArray[np.bool_]:
    """Of each scene whether the description holds."""
    return np.array([satisfies(description, scene) for scene in scenes])


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--seed", type=int, default=5)
    choices: argparse.Namespace = parser.parse_args()
    with Report("less_of", choices) as report:
        model = XClip.load("demo", "cpu")
        scenes, videos = drawn(model, 100 if choices.short else choices.videos, choices.seed)
        cases = [case for scene in scenes for case in wanted_and_unwanted(scene)][:NUM_CASES]
        rng = random.Random(choices.seed)
        totals = [
            model.score(model.encode_text([say(case[side], rng) for case in cases]), videos).total.numpy()
            for side in (0, 1)
        ]
        shares: dict[float, list[tuple[float, float, float]]] = {weight: [] for weight in WEIGHTS}
        for row, (wanted, unwanted) in enumerate(cases):
            is_wanted, is_unwanted = true_of(wanted, scenes), true_of(unwanted, scenes)
            is_right = is_wanted & ~is_unwanted
            count = min(NUM_FIRST, int(is_right.sum()))
            for weight in WEIGHTS if count else ():
                first = np.argsort(-(totals[0][row] - weight * totals[1][row]), kind="stable")[:count]
                kinds = (is_right, is_wanted & is_unwanted, ~is_wanted)
                shares[weight].append(tuple(float(kind[first].mean()) for kind in kinds))  # type: ignore[arg-type]
        table = report.table(
            f"{len(shares[0.0])} questions, {len(scenes)} videos, first results in %",
            {"weight": ".1f", "right": ".1f", "not wanted": ".1f", "something else": ".1f"},
        )
        means = {weight: 100 * np.mean(rows, axis=0) for weight, rows in shares.items()}
        for weight, mean in means.items():
            table.add(weight, *mean.tolist())
        best = max(means, key=lambda weight: means[weight][0])
        report.target("best weight beside the one in use", abs(best - NOT_WEIGHT), at_most=0.1)


if __name__ == "__main__":
    main()
