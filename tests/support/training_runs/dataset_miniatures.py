"""Miniatures of the benchmarks: their real layouts, file names and formats, with a few small videos.

`write_all(directory)` makes a folder for each of `training.datasets.registry.NAMES`, `captions` with a
manifest of one's own among them. Each `write_…` makes one. Every split has two or three clips.
"""

from __future__ import annotations

import csv
import json
import pickle
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.video_files import write_coloured_video

MSVD_CAPTIONS: Mapping[str, list[list[str]]] = {
    "-4wsuPCjDBc_5_15": [["a", "squirrel", "is", "eating"], ["a", "chipmunk", "eats", "a", "peanut"]],
    "bQJQGoJF7_k_145_153": [["a", "man", "rides", "a", "bike"]],
    "bQJQGoJF7_k_162_169": [["a", "man", "fills", "a", "bag"], ["someone", "cooks"]],
    "eyMYc-37Sk4_0_10": [["a", "cat", "sleeps"]],
    "eyhzdC936uk_15_27": [["a", "boy", "plays"], ["a", "boy", "and", "a", "dog"], ["a", "boy", "plays"]],
    "zzit5b_-ukg_5_20": [["a", "woman", "dances"]],
    "no_video_of_any_split": [["never", "used"]],
}
MSVD_LISTS: Mapping[str, list[str]] = {
    "train": ["-4wsuPCjDBc_5_15", "bQJQGoJF7_k_145_153"],
    "val": ["bQJQGoJF7_k_162_169", "eyMYc-37Sk4_0_10"],
    "test": ["zzit5b_-ukg_5_20", "eyhzdC936uk_15_27"],
}
LSMDC_LINES: Mapping[str, list[tuple[str, str]]] = {
    "LSMDC16_annos_training.csv": [
        ("0001_American_Beauty_00.00.51.926-00.00.54.129", "SOMEONE lies on a bed."),
        ("1012_Unbreakable_00.05.16.065-00.05.21.941", "SOMEONE looks at a train."),
        ("0001_American_Beauty_00.00.51.926-00.00.54.129", "A girl lies there."),
        ("0002_As_Good_As_It_Gets_00.01.00.000-00.01.04.000", "An old lady waits, très élégante."),
    ],
    "LSMDC16_annos_val.csv": [
        ("1004_Juno_00.00.32.801-00.00.36.167", "A teenager stands on a lawn."),
        ("1004_Juno_00.00.40.000-00.00.44.000", "She drinks juice."),
    ],
    "LSMDC16_challenge_1000_publictect.csv": [
        ("1051_Harry_Potter_00.01.01.000-00.01.05.000", "An owl flies."),
        ("3015_CHARLIE_ST_CLOUD_00.23.27.899-00.23.31.899", "SOMEONE sails."),
        ("3016_CHASING_MAVERICKS_00.10.00.000-00.10.04.000", "A wave breaks."),
    ],
}
DIDEMO_CLIPS: Mapping[str, list[str]] = {
    "train": ["100233434@N08_9622921646_c39ac10ea3.mp4", "10052357@N03_7585070382_5762149bfc."],
    "val": ["10175347@N00_4842159700_94ac8b1c7a.avi", "10180177@N05_5381533871_631d5afee0.avi"],
    "test": ["10015567@N08_3655084291_d8b58466fa.mov", "97352149@N00_4915826308_f476ba1936.m4v"],
}
ACTIVITYNET_DURATIONS: Mapping[str, Mapping[str, float]] = {
    "train": {"v_QOlSCBRmfWY": 82.73, "v_ehGHCYKzyZ8": 120.0},
    "val_1": {"v_uqiMw7tQ1Cc": 55.15, "v_bXdq2zI1Ms0": 73.1},
}


def write_all(directory: Path) -> dict[str, Path]:
    """A miniature of each data set, by its name."""
    return {name: write(directory / name) for name, write in WRITERS.items()}


def write_msrvtt(directory: Path) -> Path:
    """As the official script has it. `MSRVTT_train.9k.csv` has three clips, that of 7k two."""
    annotations = directory / "msrvtt_data"
    annotations.mkdir(parents=True)
    clips = [f"video{number}" for number in (0, 1, 2, 9770, 9771)]
    write_csv(annotations / "MSRVTT_train.9k.csv", ["video_id"], [[clip] for clip in clips[:3]])
    write_csv(annotations / "MSRVTT_train.7k.csv", ["video_id"], [[clip] for clip in clips[:2]])
    write_csv(
        annotations / "MSRVTT_JSFUSION_test.csv",
        ["key", "vid_key", "video_id", "sentence"],
        [
            ["ret0", "msr9770", "video9770", "a person is connecting something to system"],
            ["ret1", "msr9771", "video9771", "a little girl does gymnastics, twice"],
        ],
    )
    sentences = [
        {"caption": f"sentence {number} of {clip}", "video_id": clip, "sen_id": number}
        for number in range(20)
        for clip in clips
    ]
    videos = [{"video_id": clip, "url": f"https://example.org/watch?v={clip}"} for clip in clips]
    write_json(annotations / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})
    write_videos(directory / "data" / "MSRVTT" / "videos" / "all", (f"{clip}.mp4" for clip in clips))
    return directory


