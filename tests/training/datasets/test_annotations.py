"""Annotation files that are odd but fine, and those that are wrong, reported with file and line."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.training_runs import dataset_miniatures as miniatures
from training.datasets.registry import load_split
from training.errors import DatasetError


def refused(name: str, directory: Path, split: str, *parts: str) -> None:
    """The split is refused, and the message holds all the parts in this order."""
    with pytest.raises(DatasetError, match="(?s)" + ".*".join(re.escape(part) for part in parts)):
        load_split(name, directory, split)  # type: ignore[arg-type]


def rewrite_json(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(("mark", "line_end"), [("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r")])
def test_a_byte_order_mark_and_any_line_ends_change_nothing(tmp_path, mark, line_end):
    for name in miniatures.WRITERS:
        directory = miniatures.WRITERS[name](tmp_path / name)
        before = {split: load_split(name, directory, split) for split in ("train", "val", "test")}
        for path in directory.rglob("*"):
            if path.suffix in {".csv", ".txt", ".json", ".jsonl"}:
                text = path.read_text(encoding="utf-8")
                path.write_bytes((mark + text.replace("\n", line_end)).encode())
        assert {split: load_split(name, directory, split) for split in before} == before


def test_texts_of_any_language_and_separators_inside_a_line_are_kept(tmp_path):
    directory = miniatures.write_lsmdc(tmp_path / "lsmdc")
    path = directory / "LSMDC16_challenge_1000_publictect.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    sentence = "Ein Mädchen lächelt\u2028犬が走る \U0001f415\x85 \x0c end"
    path.write_text("\n".join([lines[0].rpartition("\t")[0] + "\t" + sentence, *lines[1:]]) + "\n\n")
    assert load_split("lsmdc", directory, "test").texts[0] == sentence


def test_a_file_that_is_not_utf8_is_refused_with_its_line(tmp_path):
    directory = miniatures.write_lsmdc(tmp_path / "lsmdc")
    path = directory / "LSMDC16_annos_val.csv"
    path.write_bytes(path.read_bytes() + "1004\t\t\t\t\tcafé\n".encode("latin-1"))
    refused("lsmdc", directory, "val", "LSMDC16_annos_val.csv, line 3", "UTF-8")


@pytest.mark.parametrize(
    ("content", "reported"),
    [
        ("", ["line 1", "no column video_id"]),
        ("video_id\n", ["lists no clip"]),
        ("video\nvideo0\n", ["line 1", "no column video_id"]),
        ("video_id\nvideo0\nvideo0,x\n", ["line 3", "cells"]),
        ('video_id\nvideo0\n" "\n', ["line 3", "empty"]),
        ('video_id\n"video0\n', ["not CSV"]),
        ("video_id\nvideo0\nvideo77\nvideo78\n", ["no sentence for 2 clips", "video77, video78"]),
    ],
)
def test_a_wrong_list_of_msrvtt_clips_is_refused(tmp_path, content, reported):
    directory = miniatures.write_msrvtt(tmp_path / "msrvtt")
    (directory / "msrvtt_data" / "MSRVTT_train.9k.csv").write_text(content)
    refused("msrvtt-9k", directory, "train", *reported)


def test_a_clip_listed_twice_in_msrvtt_training_is_one_clip_but_in_the_test_an_error(tmp_path):
    directory = miniatures.write_msrvtt(tmp_path / "msrvtt")
    train = directory / "msrvtt_data" / "MSRVTT_train.9k.csv"
    before = load_split("msrvtt-9k", directory, "train")
    train.write_text(train.read_text() + "video0\n")
    assert load_split("msrvtt-9k", directory, "train") == before
    test = directory / "msrvtt_data" / "MSRVTT_JSFUSION_test.csv"
    test.write_text(test.read_text() + "ret2,msr9770,video9770,again\n")
    refused("msrvtt-9k", directory, "test", "line 4", "video9770 is listed twice")


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda data: data.pop("sentences"), ["list `sentences`"]),
        (lambda data: data["sentences"].insert(3, "words"), ["sentences[3]", "video_id"]),
        (lambda data: data["sentences"][0].pop("caption"), ["sentences[0]", "missing"]),
        (lambda data: data["sentences"][5].update(caption="  "), ["sentences[5]", "empty"]),
        (lambda data: data["sentences"][5].update(caption=7), ["sentences[5]", "type int"]),
        (lambda data: data["sentences"][5].update(caption="\ud83d"), ["sentences[5]", "lone surrogate"]),
    ],
)
def test_wrong_msrvtt_sentences_are_refused_with_their_position(tmp_path, change, reported):
    directory = miniatures.write_msrvtt(tmp_path / "msrvtt")
    rewrite_json(directory / "msrvtt_data" / "MSRVTT_data.json", change)
    refused("msrvtt-9k", directory, "train", "MSRVTT_data.json", *reported)


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ('{"sentences": [\n1,\n}', ["not JSON", "line 3"]),
        ("[" * 100_000, ["JSON"]),
        (f'{{"sentences": {"9" * 5000}}}', ["JSON"]),
        ("[]", ["list `sentences`"]),
    ],
)
def test_a_file_that_is_not_the_expected_json_is_refused(tmp_path, text, reported):
    directory = miniatures.write_msrvtt(tmp_path / "msrvtt")
    (directory / "msrvtt_data" / "MSRVTT_data.json").write_text(text)
    refused("msrvtt-9k", directory, "train", "MSRVTT_data.json", *reported)


def test_wrong_msvd_lists_and_captions_are_refused_with_their_position(tmp_path):
    directory = miniatures.write_msvd(tmp_path / "msvd")
    captions: dict[str, Any] = dict(miniatures.MSVD_CAPTIONS)
    first, second = miniatures.MSVD_LISTS["test"]

    def store(**changed: Any) -> None:
        (directory / "raw-captions.pkl").write_bytes(
            pickle.dumps(changed.get("all", {**captions, **changed}))
        )

    store(all=["a list"])
    refused("msvd", directory, "test", "raw-captions.pkl", "dict")
    store(**{first: []})
    refused("msvd", directory, "test", "no caption for 1 clips of test_list.txt", first)
    store(**{first: "words"})
    refused("msvd", directory, "test", f"clip {first}", "not a list of captions")
    store(**{first: [["fine"], ["a", 1]]})
    refused("msvd", directory, "test", f"clip {first}, caption 1", "not a list of words")
    store(**{first: [["fine"], []]})
    refused("msvd", directory, "test", f"clip {first}, caption 1", "empty")
    store()
    (directory / "test_list.txt").write_text(f"{first}\n\n{second}\n{first}\n")
    refused("msvd", directory, "test", "test_list.txt, line 4", "also on line 1")
    (directory / "test_list.txt").write_text("\n")
    refused("msvd", directory, "test", "test_list.txt", "empty")


def test_wrong_lsmdc_lines_are_refused_with_their_number(tmp_path):
    directory = miniatures.write_lsmdc(tmp_path / "lsmdc")
    path = directory / "LSMDC16_annos_val.csv"
    lines = path.read_text()
    path.write_text(lines + "1004_Juno_x\t00.00.01\ttext\n")
    refused("lsmdc", directory, "val", "line 3", "3 cells between tabs, not 6")
    path.write_text(lines + "1004_Juno_x\t1\t1\t1\t1\t \n")  # The sentence is stripped away, as officially.
    refused("lsmdc", directory, "val", "line 3", "5 cells")
    path.write_text("")
    refused("lsmdc", directory, "val", "LSMDC16_annos_val.csv", "empty")


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda data: data.insert(0, []), ["entry 0", "video"]),
        (lambda data: data[1].pop("description"), ["entry 1", "description"]),
        (lambda data: [e.update(video="other.mov") for e in data], ["describes 2 clips", "10015567@N08"]),
        (lambda data: [e.update(description=" ") for e in data], ["10015567@N08", "empty"]),
    ],
)
def test_wrong_didemo_descriptions_are_refused_with_their_position(tmp_path, change, reported):
    directory = miniatures.write_didemo(tmp_path / "didemo")
    rewrite_json(directory / "test_data.json", change)
    refused("didemo", directory, "test", "test_data.json", *reported)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda data: data.update(v_uqiMw7tQ1Cc=[]), ["v_uqiMw7tQ1Cc", "sentences"]),
        (lambda data: data["v_uqiMw7tQ1Cc"].update(sentences=["a", 1]), ["v_uqiMw7tQ1Cc", "strings"]),
        (lambda data: data["v_uqiMw7tQ1Cc"].update(sentences=[]), ["v_uqiMw7tQ1Cc", "empty"]),
        (lambda data: data["v_uqiMw7tQ1Cc"].update(duration="long"), ["duration 'long'"]),
        (lambda data: data["v_uqiMw7tQ1Cc"].update(duration=0), ["duration 0 is not above 0"]),
        (lambda data: data["v_uqiMw7tQ1Cc"].pop("duration"), ["duration None"]),
        (lambda data: data.clear(), ["describes no video of val_ids.json"]),
    ],
)
def test_wrong_activitynet_captions_are_refused_with_the_video(tmp_path, change, reported):
    directory = miniatures.write_activitynet(tmp_path / "activitynet")
    rewrite_json(directory / "val_1.json", change)
    refused("activitynet", directory, "test", "val_1.json", *reported)


def test_wrong_activitynet_ids_are_refused_and_ids_listed_twice_are_one_video(tmp_path):
    directory = miniatures.write_activitynet(tmp_path / "activitynet")
    before = load_split("activitynet", directory, "val")
    rewrite_json(directory / "val_ids.json", lambda ids: ids.append(ids[0]))
    assert load_split("activitynet", directory, "val") == before
    rewrite_json(directory / "val_ids.json", lambda ids: ids.append(7))
    refused("activitynet", directory, "val", "val_ids.json, entry 4", "type int")
    miniatures.write_json(directory / "val_ids.json", {"v_x": 1})
    refused("activitynet", directory, "val", "val_ids.json", "not a list")
