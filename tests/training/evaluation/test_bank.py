from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.datasets.split import Clip, Split
from training.errors import DatasetError, EvaluationError
from training.evaluation.hubness import make_bank


def rows(prefix: str, count: int) -> list[dict[str, object]]:
    return [
        {"path": f"{prefix}{number}.mp4", "captions": [f"{prefix} {number} runs", f"{prefix} {number} stops"]}
        for number in range(count)
    ]


@pytest.fixture
def directory(tmp_path):
    """Annotations alone: a bank needs no video."""
    for name, content in {"train": rows("dog", 6), "val": rows("cat", 2)}.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.fixture
def split():
    clips = (Clip("cat0.mp4", Path("cat0.mp4")), Clip("owl", Path("owl.mp4")))
    return Split("captions", "test", clips, ("Dog  3 runs", "an owl flies"), (0, 1))


def test_a_bank_of_another_split_leaves_out_texts_of_the_test(split, directory):
    bank = make_bank("train", split, directory)
    assert len(bank.texts) == 11 and "dog 3 runs" not in bank.texts and "dog 3 stops" in bank.texts
    assert (bank.num_available, bank.num_left_out, bank.holds_test_queries) == (12, 1, False)
    assert str(bank) == "11 of 12 texts of captions train"


def test_other_texts_of_a_test_clip_are_left_out_too(split, directory):
    assert make_bank("val", split, directory).texts == ("cat 1 runs", "cat 1 stops")


def test_a_large_source_is_drawn_from_by_a_seed(split, directory):
    drawn = make_bank("train", split, directory, size=4)
    assert len(drawn.texts) == len(set(drawn.texts)) == 4
    assert drawn == make_bank("train", split, directory, size=4)
    assert drawn.texts != make_bank("train", split, directory, size=4, seed=1).texts


def test_a_file_holds_one_text_a_line(split, directory, tmp_path):
    file = tmp_path / "queries.txt"
    file.write_text("a fish swims\n\nAN OWL FLIES\n", encoding="utf-8")
    bank = make_bank(str(file), split, directory)
    assert (bank.texts, bank.source, bank.num_left_out) == (("a fish swims",), "queries.txt", 1)


def test_the_split_that_is_judged_is_no_bank(split, directory, tmp_path):
    with pytest.raises(EvaluationError, match="captions test is what is judged"):
        make_bank("test", split, directory)
    file = tmp_path / "same.txt"
    file.write_text("\n".join(split.texts), encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"every text of same\.txt"):
        make_bank(str(file), split, directory)


def test_test_queries_are_kept_only_where_asked_for_and_the_bank_says_so(split, directory, tmp_path):
    file = tmp_path / "same.txt"
    file.write_text("\n".join([*split.texts, "a fish"]), encoding="utf-8")
    bank = make_bank(str(file), split, directory, allow_test_queries=True)
    assert len(bank.texts) == 3 and bank.holds_test_queries and "TEST QUERIES" in str(bank)
    assert not make_bank("val", split, directory / "val.jsonl").holds_test_queries


def test_a_bank_that_is_not_there_or_empty_is_told(split, directory, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(EvaluationError, match="holds no text"):
        make_bank(str(tmp_path / "empty.txt"), split, directory)
    with pytest.raises(DatasetError, match=r"nothing\.txt"):
        make_bank("nothing.txt", split, directory)
    with pytest.raises(EvaluationError, match="at least one"):
        make_bank("train", split, directory, size=0)
