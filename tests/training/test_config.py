from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.score_names import SCORE_NAMES
from tests.support.training_runs.training_fields import config_table
from training.config import (
    DataChoices,
    ModelChoices,
    OptimizerChoices,
    TrainingChoices,
    TrainingConfig,
    change_config,
    find_config,
    parse_config,
    read_config,
    shipped_configs,
)
from training.errors import ConfigError

MINIMAL = '[data]\ndataset = "captions"\n'

# From scripts/run_xclip_DATASET_vitNN.sh of github.com/xuguohai/X-CLIP, commit 6b5344f:
# --epochs, --batch_size, --max_words, --max_frames, --batch_size_val, --num_thread_reader
OFFICIAL = {
    "msrvtt-9k-vit-b-32": (5, 300, 32, 12, 40, 8),
    "msrvtt-9k-vit-b-16": (5, 80, 32, 12, 40, 8),
    "msvd-vit-b-32": (5, 300, 32, 12, 96, 4),
    "msvd-vit-b-16": (5, 80, 32, 12, 64, 4),
    "lsmdc-vit-b-32": (5, 300, 32, 12, 64, 4),
    "lsmdc-vit-b-16": (5, 80, 32, 12, 64, 4),
    "didemo-vit-b-32": (20, 64, 64, 64, 24, 4),
    "didemo-vit-b-16": (20, 16, 64, 64, 8, 4),
    "activitynet-vit-b-32": (20, 112, 64, 64, 16, 4),
    "activitynet-vit-b-16": (20, 32, 64, 64, 16, 4),
}
# No script exists; the values of the 9k training set.
OURS = {name.replace("9k", "7k"): OFFICIAL[name] for name in OFFICIAL if "9k" in name}


def refusal(text: str, *changes: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, changes, "my.toml")
    return str(caught.value)


OTHER_BACKBONES = {
    f"msrvtt-9k-{name}"
    for name in (
        *("siglip2-b-16", "siglip2-so400m-14", "mobileclip2-s2", "eva02-b-16", "dfn-b-16"),
        *("convnext-base-w", "coca-b-32", "xlm-roberta-b-32"),
    )
}


def test_there_is_one_config_for_each_dataset_and_backbone_and_one_for_the_ablations():
    assert set(shipped_configs()) == {*OFFICIAL, *OURS, *OTHER_BACKBONES, "drawn-corpus"}


@pytest.mark.parametrize("name", sorted(OTHER_BACKBONES))
def test_a_config_of_another_backbone_differs_from_the_official_one_where_it_says_so(name):
    config, official = find_config(name), find_config("msrvtt-9k-vit-b-16")
    architecture, _, weights = config.model.start.removeprefix("openclip:").partition("/")
    assert open_clip.get_pretrained_cfg(architecture, weights), config.model.start
    assert config.model == replace(official.model, start=config.model.start, mask_padding=True)
    assert config.data == official.data
    assert config.optimizer == replace(official.optimizer, kind="adamw")
    batch_size = config.training.batch_size
    assert config.training == replace(official.training, precision="bfloat16", batch_size=batch_size)


@pytest.mark.parametrize("name", [*OFFICIAL, *OURS])
def test_a_shipped_config_holds_the_values_of_the_official_script(name):
    config = find_config(name)
    epochs, batch_size, num_words, num_frames, validation_batch_size, num_workers = {**OFFICIAL, **OURS}[name]
    dataset, _, patch = name.partition("-vit-b-")
    assert config.data.dataset == dataset
    assert config.model == ModelChoices(
        start=f"openclip:ViT-B-{patch}-quickgelu/openai",
        num_words=num_words,
        num_frames=num_frames,
        temporal_layers=4,  # main_xclip.py: --cross_num_hidden_layers
        mask_padding=False,
    )
    assert config.data == DataChoices(
        dataset=dataset,
        # DATALOADER_DICT: MSR-VTT is validated on its test set.
        validation_split="test" if dataset.startswith("msrvtt") else "val",
        frames_per_second=1,
        frame_slice="uniform",
        frame_order="forward",
        num_workers=num_workers,
    )
    # --lr 1e-4 --coef_lr 1e-3 in every script, the rest in main_xclip.py
    assert config.optimizer == OptimizerChoices("bert-adam", 1e-4, 1e-3, 0.2, 0.1, 1.0)
    assert config.training == TrainingChoices(
        epochs=epochs,
        batch_size=batch_size,
        precision="float16",
        freeze_layers=0,
        seed=42,
        validation_batch_size=validation_batch_size,
    )
    # Everything that an official script sets is written in the file, not left to a default.
    text = shipped_configs()[name]
    for field in (
        "num_words",
        "num_frames",
        "learning_rate",
        "epochs",
        "batch_size",
        "freeze_layers",
        "seed",
    ):
        assert f"\n{field} = " in text


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("", "[data].dataset is missing", ""),
        (MINIMAL + "num_wokers = 3", "[data].num_wokers", "did you mean num_workers?"),
        (MINIMAL + "[trainig]\nepochs = 3", "[trainig]", "did you mean training?"),
        (MINIMAL + "[training]\nepochs = 0", "[training].epochs", "greater than or equal to 1, not 0"),
        (MINIMAL + "[training]\nepochs = 2.5", "[training].epochs", "integer, not 2.5"),
        (MINIMAL + "[training]\nepochs = true", "[training].epochs", "integer, not True"),
        (MINIMAL + '[training]\nepochs = "3"', "[training].epochs", "integer, not '3'"),
        (
            MINIMAL + '[training]\nprecision = "fp8"',
            "[training].precision",
            "'float32', 'bfloat16' or 'float16'",
        ),
        (MINIMAL + "[training]\nbatch_size = 1", "[training].batch_size", "greater than or equal to 2"),
        (MINIMAL + "[optimizer]\nlearning_rate = nan", "[optimizer].learning_rate", "finite"),
        (MINIMAL + "[optimizer]\nwarmup_share = 1.0", "[optimizer].warmup_share", "less than 1"),
        (MINIMAL + '[model]\nscore_names = ["frame"]', "[model].score_names[0]", "frame_word"),
        (MINIMAL + '[model]\nscore_names = ["frame_word", "frame_word"]', "[model].score_names", "twice"),
        (MINIMAL + "[model]\nscore_names = []", "[model].score_names", "at least 1"),
        (MINIMAL + "[model]\ntemperature = 0", "[model].temperature", "greater than 0"),
        ("data = 3", "[data]", "must be a section"),
        ("[data", "my.toml is not TOML", ""),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused_by_file_section_and_field(text, place, hint):
    message = refusal(text)
    assert message.startswith("my.toml")
    assert place in message
    assert hint in message


