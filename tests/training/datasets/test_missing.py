"""What is missing or in the wrong place is reported: videos, annotation files, official counts."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.training_runs import dataset_miniatures as miniatures
from training.datasets.registry import LAYOUTS, NAMES, load_split
from training.datasets.split import OFFICIAL_COUNTS, DatasetWarning
from training.datasets.video_folder import VideoFolder
from training.errors import DatasetError


@pytest.fixture
def msvd(tmp_path: Path) -> Path:
    return miniatures.write_msvd(tmp_path / "msvd")


def write_unopened_msrvtt(directory: Path, num_clips: int, num_sentences: int = 20) -> Path:
    """Training annotations of many clips, each with a file that is there and not empty."""
    clips = [f"video{number}" for number in range(num_clips)]
    videos = directory / "MSRVTT_Videos"
    videos.mkdir(parents=True)
    for clip in clips:
        (videos / f"{clip}.mp4").write_bytes(b"not opened here")
    miniatures.write_csv(directory / "MSRVTT_train.9k.csv", ["video_id"], [[clip] for clip in clips])
    sentences = [
        {"caption": f"sentence {number} of {clip}", "video_id": clip, "sen_id": number}
        for clip in clips
        for number in range(num_sentences)
    ]
    miniatures.write_json(directory / "MSRVTT_data.json", {"sentences": sentences})
    return directory


def test_a_missing_an_empty_and_a_dangling_video_are_an_error_that_names_them(msvd):
    train, test = miniatures.MSVD_LISTS["train"], miniatures.MSVD_LISTS["test"]
    (msvd / "MSVD_Videos" / f"{test[0]}.avi").unlink()
    with pytest.raises(DatasetError, match=rf"msvd test: 1 of 2 videos .*{re.escape(test[0])} \(no file\)"):
        load_split("msvd", msvd, "test")
    (msvd / "MSVD_Videos" / f"{train[1]}.avi").write_bytes(b"")
    with pytest.raises(DatasetError, match=rf"{train[1]} \(an empty file\)"):
        load_split("msvd", msvd, "train")
    (msvd / "MSVD_Videos" / f"{test[0]}.avi").symlink_to(msvd / "nowhere.avi")
    with pytest.raises(DatasetError, match=r"a link to nothing"):
        load_split("msvd", msvd, "test")


def test_missing_videos_are_by_choice_one_warning_and_are_counted(msvd):
    first, second = miniatures.MSVD_LISTS["test"]
    (msvd / "MSVD_Videos" / f"{first}.avi").unlink()
    with pytest.warns(DatasetWarning, match="1 of 2 videos are missing or empty") as reported:
        split = load_split("msvd", msvd, "test", missing="warn")
    assert len(reported) == 1
    assert reported[0].filename == __file__
    assert split.missing == (first,)
    assert [clip.id for clip in split.clips] == [second]
    assert split.texts == tuple(" ".join(words) for words in miniatures.MSVD_CAPTIONS[second])
    assert load_split("msvd", msvd, "train", missing="warn").missing == ()


def test_a_long_list_of_missing_videos_is_cut_after_twenty_and_counted(tmp_path):
    directory = write_unopened_msrvtt(tmp_path, 60, 1)
    for number in range(5, 60):
        (directory / "MSRVTT_Videos" / f"video{number}.mp4").unlink()
    with pytest.raises(DatasetError, match=r"55 of 60 .*video5 .*video24 \(no file\) and 35 more"):
        load_split("msrvtt-9k", directory, "train")


@pytest.mark.parametrize("missing", ["error", "warn"])
def test_where_no_video_is_there_at_all_it_is_an_error_in_any_case(msvd, tmp_path, missing):
    other = tmp_path / "other"
    miniatures.write_videos(other, ["other.mp4"])
    with pytest.raises(DatasetError, match=r"2 of 2 .*Is this the folder of the videos\?"):
        load_split("msvd", msvd, "test", videos=other, missing=missing)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_folder_of_another_layout_is_refused_with_the_tree_that_is_expected(tmp_path, name, split):
    (tmp_path / "something.txt").write_text("else")
    with pytest.raises(DatasetError) as refusal:
        load_split(name, tmp_path, split)
    assert LAYOUTS[name].tree in str(refusal.value)
    for file in LAYOUTS[name].files[split]:
        assert f"no {file}" in str(refusal.value)
    with pytest.raises(DatasetError, match="there is no folder"):
        load_split(name, tmp_path / "absent", split)


def test_only_the_files_that_the_split_needs_are_asked_for(tmp_path):
    directory = miniatures.write_msrvtt(tmp_path / "msrvtt")
    (directory / "msrvtt_data" / "MSRVTT_train.9k.csv").unlink()
    (directory / "msrvtt_data" / "MSRVTT_data.json").unlink()
    assert len(load_split("msrvtt-9k", directory, "test").clips) == 2
    with pytest.raises(DatasetError, match=r"has no MSRVTT_train\.9k\.csv and no MSRVTT_data\.json"):
        load_split("msrvtt-9k", directory, "train")


def test_videos_that_are_in_no_known_folder_are_asked_for_with_the_folders(msvd, tmp_path):
    (msvd / "MSVD_Videos").rename(msvd / "my videos")
    (msvd / "YouTubeClips").mkdir()  # Empty.
    with pytest.raises(DatasetError, match=r"looked in .*MSVD_Videos, .*YouTubeClips"):
        load_split("msvd", msvd, "test")
    assert len(load_split("msvd", msvd, "test", videos=msvd / "my videos").clips) == 2
    with pytest.raises(DatasetError, match="there is no folder of videos"):
        load_split("msvd", msvd, "test", videos=tmp_path / "absent")


@pytest.mark.parametrize(
    "clip", ["../../secret", "../secret.mp4", "/etc/hostname", "..", "MSVD_Videos/../secret"]
)
def test_an_id_never_leads_out_of_the_folder_of_videos(msvd, clip):
    miniatures.write_videos(msvd.parent, ["secret.mp4"])
    miniatures.write_videos(msvd, ["secret.mp4"])
    (msvd / "test_list.txt").write_text(f"{clip}\n{miniatures.MSVD_LISTS['test'][0]}\n")
    captions = {**miniatures.MSVD_CAPTIONS, clip: [["a", "secret"]]}
    (msvd / "raw-captions.pkl").write_bytes(miniatures.pickle.dumps(captions))
    with pytest.raises(DatasetError, match=rf"1 of 2 .*{re.escape(clip)} \(no file\)"):
        load_split("msvd", msvd, "test")


def test_several_files_of_one_name_are_reported_and_the_choice_is_stable(msvd):
    clip = miniatures.MSVD_LISTS["test"][0]
    miniatures.write_videos(msvd / "MSVD_Videos" / "again", [f"{clip}.avi", f"{clip}.mp4"])
    with pytest.warns(DatasetWarning, match="1 videos have several files.*first is read"):
        split = load_split("msvd", msvd, "test")
    assert split.clips[0].path == msvd / "MSVD_Videos" / "again" / f"{clip}.mp4"


def test_links_to_folders_are_followed_once_and_hidden_files_are_not_seen(msvd, tmp_path):
    (msvd / "MSVD_Videos").rename(tmp_path / "stored")
    (msvd / "MSVD_Videos").mkdir()
    (msvd / "MSVD_Videos" / "linked").symlink_to(tmp_path / "stored", target_is_directory=True)
    (tmp_path / "stored" / "back").symlink_to(tmp_path / "stored", target_is_directory=True)
    clip = miniatures.MSVD_LISTS["test"][0]
    (tmp_path / "stored" / f"._{clip}.avi").write_bytes(b"of another file system")
    assert load_split("msvd", msvd, "test").clips[0].path.name == f"{clip}.avi"


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(msvd, monkeypatch):
    closed = msvd / "MSVD_Videos" / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        if path == closed:
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DatasetError, match=r"closed cannot be listed: Permission denied"):
        load_split("msvd", msvd, "test")


def test_unknown_data_sets_splits_and_policies_are_refused_with_the_known_ones(msvd):
    with pytest.raises(DatasetError, match=", ".join(NAMES)):
        load_split("msr-vtt", msvd, "test")
    with pytest.raises(DatasetError, match="train, val, test"):
        load_split("msvd", msvd, "dev")  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="error or warn"):
        load_split("msvd", msvd, "test", missing="ignore")  # type: ignore[arg-type]


def write_unopened_didemo(directory: Path, num_clips: int) -> Path:
    """Test annotations of many clips, each with a file that is there and not empty."""
    clips = [f"user_{number}.mov" for number in range(num_clips)]
    (directory / "Video").mkdir(parents=True)
    for clip in clips:
        (directory / "Video" / clip).write_bytes(b"not opened here")
    (directory / "test_list.txt").write_text("\n".join(clips))
    entries = [{"video": clip, "description": "a dog", "times": [[0, 0]]} for clip in clips]
    miniatures.write_json(directory / "test_data.json", entries)
    return directory


@pytest.mark.parametrize("num_clips", [1003, 1005, 101])
def test_a_copy_with_another_count_is_warned_of_with_both_numbers(tmp_path, num_clips):
    directory = write_unopened_didemo(tmp_path, num_clips)
    reported = rf"{num_clips} clips and {num_clips} pairs.* 1004 and 1004 \(.*test_list\.txt"
    with pytest.warns(DatasetWarning, match=reported) as warned:
        load_split("didemo", directory, "test")
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("num_clips", [1004, 100])
def test_a_full_copy_and_an_evident_sample_are_not_warned_of(tmp_path, num_clips):
    directory = write_unopened_didemo(tmp_path, num_clips)
    assert len(load_split("didemo", directory, "test").clips) == num_clips  # Warnings are errors here.


def test_the_count_is_of_the_annotations_so_that_missing_videos_are_reported_once(tmp_path):
    directory = write_unopened_didemo(tmp_path, 1004)
    (directory / "Video" / "user_7.mov").unlink()
    with pytest.warns(DatasetWarning) as warned:
        assert load_split("didemo", directory, "test", missing="warn").missing == ("user_7.mov",)
    assert len(warned) == 1


@pytest.mark.slow
def test_all_of_msrvtt_loads_in_seconds(tmp_path):
    directory = write_unopened_msrvtt(tmp_path, 9000)
    start = time.process_time()
    split = load_split("msrvtt-9k", directory, "train")
    assert time.process_time() - start < 5  # One on an idle machine.
    official = OFFICIAL_COUNTS["msrvtt-9k", "train"]
    assert (len(split.clips), len(split.texts)) == (official.num_clips, official.num_pairs)


def test_a_folder_is_walked_once_however_many_names_are_looked_up(tmp_path, monkeypatch):
    miniatures.write_videos(tmp_path / "a" / "b", ["one.mp4", "two.avi"])
    listed: list[str] = []
    scandir = os.scandir

    def counting(path: Path) -> Any:
        listed.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    videos = VideoFolder(tmp_path)
    for _ in range(100):
        assert videos.find(["nothing", "one"]) == tmp_path / "a" / "b" / "one.mp4"
        assert videos.find(["two.avi"]) == tmp_path / "a" / "b" / "two.avi"
        assert videos.find(["b", "a", "absent"]) is None
    assert len(listed) == len(set(listed)) == 3


def test_the_miniatures_are_json_that_the_official_loaders_would_read(tmp_path):
    directory = miniatures.write_activitynet(tmp_path / "activitynet")
    captions = json.loads((directory / "val_1.json").read_text())
    assert all(set(entry) == {"duration", "timestamps", "sentences"} for entry in captions.values())
