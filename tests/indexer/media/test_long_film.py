"""A film of two hours: indexed in bounded memory, and every second of it found where it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.media.long_film import picture_of
from indexer.search.searcher import Searcher
from indexer.search.types import SearchAnswer, SearchQuery
from model import XClip
from model.features import TextFeatures
from model.preprocessing import Resizing
from tests.conftest import REPOSITORY

MIB = 1 << 20
SHORT_MINUTES, LONG_MINUTES = 2, 120
SEGMENT_SECONDS = 8
"""As many as the model takes frames, so that every second is sampled."""

PEAK_GROWTH_BYTES = 96 * MIB
"""What sixty times as much film may add to the peak of either process."""

Films = tuple[Path, list[dict[str, Any]]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def films(
    tmp_path_factory: pytest.TempPathFactory, model_directory: Path
) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with both films and their indexes, and what the program says of them."""
    folder = tmp_path_factory.mktemp("films")
    command = [
        sys.executable,
        "-m",
        "benchmarks.media.long_film",
        "--json",
        "--frame-rate",
        "6",
        "--keep",
        str(folder),
    ]
    command += ["--minutes", str(SHORT_MINUTES), str(LONG_MINUTES), "--model", str(model_directory)]
    command += ["--segment-seconds", str(SEGMENT_SECONDS), "--frame-rate", "6"]
    found = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return folder, json.loads(found.stdout)


def test_memory_does_not_grow_with_the_film(films: Films) -> None:
    short, long = films[1]
    assert (short["num_segments"], long["num_segments"]) == (15, 900)
    for process in ("encoder", "decoder"):
        growth = long[f"{process}_peak_bytes"] - short[f"{process}_peak_bytes"]
        assert growth < PEAK_GROWTH_BYTES, f"{process}: {growth / MIB:.0f} MiB"


class PictureSearcher:
    """Searches for a picture in place of a text: its features are those of the sentence and all words."""

    def __init__(self, index: Path, model: XClip, monkeypatch: pytest.MonkeyPatch) -> None:
        self._model = model
        self._searcher = Searcher(index, model)
        self._picture: np.ndarray = np.zeros((model.config.image_size, model.config.image_size, 3), np.uint8)
        monkeypatch.setattr(self._searcher.text_encoder, "encode", self._features)

    def _features(self, texts: list[str]) -> TextFeatures:
        model = self._model
        pixels = torch.zeros(1, model.config.num_frames, 3, model.config.image_size, model.config.image_size)
        pixels[0, 0] = model.normalize_pixels(self._picture[None])[0]
        mask = torch.arange(model.config.num_frames)[None] == 0
        with torch.inference_mode():
            feature = model.encode_video(pixels, mask).frames[:, 0]
        words = feature[:, None].expand(-1, model.config.num_words, -1)
        return TextFeatures(feature, words, torch.ones(1, model.config.num_words, dtype=torch.bool))

    def search(self, picture: np.ndarray, **fields: Any) -> SearchAnswer:
        self._picture = Resizing(self._model.config.image_size)(picture)
        return self._searcher.search(SearchQuery("a picture", mode="exhaustive", **fields))

    def close(self) -> None:
        self._searcher.close()


@pytest.fixture
def searcher(
    films: Films, model_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PictureSearcher]:
    searcher = PictureSearcher(
        films[0] / f"index-{LONG_MINUTES}", XClip.load(model_directory, device="cpu"), monkeypatch
    )
    yield searcher
    searcher.close()


@pytest.mark.parametrize(
    "second", [0, 7, 8, 59, 1234, 3599, 3600, 1 * 3600 + 47 * 60 + 13, 7192, 7199], ids=str
)
def test_what_is_shown_at_a_second_is_found_at_that_second(searcher: PictureSearcher, second: int) -> None:
    answer = searcher.search(picture_of(second), group_by="segment", limit=1000)
    assert len({result.segment_id for result in answer.results}) == len(answer.results) == 900
    starts = sorted(result.segment.start_seconds for result in answer.results)
    assert starts == pytest.approx([SEGMENT_SECONDS * number for number in range(900)], abs=0.01)
    # Features of an untrained network are much alike, so that other segments may come first as a whole.
    closest = max(answer.results, key=lambda result: result.moments[0].score)
    assert closest.moments[0].time_seconds == second
    assert closest.segment.start_seconds == pytest.approx(second - second % SEGMENT_SECONDS, abs=0.01)
    first = answer.results[0]
    (film,) = searcher.search(picture_of(second)).results
    assert (film.id, film.segment_id) == ("film", first.segment_id)
    assert film.score == pytest.approx(first.score)
    assert [moment.time_seconds for moment in film.moments] == [
        moment.time_seconds for moment in first.moments
    ]
    assert film.duration_seconds == pytest.approx(60 * LONG_MINUTES)