def test_every_problem_is_reported_together():
    lines = refusal(MINIMAL + "x = 1\n[training]\nepochs = 0\nseed = -1").splitlines()
    assert len(lines) == 3


def test_a_file_that_is_not_there_or_not_text_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.toml"):
        read_config(tmp_path / "missing.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes\.toml"):
        read_config(tmp_path / "bytes.toml")


def test_a_name_that_is_no_shipped_config_gets_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean msrvtt-9k-vit-b-32"):
        find_config("msrvtt-9k-vit-b32")


def test_a_path_and_a_shipped_name_work_alike(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(shipped_configs()["msvd-vit-b-32"], encoding="utf-8")
    assert find_config(str(path)) == find_config("msvd-vit-b-32") == read_config(path)


@settings(deadline=None)
@given(
    directory=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map(
        Path
    ),
    learning_rate=st.floats(min_value=1e-300, max_value=1e300),
    micro_batch_size=st.none() | st.integers(1, 10**9),
    frozen=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=3).map(tuple),
    scores=st.lists(st.sampled_from(SCORE_NAMES), min_size=1, unique=True).map(tuple),
)
def test_writing_and_reading_gives_the_same_config(
    directory, learning_rate, micro_batch_size, frozen, scores
):
    config = TrainingConfig(
        data=DataChoices("captions", directory=directory),
        model=ModelChoices(score_names=scores),
        optimizer=OptimizerChoices(learning_rate=learning_rate),
        training=TrainingChoices(micro_batch_size=micro_batch_size, freeze_parameters=frozen),
    )
    text = config.to_toml()
    assert parse_config(text) == config
    assert parse_config(text).to_toml() == text


def test_single_values_are_changed_by_section_and_field():
    config = parse_config(
        MINIMAL,
        [
            "data.directory=/data/my videos",
            "training.epochs=7",
            "optimizer.learning_rate=2e-5",
            'model.score_names=["frame_word"]',
            "training.precision=bfloat16",
        ],
    )
    assert config.data.directory == Path("/data/my videos")
    assert (config.training.epochs, config.training.precision) == (7, "bfloat16")
    assert config.optimizer.learning_rate == 2e-5
    assert config.model.score_names == ("frame_word",)
    assert change_config(config, ["training.epochs=", "data.directory="]) == replace(
        config,
        training=replace(config.training, epochs=TrainingChoices().epochs),
        data=replace(config.data, directory=None),
    )


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ("epochs=3", "is not section.field=value"),
        ("training.epochs", "is not section.field=value"),
        ("training.epoch=3", "did you mean epochs?"),
        ("trainin.epochs=3", "did you mean training?"),
        ("training.epochs=many", "integer, not 'many'"),
    ],
)
def test_a_change_that_cannot_be_meant_is_refused(change, hint):
    assert hint in refusal(MINIMAL, change)


def test_only_fields_that_leave_the_result_alone_may_differ_in_a_resumed_run():
    config = parse_config(MINIMAL)
    counted = set(config.what_counts())
    every = {f"{s.name}.{f.name}" for s in fields(config) for f in fields(getattr(config, s.name))}
    rounded = {
        "training.micro_batch_size",
        "training.gradient_checkpointing",
        "training.validation_batch_size",
    }
    assert set(config.what_rounds()) == rounded
    assert every - counted - rounded == {
        "data.directory",
        "data.videos",
        "data.cache",
        "data.num_workers",
        "data.read_first",
        "training.checkpoint_every_steps",
        "log.tensorboard",
        "log.every_steps",
    }


def test_reading_a_config_loads_no_torch():
    code = (
        "import sys; from training.config import find_config; find_config('msvd-vit-b-32');"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_documented_fields_are_those_of_the_dataclasses():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    documented = text[text.index("### `[data]`") :].rstrip()
    assert documented == config_table().rstrip(), (
        "docs/training.md: put in what tests.support.training_runs.training_fields prints"
    )


def test_the_documented_example_is_a_config():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    example = text.partition("```toml")[2].partition("```")[0]
    assert parse_config(example).training.batch_size == 64


def test_every_name_in_the_documented_commands_is_shipped():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    named = set(re.findall(r"search train ([a-z0-9-]+-vit-b-\d+)", text))
    assert named
    assert named <= set(shipped_configs())
