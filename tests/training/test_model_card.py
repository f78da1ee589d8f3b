"""The model card says what the run says, whatever the texts in it hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard as HubModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import xclip_search
from model import XClip, XClipConfig
from tests.support.training_runs.small_training import small_config, write_small_corpus, write_tiny_clip
from training.config import DataChoices, ModelChoices, TrainingConfig
from training.data.frames import FrameRecipe
from training.datasets.split import Clip, Split
from training.errors import EvaluationError, RunError
from training.evaluation.evaluation import Evaluation, exhaustive_rows
from training.evaluation.report import make_report, to_json
from training.loop.trainer import train
from training.publishing import (
    Figures,
    ModelCard,
    TrainingFacts,
    card_text,
    escape,
    is_run,
    make_card,
    model_directory,
    read_run,
)


def network() -> XClip:
    clip = dict(XClipConfig.tiny().clip)
    clip["text_cfg"] = {**clip["text_cfg"], "vocab_size": 600}
    torch.manual_seed(6)
    return XClip(XClipConfig.tiny(clip=clip)).eval()


def direction(recall_at_1: float, num_queries: int) -> dict[str, float]:
    return {
        **{"recall_at_1": recall_at_1, "recall_at_5": 71.25, "recall_at_10": 80.5},
        **{"median_rank": 2.0, "mean_rank": 9.1234, "num_queries": num_queries},
    }


def a_run(directory: Path, **changes: Any) -> XClip:
    """A run directory as training leaves it (`training.loop.run_directory`,
    `training.loop.run_directory`)."""
    trained = network()
    trained.save(directory / "best")
    config = TrainingConfig(
        DataChoices("msrvtt-9k", directory=Path("/home/somebody/data"), validation_split="test"),
        ModelChoices(start="openclip:ViT-B-32-quickgelu/openai"),
    )
    (directory / "config.toml").write_text(config.to_toml())
    facts = {"dataset": "msrvtt-9k", "num_missing_clips": 0}
    summary = {
        "format": "xclip-search-run/1",
        "train": {**facts, "split": "train", "num_pairs": 180000, "num_clips": 9000},
        "validation": {**facts, "split": "test", "num_pairs": 1000, "num_clips": 1000},
        "best": {
            "epoch": 3,
            "by": "text_to_video.recall_at_1",
            "fingerprint": trained.fingerprint,
            "validation": {
                "text_to_video": direction(46.125, 1000),
                "video_to_text": direction(45.5, 1000),
                "num_texts": 1000,
                "num_clips": 1000,
            },
        },
        "num_steps": 3000,
        "wall_seconds": 9000.0,
        "num_processes": 4,
        "device": "NVIDIA H200",
        "versions": {"xclip-search": "0.1.0", "torch": "2.15.0", "python": "3.11.2"},
        **changes,
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    return trained


def metadata(card: str) -> dict[str, Any]:
    """The front matter, read by YAML and by the Hub's own reader, which must agree."""
    _, front, _ = card.split("---\n", 2)
    values: dict[str, Any] = yaml.safe_load(front)
    assert HubModelCard(card).data.to_dict() == values
    return values


def test_a_runs_card_says_what_was_trained_and_found(tmp_path):
    trained = a_run(tmp_path)
    assert is_run(tmp_path)
    assert model_directory(tmp_path) == tmp_path / "best"
    card = make_card(tmp_path, trained, "me/films", license="mit").to_markdown()
    values = metadata(card)
    assert values["license"] == "mit"
    assert values["library_name"] == "xclip-search"
    assert values["datasets"] == ["msrvtt-9k"]
    assert values["base_model"] == "openai/clip-vit-base-patch32"
    results = values["model-index"][0]["results"]
    assert [result["task"]["type"] for result in results] == [
        "text-to-video-retrieval",
        "video-to-text-retrieval",
    ]
    first = {metric["type"]: metric["value"] for metric in results[0]["metrics"]}
    assert first == {"recall_at_1": 46.12, "recall_at_5": 71.25, "recall_at_10": 80.5, "mean_rank": 9.12}
    assert results[0]["dataset"] == {"name": "msrvtt-9k", "type": "msrvtt-9k", "split": "test"}
    assert results[0]["metrics"][0]["args"] == {"num_queries": 1000, "num_items": 1000}
    for line in (
        "| msrvtt-9k, test | text to video | 46.1 | 71.2 | 80.5 | 2 | 9.1 | 1,000 | 1,000 |",
        "| pairs of text and clip | 180,000 |",
        r"| epochs | 5; this is epoch 3, chosen by text\_to\_video.recall\_at\_1 |",
        "| software | xclip-search 0.1.0, torch 2.15.0, python 3.11.2 |",
        r"| optimizer.learning\_rate | 0.0001 |",
        "| time | 2.50 hours |",
        f"| fingerprint | {trained.fingerprint} |",
        "The best epoch was chosen on msrvtt-9k, test, so those figures flatter the model.",
        "xclip-search index VIDEOS --index my-index --model hf-hub:me/films",
    ):
        assert line in card.splitlines(), line
    assert "@inproceedings{Ma2022XCLIP" in card


