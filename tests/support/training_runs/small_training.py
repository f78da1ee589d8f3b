"""A captioned corpus of a few coloured videos, a tiny CLIP to start from, and configs that train on them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from model import XClip, XClipConfig
from model.tokenization import vocabulary_of
from tests.support.video_files import write_coloured_video
from training.config import TrainingConfig, parse_config

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (220, 210, 30),
    "black": (10, 10, 10),
    "purple": (160, 30, 200),
}
SPEEDS = ("slow", "fast")


def write_small_corpus(directory: Path) -> Path:
    """12 clips of 1 to 3 seconds, two texts each in `train`; four of them with one text in `val`."""
    directory.mkdir(parents=True)
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        for index, speed in enumerate(SPEEDS):
            path = f"{name}_{speed}.mp4"
            write_coloured_video(
                directory / path, colour, seconds=1 + (number + index) % 3, rate=5 + 3 * index
            )
            rows.append((path, name, speed))
    train = [
        {"path": path, "caption": caption}
        for path, name, speed in rows
        for caption in (f"a {name} square with a {speed} bar", f"{speed} bar {name}")
    ]
    val = [{"path": path, "caption": f"a {name} square {speed}"} for path, name, speed in rows[::3]]
    for split, listed in (("train", train), ("val", val)):
        text = "".join(json.dumps(row) + "\n" for row in listed)
        (directory / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return directory


def write_tiny_clip(directory: Path) -> Path:
    """Random plain CLIP weights of a tiny size that know the corpus' words."""
    words = ["a", "square", "with", "bar", *COLOURS, *SPEEDS]
    config = XClipConfig.tiny(num_words=12, num_frames=3, temporal_layers=0, vocabulary=vocabulary_of(words))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        XClip(config).save(directory)
    return directory


def small_config(corpus: Path, start: Path, *changes: str) -> TrainingConfig:
    """Three epochs of four steps."""
    return parse_config(
        f"""
        [model]
        start = "{start}"
        num_words = 12
        num_frames = 3
        temporal_layers = 2
        [data]
        dataset = "captions"
        directory = "{corpus}"
        num_workers = 0
        read_first = false
        [optimizer]
        learning_rate = 1e-3
        clip_learning_rate_factor = 0.5
        [training]
        epochs = 3
        batch_size = 6
        freeze_layers = -1
        validation_batch_size = 3
        [log]
        tensorboard = false
        """,
        changes,
    )
