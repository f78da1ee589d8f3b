"""The five benchmarks in their real layouts: pairs as the official loaders make them, videos that open."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import av
import pytest

from tests.support.training_runs import dataset_miniatures as miniatures
from training.datasets.registry import LAYOUTS, NAMES, load_annotations, load_split
from training.datasets.split import OFFICIAL_COUNTS, Split

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return miniatures.write_all(tmp_path_factory.mktemp("benchmarks"))


def pairs(split: Split) -> list[tuple[str, str]]:
    return [
        (split.clips[position].id, text)
        for text, position in zip(split.texts, split.clip_of_text, strict=True)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_video_of_every_split_is_there_and_opens(folders, name, split):
    loaded = load_split(name, folders[name], split)
    assert (loaded.dataset, loaded.name) == (name, split)
    for clip in loaded.clips:
        with av.open(str(clip.path)) as container:
            assert next(container.decode(video=0)).width == 64


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_annotations_alone_say_the_same_texts(folders, name, split):
    loaded = load_split(name, folders[name], split)
    annotated = load_annotations(name, folders[name], split)
    reported = [(clip.id, text) for clip in annotated for text in clip.texts if clip.id not in loaded.missing]
    assert reported == pairs(loaded)


@pytest.mark.parametrize(("name", "num_clips"), [("msrvtt-9k", 3), ("msrvtt-7k", 2)])
def test_msrvtt_trains_on_every_sentence_of_its_list_and_never_on_a_test_clip(folders, name, num_clips):
    train = load_split(name, folders[name], "train")
    clips = [f"video{number}" for number in range(num_clips)]
    assert pairs(train) == [(clip, f"sentence {number} of {clip}") for clip in clips for number in range(20)]


def test_msrvtt_tests_on_one_sentence_a_clip_and_validates_on_the_same(folders):
    test = load_split("msrvtt-9k", folders["msrvtt-9k"], "test")
    assert pairs(test) == [
        ("video9770", "a person is connecting something to system"),
        ("video9771", "a little girl does gymnastics, twice"),
    ]
    assert not test.has_several_texts_per_clip
    assert pairs(load_split("msrvtt-7k", folders["msrvtt-7k"], "val")) == pairs(test)


@pytest.mark.parametrize(
    ("annotations", "videos"),
    [
        (".", "MSRVTT_Videos"),
        ("msrvtt_data", "videos/all"),
        ("MSRVTT/msrvtt_data", "MSRVTT/data/MSRVTT/videos/all"),
        ("Annotations", "VideoData"),
    ],
)
def test_msrvtt_is_found_wherever_the_guides_and_scripts_put_it(folders, tmp_path, annotations, videos):
    source = folders["msrvtt-9k"]
    shutil.copytree(source / "msrvtt_data", tmp_path / annotations, dirs_exist_ok=True)
    shutil.copytree(source / "data/MSRVTT/videos/all", tmp_path / videos)
    loaded = load_split("msrvtt-9k", tmp_path, "test")
    assert pairs(loaded) == pairs(load_split("msrvtt-9k", source, "test"))
    assert all(clip.path.parent == tmp_path / videos for clip in loaded.clips)


def test_the_folder_of_videos_may_be_anywhere_and_of_any_depth(folders, tmp_path):
    shutil.copytree(folders["msvd"] / "MSVD_Videos", tmp_path / "elsewhere" / "deep")
    loaded = load_split("msvd", folders["msvd"], "test", videos=tmp_path)
    assert all((tmp_path / "elsewhere" / "deep") in clip.path.parents for clip in loaded.clips)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_msvd_has_every_caption_of_the_listed_clips_grouped_in_the_list_order(folders, split):
    loaded = load_split("msvd", folders["msvd"], split)
    assert pairs(loaded) == [
        (clip, " ".join(words))
        for clip in miniatures.MSVD_LISTS[split]
        for words in miniatures.MSVD_CAPTIONS[clip]
    ]
    assert loaded.has_several_texts_per_clip


def test_lsmdc_pairs_each_line_and_does_without_the_clip_that_cannot_be_read(folders):
    train = load_split("lsmdc", folders["lsmdc"], "train")
    lines = miniatures.LSMDC_LINES["LSMDC16_annos_training.csv"]
    assert Counter(pairs(train)) == Counter(line for line in lines if "Unbreakable" not in line[0])
    assert train.missing == ("1012_Unbreakable_00.05.16.065-00.05.21.941",)
    for split, name in (("val", "LSMDC16_annos_val.csv"), ("test", "LSMDC16_challenge_1000_publictect.csv")):
        loaded = load_split("lsmdc", folders["lsmdc"], split)
        assert pairs(loaded) == list(miniatures.LSMDC_LINES[name])
        assert not loaded.missing


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_didemo_joins_the_descriptions_of_a_listed_clip_and_reads_its_first_31_seconds(folders, split):
    loaded = load_split("didemo", folders["didemo"], split)
    assert pairs(loaded) == [
        (clip, f"first {clip[:4]} then {clip[:4]} at last {clip[:4]}")
        for clip in miniatures.DIDEMO_CLIPS[split]
    ]
    assert {(clip.start_seconds, clip.end_seconds) for clip in loaded.clips} == {(0.0, 31.0)}


def test_didemo_prefers_the_original_file_to_a_converted_one(folders, tmp_path):
    shutil.copytree(folders["didemo"], tmp_path, dirs_exist_ok=True)
    clip = miniatures.DIDEMO_CLIPS["test"][0]
    miniatures.write_videos(tmp_path / "Video", [clip])
    assert load_split("didemo", tmp_path, "test").clips[0].path.name == clip


@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("val", "val_1"), ("test", "val_1")])
def test_activitynet_joins_sentences_and_ignores_listed_videos_without_captions(folders, split, part):
    loaded = load_split("activitynet", folders["activitynet"], split)
    durations = miniatures.ACTIVITYNET_DURATIONS[part]
    assert pairs(loaded) == [(video, f"A person is seen in {video}.   They leave. ") for video in durations]
    ends = {"v_QOlSCBRmfWY": 83.0, "v_ehGHCYKzyZ8": 120.0, "v_uqiMw7tQ1Cc": 56.0, "v_bXdq2zI1Ms0": 74.0}
    assert [(clip.start_seconds, clip.end_seconds) for clip in loaded.clips] == [
        (0.0, ends[video]) for video in durations
    ]


def test_every_benchmark_has_an_official_count_of_each_split_with_its_source():
    assert set(OFFICIAL_COUNTS) == {(name, split) for name in LAYOUTS for split in ("train", "val", "test")}
    for count in OFFICIAL_COUNTS.values():
        assert count.num_pairs >= (count.num_clips or 1) and count.source


def test_the_documentation_shows_each_layout_and_each_official_count():
    text = DOCS.read_text(encoding="utf-8")
    for name, layout in LAYOUTS.items():
        assert layout.tree in text, name
    reported = {tuple(cell.strip(" `") for cell in line.split("|")[1:5]) for line in text.splitlines()}
    for (name, split), count in OFFICIAL_COUNTS.items():
        clips = "not published" if count.num_clips is None else f"{count.num_clips:,}"
        assert (name, split, clips, f"{count.num_pairs:,}") in reported, (name, split)
