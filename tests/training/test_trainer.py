from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training.loop.trainer
from model import XClip
from tests.support.training_runs.small_training import small_config, write_small_corpus, write_tiny_clip
from training.config import TrainingConfig, change_config, read_config
from training.data.splits import TrainingSplits
from training.datasets.registry import load_split
from training.errors import ConfigError, DatasetError, RunError
from training.evaluation.evaluation import RetrievalResult
from training.evaluation.metrics import retrieval_metrics
from training.loop.events import (
    EpochDone,
    Note,
    Preparing,
    RunStarted,
    StepDone,
    TrainingEvent,
    ValidationStarted,
)
from training.loop.run_directory import STATE_FILE, RunDirectory
from training.loop.stopping import TrainingStoppedError
from training.loop.trainer import TrainingResult, train


class Crash(BaseException):
    """Like a power failure: nothing catches it."""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainingConfig:
    """Three epochs of four steps, decoded frames cached."""
    root = tmp_path_factory.mktemp("training")
    corpus, start = write_small_corpus(root / "corpus"), write_tiny_clip(root / "clip")
    return small_config(corpus, start, f"data.cache={root / 'frames'}")


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> TrainingResult:
    """A run that nothing interrupted."""
    return train(config, tmp_path_factory.mktemp("finished") / "run", device="cpu")


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "last" / STATE_FILE, weights_only=True)


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """Equal to the last bit, through containers."""
    assert type(found) is type(expected), place
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, place
        assert torch.equal(found.nan_to_num(), expected.nan_to_num()), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key, value in expected.items():
            assert_same(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}[{number}]")
    else:
        assert found == expected, place


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "times"} for row in rows]


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, optimizer, counters, random states and rows of two runs, all but the times."""
    for checkpoint in ("last", "best"):
        assert_same(
            load_file(found / checkpoint / "model.safetensors"),
            load_file(expected / checkpoint / "model.safetensors"),
            checkpoint,
        )
    ours, theirs = state_of(found), state_of(expected)
    for state in (ours, theirs):
        progress = state["progress"]
        progress["rows"] = without_times(progress["rows"])
        del progress["seconds"], progress["epoch_seconds"]
    del ours["config"], theirs["config"]
    assert_same(ours, theirs)
    metrics = [
        without_times([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
        for run in (found, expected)
    ]
    assert metrics[0] == metrics[1]


def crash_at(kind: type[TrainingEvent], number: int) -> Any:
    def on_event(event: TrainingEvent) -> None:
        if isinstance(event, kind) and number in (
            getattr(event, "step", None),
            getattr(event, "epoch", None),
        ):
            raise Crash

    return on_event


def resumed(config: TrainingConfig, output: Path, on_event: Any) -> list[TrainingEvent]:
    with pytest.raises(Crash):
        train(config, output, device="cpu", on_event=on_event)
    events: list[TrainingEvent] = []
    train(config, output, device="cpu", existing="resume", on_event=events.append)
    return events


def test_a_run_learns_and_reports_what_it_does(config, tmp_path):
    events: list[TrainingEvent] = []
    result = train(config, tmp_path / "run", device="cpu", on_event=events.append)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 13))
    assert next(event for event in events if isinstance(event, RunStarted)).num_pairs == 24
    assert [row["epoch"] for row in result.rows] == [1, 2, 3]
    assert result.rows[-1]["loss"] < result.rows[0]["loss"]
    for row in result.rows:
        of_epoch = [event.loss for event in steps if event.epoch == row["epoch"]]
        assert row["loss"] == pytest.approx(sum(of_epoch) / len(of_epoch))
        assert row["validation"]["num_texts"] == 4
    # The official schedule starts at rate 0 and falls as a cosine of the whole run.
    assert steps[0].learning_rates == dict.fromkeys(steps[0].learning_rates, 0.0)
    assert steps[3].learning_rates["other_decay"] == pytest.approx(1e-3 * 0.5 * (1 + 2**-0.5), rel=1e-6)
    assert steps[3].learning_rates["clip_decay"] == pytest.approx(
        0.5 * steps[3].learning_rates["other_decay"]
    )


def test_a_finished_run_leaves_models_config_rows_and_a_summary(config, finished):
    directory = finished.directory
    assert {path.name for path in directory.iterdir()} == {
        "config.toml", "metrics.jsonl", "summary.json", "last", "best",
    }  # fmt: skip
    assert read_config(directory / "config.toml") == config
    assert read_config(directory / "best" / "training_config.toml") == config
    summary = json.loads((directory / "summary.json").read_text())
    assert summary == finished.summary
    assert summary["best"]["fingerprint"] == XClip.load(finished.best, "cpu").fingerprint
    assert summary["train"]["num_pairs"] == 24
    assert summary["num_pairs_seen"] == 72
    times = summary["times"]
    parts = sum(value for name, value in times.items() if name.endswith("_seconds"))
    assert parts == pytest.approx(summary["wall_seconds"])
    assert 0 < times["data_wait_share"] < 1


@pytest.mark.slow
def test_the_same_config_trains_the_same_model_bit_for_bit(config, finished, tmp_path):
    train(config, tmp_path / "run", device="cpu")
    assert_same_run(tmp_path / "run", finished.directory)


@pytest.mark.slow
def test_another_seed_trains_another_model(config, finished, tmp_path):
    train(change_config(config, ["training.seed=43"]), tmp_path / "run", device="cpu")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "run", finished.directory)


@pytest.mark.parametrize(
    ("crash", "going_on_after_step"),
    [
        pytest.param(crash_at(StepDone, 3), 0, id="before the first checkpoint"),
        pytest.param(crash_at(ValidationStarted, 1), 4, id="in a validation", marks=pytest.mark.slow),
        pytest.param(crash_at(StepDone, 6), 4, id="in the second epoch"),
        pytest.param(crash_at(EpochDone, 8), 8, id="after the second epoch", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_bit_for_bit_an_uninterrupted_one(
    config, finished, tmp_path, crash, going_on_after_step
):
    events = resumed(config, tmp_path / "run", crash)
    started = next(event for event in events if isinstance(event, RunStarted))
    assert started.num_steps_done == going_on_after_step
    assert_same_run(tmp_path / "run", finished.directory)


def test_a_run_resumes_in_the_middle_of_an_epoch_bit_for_bit(config, finished, tmp_path):
    often = change_config(config, ["training.checkpoint_every_steps=3"])
    events = resumed(often, tmp_path / "run", crash_at(StepDone, 8))
    assert next(event for event in events if isinstance(event, RunStarted)).num_steps_done == 7
    assert_same_run(tmp_path / "run", finished.directory)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_finishes_its_step_and_resumes_bit_for_bit(
    config, finished, tmp_path, number
):
    def ask(event: TrainingEvent) -> None:
        if isinstance(event, StepDone) and event.step == 6:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(TrainingStoppedError, match="after step 6") as stopped:
        train(config, tmp_path / "run", device="cpu", on_event=ask)
    assert signal.getsignal(number) is before
    assert stopped.value.signal_number == number
    assert state_of(tmp_path / "run")["progress"]["step"] == 2
    train(config, tmp_path / "run", device="cpu", existing="resume")
    assert_same_run(tmp_path / "run", finished.directory)


@pytest.mark.slow
def test_a_run_with_adamw_resumes_bit_for_bit_too(config, tmp_path):
    adamw = change_config(config, ["optimizer.kind=adamw", "training.epochs=2"])
    train(adamw, tmp_path / "whole", device="cpu")
    resumed(adamw, tmp_path / "run", crash_at(StepDone, 6))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(config, finished, tmp_path):
    train(config, tmp_path / "run", device="cpu")
    train(config, tmp_path / "run", device="cpu", existing="resume")
    assert_same_run(tmp_path / "run", finished.directory)


def test_a_run_is_neither_overwritten_nor_resumed_by_mistake(config, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(RunError, match="no run to resume"):
        train(config, output, device="cpu", existing="resume")
    short = change_config(config, ["training.epochs=1"])
    train(short, output, device="cpu")
    with pytest.raises(RunError, match="--resume continues it, --overwrite removes it"):
        train(short, output, device="cpu")
    with pytest.raises(RunError, match=r"training\.seed: 42 before, 7 now"):
        train(change_config(short, ["training.seed=7"]), output, device="cpu", existing="resume")
    with pytest.raises(
        RunError, match=r"epochs: 1 before, 2 now; leave that out .* --set model.start=RUN/best"
    ):
        train(change_config(short, ["training.epochs=2"]), output, device="cpu", existing="resume")
    # What does not touch the result may differ.
    train(change_config(short, ["log.every_steps=3", "data.cache="]), output, device="cpu", existing="resume")
    # And what the message says to do works.
    longer = change_config(short, [f"model.start={output / 'best'}", "training.epochs=2"])
    assert len(train(longer, tmp_path / "longer", device="cpu").rows) == 2
    result = train(change_config(short, ["training.seed=7"]), output, device="cpu", existing="overwrite")
    assert result.rows[0]["epoch"] == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for choice in ("refuse", "overwrite"):
        with pytest.raises(RunError, match="is no training run"):
            train(short, tmp_path / "mine", device="cpu", existing=choice)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_run_resumes_with_less_memory_and_says_what_that_changes(config, tmp_path):
    short = change_config(config, ["training.epochs=1"])
    train(short, tmp_path / "run", device="cpu")
    reported: list[TrainingEvent] = []
    frugal = change_config(short, ["training.micro_batch_size=2", "training.gradient_checkpointing=true"])
    train(frugal, tmp_path / "run", device="cpu", existing="resume", on_event=reported.append)
    notes = [event.text for event in reported if isinstance(event, Note)]
    assert notes == [
        "training.micro_batch_size: None before, 2 now; training.gradient_checkpointing: False before, True"
        " now: the result is the same up to rounding"
    ]


def test_a_run_does_not_resume_with_other_data(config, finished, tmp_path):
    assert config.data.directory is not None
    train_split = load_split("captions", config.data.directory, "train")
    splits = TrainingSplits(train_split, load_split("captions", config.data.directory, "val"))
    train(change_config(config, ["training.epochs=1"]), tmp_path / "run", device="cpu", splits=splits)
    other = replace(splits, train=replace(train_split, texts=("another text", *train_split.texts[1:])))
    with pytest.raises(RunError, match="other texts or clips"):
        train(
            change_config(config, ["training.epochs=1"]),
            tmp_path / "run",
            device="cpu",
            existing="resume",
            splits=other,
        )


def test_a_damaged_checkpoint_is_refused(config, tmp_path):
    short = change_config(config, ["training.epochs=1"])
    train(short, tmp_path / "run", device="cpu")
    state = tmp_path / "run" / "last" / STATE_FILE
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="cannot be read"):
        train(short, tmp_path / "run", device="cpu", existing="resume")
    torch.save({**torch.load(_written(state, whole), weights_only=True), "optimizer": {}}, state)
    with pytest.raises(RunError, match="damaged"):
        train(short, tmp_path / "run", device="cpu", existing="resume")


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_checkpoint_is_the_former_or_the_new_one_whatever_interrupts_its_writing(
    finished, config, tmp_path, monkeypatch
):
    directory = RunDirectory(tmp_path / "run")
    directory.begin(config)
    model = XClip.load(finished.last, "cpu")
    directory.write_last(model, config, {"number": 1})
    rename = Path.rename
    for num_renamings in (0, 1):
        counted = []

        def failing(
            path: Path, target: Path, counted: list[Path] = counted, most: int = num_renamings
        ) -> Path:
            if len(counted) == most:
                raise Crash
            counted.append(path)
            return rename(path, target)

        with monkeypatch.context() as patched, pytest.raises(Crash):
            patched.setattr(Path, "rename", failing)
            directory.write_last(model, config, {"number": 2})
        directory.repair()
        assert directory.read_state() == {"number": 1}
        XClip.load(directory.last, "cpu")
    directory.write_last(model, config, {"number": 3})
    assert directory.read_state() == {"number": 3}
    assert {path.name for path in directory.path.iterdir()} == {"config.toml", "last"}


def scripted(values: list[float], name: str) -> Any:
    """In place of `evaluate_split`: these figures, text to video, one after the other."""
    waiting = iter(values)

    def evaluate(model: XClip, *rest: Any, **more: Any) -> RetrievalResult:
        metrics = retrieval_metrics(torch.eye(4).numpy())
        return RetrievalResult(replace(metrics, **{name: next(waiting)}), metrics, 4, 4)

    return evaluate


@pytest.mark.parametrize(
    ("best_by", "values", "best_epoch"),
    [
        pytest.param("text_to_video.recall_at_1", [20.0, 30.0, 10.0], 2, marks=pytest.mark.slow),
        ("text_to_video.recall_at_1", [30.0, 30.0, 10.0], 2),  # of equal ones the later
        ("text_to_video.mean_rank", [3.0, 9.0, 4.0], 1),  # low ranks are good
        # All are equal in this direction.
        pytest.param("video_to_text.recall_at_1", [1.0, 2.0, 3.0], 3, marks=pytest.mark.slow),
    ],
)
def test_the_best_epoch_is_chosen_by_the_validation(
    config, tmp_path, monkeypatch, best_by, values, best_epoch
):
    name = best_by.partition(".")[2]
    monkeypatch.setattr(training.loop.trainer, "evaluate_split", scripted(values, name))
    last_of_epoch = {}

    def keep(event: TrainingEvent) -> None:
        if isinstance(event, EpochDone):
            last_of_epoch[event.row["epoch"]] = load_file(tmp_path / "run" / "last" / "model.safetensors")

    result = train(
        change_config(config, [f"training.best_by={best_by}"]), tmp_path / "run", device="cpu", on_event=keep
    )
    assert result.best_epoch == best_epoch
    assert_same(load_file(result.best / "model.safetensors"), last_of_epoch[best_epoch])


def test_without_validation_the_last_epoch_is_the_best(config, tmp_path):
    result = train(change_config(config, ["data.validation_split=none"]), tmp_path / "run", device="cpu")
    assert result.best_epoch == 3
    assert [row["validation"] for row in result.rows] == [None] * 3
    assert_same(load_file(result.best / "model.safetensors"), load_file(result.last / "model.safetensors"))


FROZEN = ['training.freeze_towers=["vision"]']


def largest_difference(one: Path, other: Path) -> float:
    ours, theirs = (load_file(run / "last" / "model.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def test_training_on_frame_features_encoded_once_is_training_on_the_frames(config, tmp_path):
    frozen = change_config(config, FROZEN)
    by_frames = train(frozen, tmp_path / "frames", device="cpu")
    events: list[TrainingEvent] = []
    cached = change_config(frozen, ["training.cache_frame_features=true"])
    by_features = train(cached, tmp_path / "features", device="cpu", on_event=events.append)
    # Other batches round the frame features otherwise: at most a hundredth of a step in each of twelve steps.
    apart = largest_difference(tmp_path / "frames", tmp_path / "features")
    assert apart < 12 * 0.01 * config.optimizer.learning_rate
    for one, other in zip(by_frames.rows, by_features.rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("12 clips are encoded once" in text and "MiB of memory" in text for text in notes)
    prepared = [event for event in events if isinstance(event, Preparing)]
    assert prepared[-1] == Preparing("encoding clips", 12, 12)
    # And it moved: the comparison is not one of two models that never learnt.
    assert by_frames.rows[-1]["loss"] < by_frames.rows[0]["loss"]


def test_frame_features_are_encoded_once_only_where_they_stay_what_they_are(config, tmp_path):
    with pytest.raises(ConfigError, match='freeze_towers = \\["vision"\\]'):
        train(change_config(config, ["training.cache_frame_features=true"]), tmp_path / "one", device="cpu")
    shuffled = [*FROZEN, "training.cache_frame_features=true", "data.frame_order=shuffled"]
    with pytest.raises(ConfigError, match="frame_order is shuffled"):
        train(change_config(config, shuffled), tmp_path / "two", device="cpu")


@pytest.mark.slow
def test_saving_memory_changes_the_result_by_rounding_only(config, finished, tmp_path):
    sparing = ["training.micro_batch_size=2", "training.gradient_checkpointing=true"]
    train(change_config(config, sparing), tmp_path / "run", device="cpu")
    assert largest_difference(tmp_path / "run", finished.directory) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_and_resumes(config, tmp_path, precision):
    half = change_config(config, [f"training.precision={precision}", "training.epochs=2"])
    whole = train(half, tmp_path / "whole", device="cpu")
    assert all(row["loss"] > 0 for row in whole.rows)
    resumed(half, tmp_path / "run", crash_at(StepDone, 6))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert (state_of(tmp_path / "run")["scaler"] is not None) == (precision == "float16")


def test_a_loss_that_is_no_number_stops_the_run_and_names_step_and_clips(config, tmp_path):
    wild = change_config(config, ["optimizer.learning_rate=1e30", "optimizer.warmup_share=0"])
    with pytest.raises(RunError, match=r"at step \d of epoch 1, so training stops") as caught:
        train(wild, tmp_path / "run", device="cpu")
    listing = json.loads((tmp_path / "run" / "bad_batch.json").read_text())
    assert len(listing["pairs"]) == 6
    assert all(pair["clip"] in str(caught.value) for pair in listing["pairs"])
    assert f"step {listing['step_of_epoch']} of epoch 1" in str(caught.value)


def test_clips_that_cannot_be_read_are_all_listed_before_the_first_step(config, tmp_path):
    assert config.data.directory is not None
    splits = TrainingSplits(load_split("captions", config.data.directory, "train"), None)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    clips = list(splits.train.clips)
    for position in (1, 5):
        clips[position] = replace(clips[position], path=broken)
    splits = TrainingSplits(replace(splits.train, clips=tuple(clips)), None)
    careful = change_config(config, ["data.read_first=true", "training.epochs=1"])
    with pytest.raises(DatasetError, match="2 of 12 clips") as caught:
        train(careful, tmp_path / "strict", device="cpu", splits=splits)
    assert clips[1].id in str(caught.value)
    assert clips[5].id in str(caught.value)
    lenient = change_config(careful, ["data.missing=warn"])
    with pytest.warns(UserWarning, match="2 of 12 clips"):
        result = train(lenient, tmp_path / "lenient", device="cpu", splits=splits)
    assert result.summary["train"] == {
        "dataset": "captions", "split": "train", "num_pairs": 20, "num_clips": 10, "num_missing_clips": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "num_processes", "message"),
    [
        ("training.batch_size=25", 1, "24 pairs of a text and a clip do not fill one batch of 25"),
        ("training.batch_size=7", 2, "a batch of 7 cannot be shared equally by 2 processes"),
        ("training.cache_frame_features=true", 1, "needs a vision tower that does not learn"),
        ("model.scorer=clip", 1, "nothing is left to learn"),
    ],
)
def test_what_cannot_be_trained_is_reported_before_all_clips_are_read(
    config, tmp_path, monkeypatch, change, num_processes, message
):
    def read(*arguments: Any) -> None:
        raise AssertionError("hours have gone by")

    monkeypatch.setattr("training.loop.preparation.read_all_once", read)
    monkeypatch.setattr("training.loop.preparation.world_size", lambda: num_processes)
    wrong = change_config(config, ["data.read_first=true", change])
    with pytest.raises((ConfigError, DatasetError), match=message):
        train(wrong, tmp_path / "run", device="cpu")


def test_the_config_says_where_the_data_are_or_the_run_does_not_begin(config, tmp_path):
    with pytest.raises(ConfigError, match="--data DIR"):
        train(change_config(config, ["data.directory="]), tmp_path / "run", device="cpu")


def test_nothing_left_to_learn_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        train(change_config(config, ["model.scorer=clip"]), tmp_path / "run", device="cpu")


def test_tensorboard_gets_every_scalar_at_its_step(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = change_config(config, ["log.tensorboard=true", "log.every_steps=2"])
    resumed(logged, tmp_path / "run", crash_at(StepDone, 6))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    of_steps = {
        "train/loss", "train/gradient_norm", "train/logit_scale", "speed/samples_per_second",
        "speed/data_wait_share", "learning_rate/clip_decay", "learning_rate/other_decay",
        "learning_rate/clip_no_decay", "learning_rate/other_no_decay",
    }  # fmt: skip
    assert of_steps <= scalars
    for name in of_steps:
        assert [event.step for event in events.Scalars(name)] == [2, 4, 6, 8, 10, 12], name
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = events.Scalars("validation/text_to_video/recall_at_1")
    assert [(event.step, event.value) for event in found] == [
        (row["step"], row["validation"]["text_to_video"]["recall_at_1"]) for row in rows
    ]


@pytest.mark.gpu
def test_a_run_on_a_gpu_in_float16_resumes_and_its_model_loads_on_the_processor(config, tmp_path):
    half = change_config(config, ["training.precision=float16", "training.epochs=2"])
    resumed_events = []
    with pytest.raises(Crash):
        train(half, tmp_path / "run", device="cuda", on_event=crash_at(StepDone, 6))
    result = train(half, tmp_path / "run", device="cuda", existing="resume", on_event=resumed_events.append)
    assert next(event for event in resumed_events if isinstance(event, RunStarted)).num_steps_done == 4
    assert [row["epoch"] for row in result.rows] == [1, 2]
    assert result.summary["device"] != "cpu"
    weights = XClip.load(result.best, "cpu").state_dict()
    assert all(weight.isfinite().all() for weight in weights.values())
