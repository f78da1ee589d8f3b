"""What a shortlist loses of an exhaustive search, and whether a stage between the two pays.

    python -m benchmarks.recall.cascade --folder FOLDER --model SPEC --clips FOLDER --captions JSON

Stages: the coarse order is that of `video_sentence`, exact here; the last stage orders a shortlist by the
model's whole score. Between them a middle stage may order a longer shortlist by the mean of `video_sentence`
and one more score: `video_word` reads no frames, `sentence_frame` compares one vector with each. A stage can
only lose what it cuts off, so recall is the share of the exhaustive search's first results in the last
shortlist.

Cases: the demo model with drawn videos that it was not trained on; a model of real videos over short segments
of clips (47 captions of 16 clips have few videos to be told apart from: read it as a check only); and drawn
features of the ViT-B/32 shape (benchmarks/synthetic_index.py), zero-shot and with all four scores. Features
are kept in the folder.
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import Report, arguments, interleaved
from benchmarks.synthetic_index import World, normal, unit
from indexer.index import Index
from indexer.search.types import DEFAULT_CANDIDATES
from model import TextFeatures, VideoFeatures, XClip
from model.score_names import SCORE_NAMES
from training.demo_corpus.held_out import mixed_set
from training.demo_model.evaluation import encode_frames
from training.demo_model.training_set import draw_frames

SHORTLISTS = (50, 100, 200, 500, 1000, 2000, 5000)
WINDOWS = (50, 100, 200)
"""Of a search in three stages."""

MIDDLES = ("video_word", "sentence_frame")
NUM_QUERIES, NUM_FIRST = 500, 10
VIDEOS_AT_ONCE = 500
SHAPE = "openclip:ViT-B-32-quickgelu/random?seed=0"


@dataclass(frozen=True)
class Case:
    """Texts and videos of one model, whose scores are averaged under these names."""

    name: str
    model: XClip
    text: TextFeatures
    video: VideoFeatures
    averaged: tuple[str, ...]


# Cases


def demo_case(num_videos: int, folder: Path, seed: int = 11) -> Case:
    """Drawn videos, one half in groups that differ in one thing, as the demo's corpus has them."""
    model = XClip.load("demo", "cpu")
    pairs = mixed_set(num_videos - num_videos // 2, num_videos // 2, seed)
    size, num_frames = model.config.image_size, model.config.num_frames

    def encode() -> VideoFeatures:
        blocks = []
        for row in range(0, len(pairs), VIDEOS_AT_ONCE):
            some = [draw_frames(scene, num_frames, size) for scene, _ in pairs[row : row + VIDEOS_AT_ONCE]]
            blocks.append(encode_frames(model, np.stack(some)))
        return VideoFeatures.cat(blocks)

    video = kept(folder / f"demo-{num_videos}-{seed}.npz", encode)
    chosen = np.random.default_rng(seed).permutation(num_videos)[:NUM_QUERIES]
    text = model.encode_text([pairs[row][1] for row in chosen])
    return Case(f"demo model, {num_videos:,} drawn videos", model, text, video, model.config.score_names)


def clips_case(spec: str, clips: Path, captions: Path, seconds: float) -> Case:
    """Segments of clips, and what the list of clips says of each."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Index.create(Path(folder) / "index", spec, device="cpu", max_segment_seconds=seconds) as index,
    ):
        index.sync([clips])
        model = index.model
        blocks = [
            VideoFeatures(*map(torch.from_numpy, (block.video, block.frames, block.frame_mask)))
            for block in index.catalog.iterate_features()
        ]
    texts = [
        text
        for entry in json.loads(captions.read_text(encoding="utf-8"))
        if (clips / Path(entry["file"]).name).exists()
        for text in entry["captions"]
    ]
    video = VideoFeatures.cat(blocks)
    name = f"real clips, {len(video):,} segments"
    return Case(name, model, model.encode_text(texts), video, model.config.score_names)


def drawn_cases(num_videos: int, num_queries: int) -> Iterator[Case]:
    """Drawn features. The words of a text are drawn around its video too, each less like it than the text."""
    model = XClip.load(SHAPE, "cpu")
    dimension, num_frames = model.config.embedding_dim, model.config.num_frames
    random = np.random.default_rng(0)
    world = World.of(dimension, 0)
    videos = world.videos(random, num_videos)
    frames = np.empty((num_videos, num_frames, dimension), np.float16)
    pooled = np.empty((num_videos, dimension), np.float32)
    for row in range(0, num_videos, 1024):
        block = world.frames(random, videos[row : row + 1024], num_frames)
        frames[row : row + 1024], pooled[row : row + 1024] = block, unit(block.mean(axis=1))
    video = VideoFeatures(
        torch.from_numpy(pooled), torch.from_numpy(frames), torch.ones(frames.shape[:2], dtype=torch.bool)
    )
    encoded = model.encode_text(["a dog runs on the sand"] * num_queries)  # For masks and shapes.
    wanted = videos[:num_queries]
    noise = normal(random, *encoded.words.shape) * world.spectrum
    words = unit(0.4 * wanted[:, None] + 0.8 * noise + world.gap)
    text = TextFeatures(
        torch.from_numpy(world.texts(random, wanted)),
        torch.from_numpy(words),
        encoded.word_mask,
        encoded.word_weights,
    )
    name = f"drawn features, {num_videos:,} videos"
    yield Case(f"{name}, zero-shot", model, text, video, ("video_sentence", "sentence_frame"))
    yield Case(f"{name}, all scores", model, text, video, SCORE_NAMES)


def kept(path: Path, make: Callable[[], VideoFeatures]) -> VideoFeatures:
    """Features from a file, or made and written there."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, video=made.video.numpy(), frames=made.frames.numpy(), mask=made.frame_mask.numpy())
    with np.load(path) as arrays:
        return VideoFeatures(*(torch.from_numpy(arrays[name]) for name in ("video", "frames", "mask")))


# Recall


def all_scores(case: Case) -> dict[str, NDArray[np.float32]]:
    """Each of the four scores of all pairs, and the mean of those that count as `total`: float32 [T, V]."""
    blocks: dict[str, list[NDArray[np.float32]]] = {name: [] for name in SCORE_NAMES}
    for row in range(0, len(case.video), VIDEOS_AT_ONCE):
        scores = case.model.score(case.text, case.video[row : row + VIDEOS_AT_ONCE])
        for name, parts in blocks.items():
            parts.append(getattr(scores, name).numpy())
    found = {name: np.concatenate(parts, axis=1) for name, parts in blocks.items()}
    found["total"] = np.mean([found[name] for name in case.averaged], axis=0)
    return found


def order(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Of each row, columns by falling score, equal ones in ascending order: [T, V]."""
    return np.argsort(-scores, axis=1, kind="stable")


def recalls(shortlists: NDArray[np.intp], right: NDArray[np.intp]) -> tuple[float, float]:
    """The share of queries whose first result is in their shortlist, and that of the first NUM_FIRST."""
    inside = [np.isin(first, some) for first, some in zip(right[:, :NUM_FIRST], shortlists, strict=True)]
    return float(np.mean([row[0] for row in inside])), float(np.mean(inside))


def in_two_stages(scores: dict[str, NDArray[np.float32]]) -> list[tuple[int, float, float]]:
    """For each size of shortlist below V: recall@1 and recall@10 of the exhaustive search."""
    right, coarse = order(scores["total"]), order(scores["video_sentence"])
    sizes = [size for size in SHORTLISTS if size < right.shape[1]]
    return [(size, *recalls(coarse[:, :size], right)) for size in sizes]


def in_three_stages(scores: dict[str, NDArray[np.float32]]) -> list[tuple[str, int, int, float, float]]:
    """Rows: what the middle stage adds to `video_sentence`, its shortlist, the window that it leaves to the
    whole score, recall@1 and recall@10."""
    right, coarse = order(scores["total"]), order(scores["video_sentence"])
    rows = []
    for middle in MIDDLES:
        by_middle = scores["video_sentence"] + scores[middle]
        for shortlist in (size for size in SHORTLISTS if max(WINDOWS) < size < right.shape[1]):
            some = coarse[:, :shortlist]
            places = order(np.take_along_axis(by_middle, some, axis=1))
            ordered = np.take_along_axis(some, places, axis=1)
            for window in WINDOWS:
                rows.append((middle, shortlist, window, *recalls(ordered[:, :window], right)))
    return rows


# Tables


def print_case(report: Report, case: Case) -> None:
    """Recall in two and in three stages, and what the stages cost without reading features."""
    scores = all_scores(case)
    title = f"{case.name}, {len(case.text)} queries; the whole score: {', '.join(case.averaged)}"
    table = report.table(f"{title}. Two stages", {"candidates": ",", "recall@1": ".3f", "recall@10": ".3f"})
    for size, first, first_ten in in_two_stages(scores):
        table.add(size, first, first_ten)
        if size == DEFAULT_CANDIDATES:
            report.target(f"recall@10 with the default candidates, {case.name}", first_ten, at_least=0.99)
    if rows := in_three_stages(scores):
        columns = {"middle stage": "", "shortlist": ",", "window": ",", "recall@1": ".3f", "recall@10": ".3f"}
        table = report.table(f"{case.name}. Three stages", columns)
        for row in rows:
            table.add(*row)
        print_costs(report, case)


def print_costs(report: Report, case: Case) -> None:
    """Times of one text, interleaved, the features in memory."""
    stages: dict[str, tuple[Sequence[str], int]] = {
        "whole score": (case.averaged, 200),
        **{f"middle stage, {name}": (("video_sentence", name), 1000) for name in MIDDLES},
        "whole score of as many": (case.averaged, 1000),
    }
    functions = {
        name: functools.partial(case.model.score, case.text[:1], case.video[:size], wanted)
        for name, (wanted, size) in stages.items()
    }
    table = report.table(f"{case.name}. Scoring one text", {"stage": "", "videos": ",", "ms": ".2f"})
    for name, timing in interleaved(functions).items():
        table.add(name, stages[name][1], timing.spread())


def cases(choices: argparse.Namespace, folder: Path) -> Iterator[Case]:
    """Those that were asked for."""
    for size in choices.demo.split(","):
        if size:
            yield demo_case(int(size), folder)
    if choices.clips is not None:
        yield clips_case(choices.model, choices.clips, choices.captions, choices.segment_seconds)
    if choices.drawn:
        yield from drawn_cases(choices.drawn, choices.drawn_queries)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which cases there are."""
    parser.add_argument("--folder", type=Path, help="Where features are kept; by default for this run only.")
    parser.add_argument("--demo", default="500,5000", help="Numbers of drawn videos; empty for none.")
    parser.add_argument("--model", help="Spec of a model of real videos, for --clips.")
    parser.add_argument("--clips", type=Path, help="Folder of real clips.")
    parser.add_argument("--captions", type=Path, help='JSON: [{"file", "captions": [...]}].')
    parser.add_argument("--segment-seconds", type=float, default=2.0, help="What clips are cut into.")
    parser.add_argument("--drawn", type=int, default=50_000, help="Videos of drawn features; 0 for none.")
    parser.add_argument("--drawn-queries", type=int, default=50)


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    add_options(parser)
    choices = parser.parse_args()
    if choices.clips is not None and None in (choices.model, choices.captions):
        parser.error("--clips needs --model and --captions")
    if choices.short:
        choices.demo, choices.drawn, choices.drawn_queries = "500", 5_000, 20
    with Report("recall.cascade", choices) as report, tempfile.TemporaryDirectory() as temporary:
        for case in cases(choices, choices.folder or Path(temporary)):
            print_case(report, case)


if __name__ == "__main__":
    main()
