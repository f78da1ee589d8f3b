"""What a notebook shows of an answer."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.index import Index
from indexer.search.types import SearchAnswer
from tests.support.video_files import write_coloured_video

COLOURS = [(200, 20, 20), (20, 20, 200)]


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> SearchAnswer:
    """Of an index of two videos of one colour each; then the file of the first one was deleted."""
    folder = tmp_path_factory.mktemp("notebook")
    with Index.create(folder / "index", str(model_directory), device="cpu") as index:
        for name, colour in zip(("gone", '<b>here</b> & "there"'), COLOURS, strict=True):
            path = folder / f"{len(index)}.mp4"
            write_coloured_video(path, colour, 2)
            index.add(path, title=name)
        answer = index.search("a square", limit=2)
    (folder / "0.mp4").unlink()
    return answer


def test_a_result_is_shown_by_a_picture_of_its_best_moment(answer: SearchAnswer) -> None:
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', answer._repr_html_())
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), float)
    assert np.abs(picture.mean(axis=(0, 1)) - COLOURS[1]).max() < 25


def test_a_video_whose_file_is_gone_is_shown_by_its_title(answer: SearchAnswer) -> None:
    shown = answer._repr_html_()
    assert shown.count("<figure") == 2 and shown.count("no picture") == 1 and "gone" in shown


def test_what_others_wrote_is_text_and_no_markup(answer: SearchAnswer) -> None:
    shown = replace(answer, query="<script>alert(1)</script>", warnings=["<i>"])._repr_html_()
    assert "<script" not in shown and "<i>" not in shown and "<b>" not in shown
    assert "&lt;b&gt;here&lt;/b&gt; &amp; &quot;there&quot;" in shown


def test_an_answer_without_results_says_so(answer: SearchAnswer) -> None:
    assert "nothing found" in replace(answer, results=[])._repr_html_()
