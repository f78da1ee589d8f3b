"""How often a `match` is right: first results of questions with an answer, with none, and with half of one.

    python -m benchmarks.facts.relevance [--videos 500] [--json PATH]

Draws scenes and asks the demo model for captions that are true of one of them, for scenes that none is
(though some come near), and for everyday sentences. Then, by language, how many of two hundred sentences get
the warning that they do not look like English, with CLIP's tokenizer.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from benchmarks.facts.less_of import drawn, true_of
from benchmarks.facts.sentences import SENTENCES
from benchmarks.report import Report, arguments
from indexer.search.baseline import Baseline, baseline_texts, of_chance
from model import VideoFeatures, XClip
from model.tokenization import Tokenizer
from training.demo_corpus.captions import Description, EventDescription, say
from training.demo_corpus.held_out import random_set
from training.demo_corpus.scene import Scene, sample_scene

NUM_QUESTIONS = 160
MATCHES = ("strong", "likely", "weak", "none")


def unanswered(scenes: list[Scene], rng: random.Random) -> list[str]:
    """Descriptions of things with a colour, doing something or somewhere, that are true of no scene."""
    found: list[str] = []
    while len(found) < NUM_QUESTIONS:
        scene = sample_scene(rng)
        event = scene.events[0]
        said = EventDescription(
            event.actor.kind, event.actor.colour, event.action if len(found) % 3 else None
        )
        description = Description(None if len(found) % 2 else scene.background, (said,))
        if not true_of(description, scenes).any():
            found.append(say(description, rng))
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, default=500)
    parser.add_argument("--seed", type=int, default=5)
    choices = parser.parse_args()
    with Report("relevance", choices) as report:
        model = XClip.load("demo", "cpu")
        num_videos = 100 if choices.short else choices.videos
        scenes, videos = drawn(model, num_videos, choices.seed)
        rng = random.Random(choices.seed)
        captions = [caption for _, caption in random_set(num_videos, choices.seed)][:NUM_QUESTIONS]
        everyday = [text for text in baseline_texts() if not model.unknown_words(text)]
        chance = of_chance([totals(model, everyday, videos)])
        baseline = Baseline(0, num_videos, chance, chance)
        table = report.table(
            f"Matches of first results, {num_videos} videos, %",
            {"question": "", "questions": "d", **dict.fromkeys(MATCHES, ".0f")},
        )
        table.add(
            "true of one video, first result right", *levels(baseline, model, captions, videos, right=True)
        )
        table.add(
            "true of one video, first result wrong", *levels(baseline, model, captions, videos, right=False)
        )
        hard = levels(baseline, model, unanswered(scenes, rng), videos)
        table.add("true of no video", *hard)
        table.add("an everyday sentence", *levels(baseline, model, everyday, videos))
        report.target("strong matches where no video is right, %", hard[1], at_most=5.0)
        add_languages(report)


def totals(model: XClip, texts: list[str], videos: VideoFeatures) -> NDArray[np.float32]:
    """float32 [T, V]."""
    scores: NDArray[np.float32] = model.score(model.encode_text(texts), videos).total.numpy()
    return scores


def levels(
    baseline: Baseline, model: XClip, texts: list[str], videos: VideoFeatures, *, right: bool | None = None
) -> list[float]:
    """How many questions, and the share of each match among their first results, in percent.

    right: of question n video n is the right one; only those where it comes first, or only the others.
    """
    scores = totals(model, texts, videos)
    if right is not None:
        scores = scores[(scores.argmax(axis=1) == np.arange(len(scores))) == right]
    found = baseline.matches("rerank", scores.max(axis=1), len(videos)) if len(scores) else []
    return [len(scores), *(100 * found.count(match) / max(1, len(found)) for match in MATCHES)]


def add_languages(report: Report) -> None:
    """The table of warnings."""
    tokenizer = Tokenizer(77)
    table = report.table("Warned of, by language", {"language": "", "sentences": "d", "warned, %": ".0f"})
    for language, sentences in {"English": baseline_texts(), **SENTENCES}.items():
        warned = sum(tokenizer.seems_foreign(sentence) for sentence in sentences)
        table.add(language, len(sentences), 100 * warned / len(sentences))


if __name__ == "__main__":
    main()