def write_msvd(directory: Path) -> Path:
    """Lists, the pickle, and .avi files in MSVD_Videos."""
    directory.mkdir(parents=True)
    for split, ids in MSVD_LISTS.items():
        (directory / f"{split}_list.txt").write_text("".join(f"{name}\n" for name in ids))
    (directory / "raw-captions.pkl").write_bytes(pickle.dumps(dict(MSVD_CAPTIONS), protocol=4))
    named = [f"{name}.avi" for ids in MSVD_LISTS.values() for name in ids]
    write_videos(directory / "MSVD_Videos", named)
    return directory


def write_lsmdc(directory: Path) -> Path:
    """Lines with tabs, a folder for each movie next to them; the clip that cannot be read is not there."""
    directory.mkdir(parents=True)
    for name, lines in LSMDC_LINES.items():
        rows = (f"{clip}\t00.00.01\t00.00.02\t00.00.01\t00.00.02\t{text}\n" for clip, text in lines)
        (directory / name).write_text("".join(rows), encoding="utf-8")
    for clip in {clip for lines in LSMDC_LINES.values() for clip, _ in lines}:
        if "Unbreakable" not in clip:
            write_videos(directory / clip.split(".")[0][:-3], [f"{clip}.avi"])
    return directory


def write_didemo(directory: Path) -> Path:
    """Lists and descriptions; training files keep their names, the others were converted to .mp4."""
    directory.mkdir(parents=True)
    for split, clips in DIDEMO_CLIPS.items():
        (directory / f"{split}_list.txt").write_text("\n".join(clips))
        described = [*clips, "14284621@N06_6920266298_17a95070f6.mov"]  # One that the list does not name.
        entries = [
            {
                "num_segments": 6,
                "description": f"{order} {clip[:4]}",
                "times": [[1, 1], [1, 2]],
                "video": clip,
                "annotation_id": number,
            }
            for number, order in enumerate(("first", "then", "at last"))
            for clip in described
        ]
        write_json(directory / f"{split}_data.json", entries)
    videos = directory / "Video"
    write_videos(videos, DIDEMO_CLIPS["train"])
    write_videos(videos, (f"{clip}.mp4" for clip in DIDEMO_CLIPS["val"]))
    write_videos(videos, (f"{clip.rpartition('.')[0]}.mp4" for clip in DIDEMO_CLIPS["test"]))
    return directory


def write_activitynet(directory: Path) -> Path:
    """Ids, some without captions; videos of training are named with `v_`, those of val_1 without."""
    directory.mkdir(parents=True)
    for ids_name, split in (("train_ids.json", "train"), ("val_ids.json", "val_1")):
        videos = ACTIVITYNET_DURATIONS[split]
        write_json(directory / ids_name, [*videos, f"v_only_listed_{split}"])
        captions = {
            video: {
                "duration": duration,
                "timestamps": [[0, 3.5], [3.0, duration]],
                "sentences": [f"A person is seen in {video}.", "  They leave. "],
            }
            for video, duration in videos.items()
        }
        write_json(directory / f"{split}.json", captions)
    folder = directory / "Activity_Videos"
    write_videos(folder, (f"{video}.mp4" for video in ACTIVITYNET_DURATIONS["train"]))
    write_videos(folder, (f"{video[2:]}.mkv" for video in ACTIVITYNET_DURATIONS["val_1"]))
    return directory


def write_captions(directory: Path) -> Path:
    """A manifest with all splits; a clip with several texts, and two intervals of one file."""
    write_videos(directory / "clips", ["one.mp4", "two.mp4", "three.mkv", "four.mp4"])
    rows = [
        {
            "path": "clips/one.mp4",
            "id": "one",
            "captions": ["a dog runs", "a dog is running"],
            "split": "train",
        },
        {"path": "clips/two.mp4", "caption": "a cat sleeps", "split": "train"},
        {"path": "clips/three.mkv", "caption": "a bird sings", "split": "val"},
        {"path": "clips/four.mp4", "caption": "it is red", "split": "test", "end_seconds": 1},
        {"path": "clips/four.mp4", "caption": "it is still red", "split": "test", "start_seconds": 1},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "manifest.jsonl").write_text(text, encoding="utf-8")
    return directory


WRITERS = {
    "msrvtt-9k": write_msrvtt,
    "msrvtt-7k": write_msrvtt,
    "msvd": write_msvd,
    "lsmdc": write_lsmdc,
    "didemo": write_didemo,
    "activitynet": write_activitynet,
    "captions": write_captions,
}


def write_videos(folder: Path, names: Iterable[str]) -> None:
    """A short video for each name, its colour drawn from the name; the container follows the ending.

    What no writer knows (`.3gp`, none at all) is MP4 under that name, as any player takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        digits = zlib.crc32(name.encode())
        colour = (digits & 255, digits >> 8 & 255, digits >> 16 & 255)
        known = Path(name).suffix in {".mp4", ".avi", ".mkv", ".mov", ".m4v"}
        written = write_coloured_video(folder / (name if known else f"{name}.mp4"), colour)
        written.rename(folder / name)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
