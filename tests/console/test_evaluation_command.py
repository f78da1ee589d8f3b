from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from model import XClip, XClipConfig
from model.preprocessing import Resizing
from tests.support.video_files import write_coloured_video
from training.data.frames import FrameRecipe
from training.datasets.split import Clip, Split
from training.evaluation import EXTRAS
from training.evaluation.evaluation import Evaluation, exhaustive_rows
from training.evaluation.report import EvaluationReport, print_report, to_json
from xclip_search.evaluate import app

COLOURS = ("red", "green", "blue", "grey", "white", "black")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A captions data set with a test and texts for a bank, and a tiny model."""
    folder = tmp_path_factory.mktemp("evaluate")
    rows, bank = [], []
    for number, colour in enumerate(COLOURS):
        level = 40 * number
        path = write_coloured_video(folder / f"{colour}.mp4", (level, 255 - level, level // 2), 1.0)
        rows.append({"path": path.name, "id": colour, "caption": f"a bar crosses a {colour} square"})
        bank.append({"path": f"not-there-{colour}.mp4", "captions": [f"a {colour} car", f"a {colour} dog"]})
    for name, content in {"test": rows, "train": bank}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    torch.manual_seed(0)
    XClip(XClipConfig.tiny()).save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def common(folder):
    return ["--dataset", "captions", "--data", folder, "--model", folder / "model", "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(folder, common):
    """One whole run: what it printed and what it wrote."""
    cache = folder / "cache"
    result = run(
        *common, "--workers", 0, "--candidates", "2,4,50", "--extra", ",".join(EXTRAS),
        "--single-scores", "--frame-cache", cache, "--json", folder / "out.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return result.output, json.loads((folder / "out.json").read_text())


def test_the_table_shows_every_ranking(finished):
    output, _ = finished
    for text in (
        "captions test: 6 texts, 6 clips", "every pair scored", "two stages, 2 candidates",
        "frame-word alone", "dual softmax *", "query-bank normalisation", "nearest-neighbour normalisation",
        "12 of 12 texts of captions train", "transductive", "not servable",
    ):  # fmt: skip
        assert text in " ".join(output.split()), text
    assert "50 candidates" not in output  # as many as there are clips, or more


def test_the_json_says_all_that_the_figures_depend_on(finished, folder):
    _, values = finished
    model = XClip.load(str(folder / "model"), "cpu")
    assert values["format"] == "xclip-search-evaluation/1"
    assert values["protocol"] == "one text a clip"
    assert (values["num_texts"], values["num_clips"], values["num_pairs_scored"]) == (6, 6, 36)
    assert values["missing_clips"] == [] and values["paper"] == []
    assert values["model"]["fingerprint"] == model.fingerprint
    assert values["model"]["config"] == json.loads(model.config.to_json())
    assert values["frames"]["rule"] == "official" and values["frames"]["num_frames"] == 8
    assert set(values["seconds"]) == {"encode", "score", "judge", "bank"}
    assert {"python", "torch", "numpy"} <= set(values["software"])
    kinds = [(row["kind"], row["direction"]) for row in values["rows"]]
    assert len(kinds) == 2 + 8 + 2 + 2 + 2
    for row in values["rows"]:
        assert 0 <= row["metrics"]["recall_at_1"] <= row["metrics"]["recall_at_10"] <= 100
        assert row["metrics"]["num_queries"] == row["metrics"]["num_items"] == 6
        assert math.isclose(row["metrics"]["mean_rank"], row["metrics"]["pessimistic"]["mean_rank"]) == (
            row["metrics"]["num_tied_queries"] == 0
        )
        assert row["servable"] == (row["kind"] != "dual-softmax")


def test_a_second_run_reads_the_cache_and_finds_the_same(finished, folder, common):
    _, first = finished
    assert any((folder / "cache").rglob("*"))
    assert run(
        *common, "--workers", 0, "--candidates", "", "--frame-cache", folder / "cache", "--json",
        folder / "again.json",
    ).exit_code == 0  # fmt: skip
    again = json.loads((folder / "again.json").read_text())
    assert len(again["rows"]) == 2
    exhaustive = [row for row in first["rows"] if row["kind"] == "exhaustive"]
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in exhaustive]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "nothing", "--data", ".", "--model", "demo"], "there is no data set 'nothing'"),
        (["--dataset", "msvd", "--data", ".", "--model", "demo", "--candidates", "5,many"], "--candidates"),
        (["--dataset", "msvd", "--data", ".", "--model", "demo", "--candidates", "0"], "--candidates"),
        (["--dataset", "msvd", "--data", ".", "--model", "demo", "--extra", "luck"], "no luck; there are"),
        (["--dataset", "msvd", "--data", ".", "--model", "demo", "--json", "no/such/one.json"], "no folder"),
        (["--dataset", "msvd", "--data", ".", "--model", "demo", "--missing", "ignore"], "missing"),
        (["--dataset", "msvd", "--data", "."], "model"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_and_status_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_a_model_that_does_not_exist_is_wrong_use(folder):
    result = run("--dataset", "captions", "--data", folder, "--model", "no-such-model")
    assert result.exit_code == 2
    assert "no-such-model" in result.output


def test_annotations_that_are_not_there_fail_with_status_1(tmp_path):
    result = run("--dataset", "lsmdc", "--data", tmp_path, "--model", "demo")
    assert result.exit_code == 1
    assert "LSMDC" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {"frames_per_second": 2.0, "slice_mode": "head", "rule": "time", "order": "forward"}),
        (("--sampling", "official"), {"frames_per_second": 2.0, "slice_mode": "head", "rule": "official"}),
    ],
)
def test_frames_are_taken_as_in_the_training_of_the_model(folder, common, tmp_path, options, expected):
    trained = tmp_path / "model"
    shutil.copytree(folder / "model", trained)
    (trained / "training_config.toml").write_text(
        "[model]\nnum_frames = 8\n[data]\ndataset = 'captions'\nframes_per_second = 2.0\n"
        "frame_slice = 'head'\nframe_order = 'reversed'\nframe_rule = 'time'\n"
    )
    written = tmp_path / "out.json"
    result = run(*common, "--workers", 0, "--json", written, *options, "--model", trained)
    assert result.exit_code == 0, result.output
    assert json.loads(written.read_text())["frames"].items() >= expected.items()
    assert "2 a second, by" in result.output


def test_memory_that_is_full_is_one_message_and_status_1(folder, common, monkeypatch):
    def fail(*arguments: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("training.evaluation.evaluation.encode_split", fail)
    result = run(*common, "--workers", 0, "--frame-cache", folder / "cache")
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert "6 texts and 6 clips" in result.output and "--batch-size" in result.output


def test_the_test_split_as_a_bank_fails(common):
    result = run(*common, "--extra", "query-bank", "--bank", "test")
    assert result.exit_code == 1
    assert "must not be the bank" in result.output


@pytest.fixture
def damaged(folder, tmp_path):
    """The same test with one video that cannot be read and one that is not there."""
    for path in folder.glob("*.mp4"):
        shutil.copy(path, tmp_path)
    shutil.copy(folder / "test.jsonl", tmp_path)
    (tmp_path / "red.mp4").write_bytes(b"not a video at all")
    return tmp_path


def test_unreadable_videos_are_an_error_that_lists_them(damaged, common):
    result = run(*common, "--data", damaged)
    assert result.exit_code == 1
    assert "1 of 6 clips" in result.output and "red.mp4" in result.output
    (damaged / "blue.mp4").unlink()
    result = run(*common, "--data", damaged)
    assert result.exit_code == 1
    assert "blue (no file)" in result.output


def test_missing_videos_are_left_out_where_that_is_asked_for_and_counted(damaged, common):
    (damaged / "blue.mp4").unlink()
    result = run(
        *common, "--data", damaged, "--missing", "warn", "--json", damaged / "out.json", "--workers", 0
    )
    assert result.exit_code == 0, result.output
    assert "4 texts, 4 clips, 2 left out" in result.output and "warning: " in result.output
    values = json.loads((damaged / "out.json").read_text())
    assert sorted(values["missing_clips"]) == ["blue", "red"]
    assert values["num_clips"] == 4 and len(values["warnings"]) >= 2


@pytest.fixture
def report():
    clips = tuple(Clip(f"clip{number}", Path(f"{number}.mp4")) for number in range(3))
    split = Split("lsmdc", "test", clips, ("one", "two", "three"), (0, 1, 2))
    evaluation = Evaluation(tuple(exhaustive_rows(np.eye(3, dtype=np.float32), split)), (), {"encode": 1.0})
    return EvaluationReport(
        evaluation, split, "mine", "0" * 64, {}, FrameRecipe(12, Resizing(224)), "ViT-B/16", "cpu"
    )


def shown(report: EvaluationReport) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_report(report, console)
    return console.file.getvalue()


def test_the_papers_rows_stand_next_to_ours(report):
    text = shown(report)
    assert "paper, ViT-B/16, its table 3" in text and "26.1" in text and "41.9" in text
    assert "ViT-B/32" not in text
    both = shown(replace(report, backbone=None))
    assert "ViT-B/32" in both and "neither of the paper's backbones" in both
    values = json.loads(to_json(report))
    assert {row["direction"] for row in values["paper"]} == {"text to video", "video to text"}
    assert values["paper"][0]["recall_at_1"] == 26.1
    assert "abstract" in values["paper_sources"]


def test_the_papers_rows_stand_next_to_figures_of_the_test_alone(report):
    validation = replace(report, split=replace(report.split, name="val"))
    assert "paper" not in shown(validation)
    assert json.loads(to_json(validation))["paper"] == []


def test_rows_with_ties_show_both_bounds(report):
    tied = tuple(exhaustive_rows(np.zeros((3, 3), np.float32), report.split))
    text = shown(replace(report, evaluation=replace(report.evaluation, rows=tied)))
    assert text.count("if ties rank last") == text.count("if ties rank first") == 2