def test_a_run_that_was_really_trained_has_its_card(tmp_path):
    corpus, start = write_small_corpus(tmp_path / "corpus"), write_tiny_clip(tmp_path / "clip")
    result = train(small_config(corpus, start, "training.epochs=2"), tmp_path / "run", device="cpu")
    best = XClip.load(model_directory(tmp_path / "run"), "cpu")
    card = make_card(tmp_path / "run", best, "me/squares")
    assert card.fingerprint == result.summary["best"]["fingerprint"]
    assert card.training is not None
    assert (card.training.dataset, card.training.num_pairs, card.training.num_clips) == ("captions", 24, 12)
    assert (card.training.num_epochs, card.training.best_epoch) == (2, result.best_epoch)
    validation = result.rows[result.best_epoch - 1]["validation"]
    assert [(one.recall_at_1, one.num_queries, one.num_items) for one in card.figures] == [
        (validation["text_to_video"]["recall_at_1"], 4, 4),
        (validation["video_to_text"]["recall_at_1"], 4, 4),
    ]
    text = card.to_markdown()
    assert "datasets" not in metadata(text)  # "captions" is anybody's own
    assert str(tmp_path) not in text


def test_no_folder_of_the_machine_is_published(tmp_path):
    trained = a_run(tmp_path)
    assert "somebody" not in card_text(tmp_path, trained, "me/films")
    text = (tmp_path / "config.toml").read_text()
    start = 'start = "/home/somebody/models/first.bin"'
    (tmp_path / "config.toml").write_text(text.replace('start = "openclip:ViT-B-32-quickgelu/openai"', start))
    card = card_text(tmp_path, trained, "me/films")
    assert "somebody" not in card
    assert "| started from | first.bin (a local path) |" in card


def test_a_training_split_that_lost_clips_says_so(tmp_path):
    train = {"dataset": "msvd", "split": "train", "num_pairs": 10, "num_clips": 4, "num_missing_clips": 2}
    trained = a_run(tmp_path, train=train)
    assert "| clips left out, their video missing | 2 |" in card_text(tmp_path, trained, "me/films")


def test_a_run_without_validation_has_a_card_without_results(tmp_path):
    trained = network()
    best = {"epoch": 5, "by": None, "fingerprint": trained.fingerprint, "validation": None}
    a_run(tmp_path, best=best, validation=None)
    card = make_card(tmp_path, trained, "me/films").to_markdown()
    assert "## Results" not in card
    assert "model-index" not in metadata(card)
    assert "| epochs | 5; this is epoch 5 |" in card.splitlines()


def test_a_model_alone_has_a_shorter_card(tmp_path):
    alone = network()
    alone.save(tmp_path)
    assert not is_run(tmp_path)
    card = card_text(tmp_path, alone, "me/films")
    assert metadata(card)["license"] == "other"
    assert "## Training" not in card
    assert "How it was trained is not recorded here." in card


def test_figures_of_another_model_are_never_published(tmp_path):
    a_run(tmp_path)
    with pytest.raises(RunError, match="of another model than the one in best/"):
        read_run(tmp_path, "0" * 64)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "summary.json").unlink(), "the run is not done"),
        (lambda run: (run / "summary.json").write_text("{"), "not a training run that can be read"),
        (lambda run: (run / "summary.json").write_text("[]"), "not a training run that can be read"),
        (lambda run: (run / "config.toml").write_text("= 1"), "not a training run that can be read"),
        (lambda run: (run / "best").rename(run / "worst"), "without a best model"),
    ],
)
def test_a_run_that_is_not_done_or_damaged_is_one_line(spoil, message, tmp_path):
    trained = a_run(tmp_path)
    spoil(tmp_path)
    with pytest.raises(RunError, match=message) as error:
        model_directory(tmp_path)
        card_text(tmp_path, trained, "me/films")
    assert "\n" not in str(error.value)


# Evaluation reports


