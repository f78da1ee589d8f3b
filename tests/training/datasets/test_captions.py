"""Manifests of the user's own videos: rows to clips, which texts train and which test, errors by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.training_runs import dataset_miniatures as miniatures
from training.datasets.registry import load_split
from training.datasets.split import Clip, Split
from training.demo_corpus.corpus import write_corpus
from training.errors import DatasetError


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("captions") / "clips"
    miniatures.write_videos(directory, ["one.mp4", "two.mp4"])
    return directory


def load(
    clips: Path, tmp_path: Path, rows: list[dict[str, Any]], split: Any = "test", **options: Any
) -> Split:
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_split("captions", manifest, split, videos=clips, **options)


def test_a_manifest_gives_each_split_its_rows_with_intervals_and_several_texts(tmp_path):
    directory = miniatures.write_captions(tmp_path)
    train, test = (load_split("captions", directory, split) for split in ("train", "test"))
    assert [clip.id for clip in train.clips] == ["one", "clips/two.mp4"]
    assert train.texts == ("a dog runs", "a dog is running", "a cat sleeps")
    assert train.clip_of_text == (0, 0, 1)
    four = directory / "clips" / "four.mp4"
    assert test.clips == (
        Clip("clips/four.mp4#-1", four, None, 1.0),
        Clip("clips/four.mp4#1-", four, 1.0, None),
    )


def test_without_splits_every_row_is_in_the_split_that_is_asked_for(clips, tmp_path):
    rows = [{"path": "one.mp4", "caption": " a dog "}, {"path": "two.mp4", "caption": "a cat"}]
    for split in ("train", "val", "test"):
        loaded = load(clips, tmp_path, rows, split)
        assert loaded.texts == ("a dog", "a cat")
        assert loaded.name == split


def test_training_takes_every_text_and_evaluation_the_caption_where_there_is_one(clips, tmp_path):
    rows = [
        {"path": "one.mp4", "caption": "one", "captions": ["first", "one", "uno"]},
        {"path": "two.mp4", "captions": ["two", "second"]},
    ]
    train, test = load(clips, tmp_path, rows, "train"), load(clips, tmp_path, rows)
    assert (train.texts, train.clip_of_text) == (("one", "first", "uno", "two", "second"), (0, 0, 0, 1, 1))
    assert (test.texts, test.clip_of_text) == (("one", "two", "second"), (0, 1, 1))


def test_rows_of_one_path_are_texts_of_one_clip_grouped_in_order(clips, tmp_path):
    rows = [
        {"path": "one.mp4", "caption": "a"},
        {"path": "two.mp4", "caption": "b"},
        {"path": "one.mp4", "caption": "c"},
    ]
    split = load(clips, tmp_path, rows)
    assert (split.texts, split.clip_of_text) == (("a", "c", "b"), (0, 0, 1))


def test_the_demo_corpus_is_a_data_set_as_it_is(tmp_path):
    manifest = write_corpus(tmp_path, 3, seed=5)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    test = load_split("captions", tmp_path, "test")
    assert [clip.id for clip in test.clips] == [row["id"] for row in rows]
    assert list(test.texts) == [row["metadata"]["caption"] for row in rows]
    train = load_split("captions", manifest, "train")
    assert set(train.texts) == {
        text for row in rows for text in (row["metadata"]["caption"], *row["metadata"]["captions"])
    }


def test_csv_says_the_same_as_jsonl_and_may_hold_columns_of_its_own(clips, tmp_path):
    manifest = tmp_path / "manifest.csv"
    miniatures.write_csv(
        manifest,
        ["path", "id", "caption", "captions", "start_seconds", "end_seconds", "split", "licence", "metadata"],
        [
            ["one.mp4", "one", "a dog, running", "", "", "1.5", "test", "free", ""],
            ["two.mp4", "", "", '["a cat", "Katze"]', "0.5", "", "test", "", '{"colour": "red"}'],
        ],
    )
    split = load_split("captions", manifest, "test", videos=clips)
    assert split.texts == ("a dog, running", "a cat", "Katze")
    assert split.clips == (
        Clip("one", clips / "one.mp4", None, 1.5),
        Clip("two.mp4#0.5-", clips / "two.mp4", 0.5, None),
    )


def test_a_table_of_captions_is_read_as_spreadsheets_save_it(clips, tmp_path):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("Path; Caption ;Split\r\none.mp4; ein Hund;test\r\n;;\r\n", encoding="utf-16")
    split = load_split("captions", manifest, "test", videos=clips)
    assert (split.texts, [clip.id for clip in split.clips]) == (("ein Hund",), ["one.mp4"])


def test_a_file_for_the_split_comes_before_a_manifest_of_all(clips, tmp_path):
    for name, text in (("train.jsonl", "of train"), ("manifest.jsonl", "of all")):
        (tmp_path / name).write_text(json.dumps({"path": "one.mp4", "caption": text}) + "\n")
    assert load_split("captions", tmp_path, "train", videos=clips).texts == ("of train",)
    assert load_split("captions", tmp_path, "test", videos=clips).texts == ("of all",)


def test_missing_videos_of_a_manifest_are_reported_like_those_of_a_benchmark(clips, tmp_path):
    rows = [{"path": "one.mp4", "caption": "a"}, {"path": "no\0ne.mp4", "id": "none", "caption": "b"}]
    with pytest.raises(DatasetError, match=r"1 of 2 videos .*none \(no file\)"):
        load(clips, tmp_path, rows)
    with pytest.warns(UserWarning, match="left out"):
        assert load(clips, tmp_path, rows, missing="warn").missing == ("none",)


@pytest.mark.parametrize(
    ("rows", "reported"),
    [
        ([], "lists no video"),
        ([{"caption": "a"}], "line 1: no path"),
        ([{"path": " ", "caption": "a"}], "line 1: no path"),
        ([{"path": "one.mp4"}], "line 1: neither caption nor captions"),
        ([{"path": "one.mp4", "captions": []}], "line 1: neither caption nor captions"),
        ([{"path": "one.mp4", "captions": "a"}], "line 1: captions is not a list"),
        ([{"path": "one.mp4", "caption": " "}], "line 1: the text is empty"),
        ([{"path": "one.mp4", "caption": 3}], "line 1: the text is of type int"),
        ([{"path": "one.mp4", "captions": ["a", ""]}], "line 1: the text is empty"),
        ([{"path": "one.mp4", "caption": "a", "captoins": 1}], "line 1 has unknown fields captoins"),
        ([{"path": "one.mp4", "caption": "a", "id": 1}], "line 1: the id is of type int"),
        (
            [{"path": "one.mp4", "caption": "a", "split": "dev"}],
            "line 1: the split 'dev' is none of train, val",
        ),
        ([{"path": "one.mp4", "caption": "a", "metadata": []}, 1], "line 2 is not a JSON object"),
        ([{"path": "one.mp4", "caption": "a", "metadata": [1]}], "line 1: metadata is not an object"),
        ([{"path": "one.mp4", "caption": "a", "start_seconds": -1}], "line 1: start_seconds is -1"),
        ([{"path": "one.mp4", "caption": "a", "start_seconds": "x"}], "line 1: start_seconds is 'x'"),
        ([{"path": "one.mp4", "caption": "a", "end_seconds": True}], "line 1: end_seconds is True"),
        ([{"path": "one.mp4", "caption": "a", "end_seconds": 0}], "line 1: the end, 0 s, is not after"),
        (
            [{"path": "one.mp4", "caption": "a", "start_seconds": 2, "end_seconds": 2}],
            "line 1: the end, 2 s, is not after the start, 2 s",
        ),
        (
            [{"path": "one.mp4", "id": "x", "caption": "a"}, {"path": "two.mp4", "id": "x", "caption": "b"}],
            "line 2: the id 'x' is that of another clip in .*line 1",
        ),
        (
            [{"path": "one.mp4", "caption": "a", "split": "test"}, {"path": "two.mp4", "caption": "b"}],
            "line 2: no split, but other rows have one",
        ),
        ([{"path": "one.mp4", "caption": "a", "split": "train"}], "no row of the split test, only of train"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(clips, tmp_path, rows, reported):
    with pytest.raises(DatasetError, match=f"manifest.jsonl.*{reported}|{reported}"):
        load(clips, tmp_path, rows)


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("", "`path` among them"),
        ("caption\na\n", "`path` among them"),
        ("path,caption\none.mp4\n", "line 2: neither caption nor captions"),
        ("path,caption\none.mp4,a,b\n", "line 2 of the manifest has 3 cells, its header has 2"),
        ("path,captions\none.mp4,[a]\n", "line 2, captions is not JSON"),
        ('path,caption\none.mp4,"a\n', "not CSV"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(clips, tmp_path, text, reported):
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(text)
    with pytest.raises(DatasetError, match=reported):
        load_split("captions", manifest, "test", videos=clips)


def test_where_there_is_no_manifest_the_names_and_an_example_are_reported(tmp_path):
    with pytest.raises(DatasetError, match=r"(?s)test\.jsonl or test\.csv or manifest\.jsonl.*\"caption\":"):
        load_split("captions", tmp_path, "test")