def a_report(model: XClip, path: Path, dataset: str = "msrvtt-9k") -> Path:
    """As `xclip-search evaluate` writes it."""
    clips = tuple(Clip(str(number), Path(f"{number}.mp4")) for number in range(4))
    split = Split(dataset, "test", clips, ("a", "b", "c", "d"), (0, 1, 2, 3))
    scores = torch.eye(4).numpy()
    evaluation = Evaluation(tuple(exhaustive_rows(scores, split)), (), {"encode": 1.0})
    recipe = FrameRecipe(model.config.num_frames, model.config.resizing)
    path.write_text(to_json(make_report(evaluation, split, model, "mine", recipe)))
    return path


def test_an_evaluation_goes_into_the_card_and_replaces_the_runs_own_of_that_split(tmp_path):
    trained = a_run(tmp_path)
    report = a_report(trained, tmp_path / "test.json")
    other = a_report(trained, tmp_path / "other.json", dataset="msvd")
    card = make_card(tmp_path, trained, "me/films", evaluations=[report, other])
    assert [(one.key, one.recall_at_1, one.num_items) for one in card.figures] == [
        (("msrvtt-9k", "test", "text to video"), 100.0, 4),
        (("msrvtt-9k", "test", "video to text"), 100.0, 4),
        (("msvd", "test", "text to video"), 100.0, 4),
        (("msvd", "test", "video to text"), 100.0, 4),
    ]
    assert [one.chose_the_epoch for one in card.figures] == [True, True, False, False]


def test_an_evaluation_of_another_model_or_of_nothing_is_refused(tmp_path):
    trained = a_run(tmp_path)
    report = a_report(trained, tmp_path / "test.json")
    values = json.loads(report.read_text())
    values["model"]["fingerprint"] = "0" * 64
    report.write_text(json.dumps(values))
    with pytest.raises(EvaluationError, match="is an evaluation of another model"):
        make_card(tmp_path, trained, "me/films", evaluations=[report])
    for content in ("", "{}", "[1]"):
        report.write_text(content)
        with pytest.raises(EvaluationError, match="not a report of xclip-search evaluate"):
            make_card(tmp_path, trained, "me/films", evaluations=[report])


def test_a_card_that_is_there_is_kept_and_not_silently_at_odds_with_the_options(tmp_path):
    trained = a_run(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    assert card_text(tmp_path, trained, "me/films") == "mine"
    with pytest.raises(RunError, match="published as it is"):
        card_text(tmp_path, trained, "me/films", license="mit")


def test_the_command_prints_a_runs_card(tmp_path):
    trained = a_run(tmp_path)
    result = CliRunner().invoke(xclip_search.app, ["push", str(tmp_path), "me/films", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert result.output == card_text(tmp_path, trained, "me/films")


# Escaping

ODD = "a | b ` c\n## d --- : [x](y) <script> *e* _f_ \\ {{g}} # h\u202e\x00 'i' \"j\" & ~k~ é"


def an_odd_card() -> ModelCard:
    facts = TrainingFacts(
        ODD, ODD, ODD, 1, 1, 1, 1, ODD, settings={"a.b": ODD, ODD: "1"}, facts={ODD: ODD}, versions={ODD: ODD}
    )
    figures = Figures(ODD, ODD, "text to video", 1.0, 2.0, 3.0, 4.0, 5.0, 6, 7, chose_the_epoch=True)
    config = replace(network().config, description=ODD)
    return ModelCard(f"me/{ODD}", config, 1, "f", ODD, facts, [figures])


def test_texts_of_any_kind_change_neither_metadata_nor_structure():
    card = an_odd_card().to_markdown()
    values = metadata(card)
    assert values["datasets"] == [ODD]
    assert values["license"] == ODD
    body = card.split("\n---\n", 1)[1]
    headings = [line for line in body.splitlines() if line.startswith("## ")]
    assert headings == ["## Use", "## Results", "## Training", "## Limits", "## Citation"]
    text = re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "", body)
    assert "<script>" not in text
    assert "[x](y)" not in text
    for line in body.splitlines():
        if line.startswith("|"):
            cells = line.replace("\\\\", "").replace("\\|", "").count("|") - 1
            assert cells in (2, 9), line


@settings(deadline=None)
@given(st.text())
def test_escaped_text_is_one_line_without_bare_markup(text):
    escaped = escape(text)
    assert escaped.isprintable()
    bare = escaped.replace("\\\\", "")
    for sign in "`*_[]<>#|&":
        assert bare.count(sign) == bare.count("\\" + sign), (sign, escaped)
