from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.support.training_runs.small_training import small_config, write_small_corpus, write_tiny_clip
from tests.training.test_trainer import assert_same_run
from training.config import shipped_configs
from xclip_search.train import app

COMMAND = [sys.executable, "-m", "xclip_search", "train"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with `corpus`, `clip` and `small.toml`, which says nothing of where the corpus is."""
    root = tmp_path_factory.mktemp("command")
    write_small_corpus(root / "corpus")
    write_tiny_clip(root / "clip")
    config = small_config(root / "corpus", root / "clip", "data.directory=", "log.tensorboard=true")
    (root / "small.toml").write_text(config.to_toml(), encoding="utf-8")
    return root


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def metrics(run_directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]


def test_the_shipped_configs_are_listed():
    result = run("--list")
    assert result.exit_code == 0
    for name in shipped_configs():
        assert name in result.output


@pytest.mark.parametrize("device", ["cuda:77", "gpu"])
def test_a_device_that_is_not_there_is_one_line(corpus, tmp_path, device):
    where = ("--data", corpus / "corpus", "--output", tmp_path / "run")
    result = run(corpus / "small.toml", *where, "--device", device)
    assert result.exit_code == 2
    assert result.output.startswith(f"error: the device '{device}' cannot be used: ")
    assert result.output.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_trains_and_resumes(corpus, tmp_path):
    output = tmp_path / "run"
    where = ("--data", corpus / "corpus", "--output", output)
    result = run(corpus / "small.toml", *where, "--set", "training.epochs=2", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "24 pairs of 12 clips; 2 epochs, 8 steps of 6 pairs; cpu" in result.output
    assert "epoch 2/2" in result.output
    assert "T2V R@1" in result.output
    assert str(output / "best") in result.output
    assert [row["epoch"] for row in metrics(output)] == [1, 2]
    again = run(corpus / "small.toml", *where)
    assert again.exit_code == 1
    assert "--resume continues it, --overwrite removes it" in again.output
    resumed = run("--resume", "--output", output, "--device", "cpu")
    assert resumed.exit_code == 0, resumed.output
    assert "resuming after step 8" in resumed.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which config?"),
        (("--resume",), "which config?"),
        (("msvd-vit-b32",), "did you mean msvd-vit-b-32"),
        (("msvd-vit-b-32", "--set", "training.epoch=3"), "did you mean epochs?"),
        (("msvd-vit-b-32", "--resume", "--overwrite"), "choose one"),
        (("msvd-vit-b-32", "--output", "run", "--device", "cpu"), "--data DIR"),
        (
            ("small.toml", "--output", "run", "--data", "corpus", "--set", "model.start=nothing"),
            "names no model",
        ),
        (("small.toml", "--output", "run", "--data", "corpus", "--set", "model.num_frames=40"), "num_frames"),
    ],
)
def test_wrong_use_is_one_message_and_status_2(corpus, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("small.toml", "corpus"):
        (tmp_path / name).symlink_to(corpus / name)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert message in result.output
    assert "Traceback" not in result.output


def test_what_fails_is_one_message_and_status_1(corpus, tmp_path):
    result = run(corpus / "small.toml", "--data", tmp_path / "nowhere", "--output", tmp_path / "run")
    assert result.exit_code == 1, result.output
    assert "nowhere" in result.output
    assert not (tmp_path / "run").exists()
    assert "Traceback" not in result.output


GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has less.")
PROCESSOR_IS_FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
)
DISK_IS_FULL = RuntimeError(
    "[enforce fail at inline_container.cc:672] PytorchStreamWriter failed writing file"
)


@pytest.mark.parametrize(
    ("place", "error", "messages"),
    [
        ("training.loop.trainer.loss_and_gradients", GPU_IS_FULL, ["6 pairs", "training.micro_batch_size"]),
        (
            "training.loop.trainer.loss_and_gradients",
            PROCESSOR_IS_FULL,
            ["6 pairs", "training.micro_batch_size"],
        ),
        ("training.loop.trainer.evaluate_split", GPU_IS_FULL, ["training.validation_batch_size"]),
        ("torch.save", DISK_IS_FULL, ["last", "cannot be written", "failed writing file"]),
    ],
)
def test_memory_or_a_disk_that_is_full_is_one_message_and_status_1(
    corpus, tmp_path, monkeypatch, place, error, messages
):
    def fail(*arguments: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    where = ("--data", corpus / "corpus", "--output", tmp_path / "run", "--device", "cpu")
    result = run(corpus / "small.toml", *where)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    for message in messages:
        assert message in result.output


def test_an_error_in_the_program_is_not_taken_for_full_memory(corpus, tmp_path, monkeypatch):
    def fail(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("training.loop.trainer.loss_and_gradients", fail)
    result = run(corpus / "small.toml", "--data", corpus / "corpus", "--output", tmp_path / "run")
    assert isinstance(result.exception, RuntimeError)


def test_a_run_directory_that_cannot_be_made_is_one_message_and_status_1(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "run"
    result = run(corpus / "small.toml", "--data", corpus / "corpus", "--output", output, "--device", "cpu")
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.output.startswith(f"error: {output}")


# Real processes: slow, because each loads torch.


def start(*arguments: object, processes: int = 1, new_group: bool = False) -> subprocess.Popen[str]:
    command = COMMAND
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, f"--nproc-per-node={processes}", "-m", "xclip_search", "train"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        start_new_session=new_group,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_resumes_bit_for_bit(corpus, tmp_path):
    options = (corpus / "small.toml", "--data", corpus / "corpus", "--device", "cpu",
               "--set", "training.checkpoint_every_steps=1")  # fmt: skip
    finish(start(*options, "--output", tmp_path / "whole"))
    killed = start(*options, "--output", tmp_path / "run")
    wait_until((tmp_path / "run" / "metrics.jsonl").is_file, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(metrics(tmp_path / "run")) < 3
    output = finish(start(*options, "--output", tmp_path / "run", "--resume"))
    assert "going on after step" in output
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_a_checkpoint_and_says_how_to_resume(corpus, tmp_path, number, status):
    process = start(corpus / "small.toml", "--data", corpus / "corpus", "--output", tmp_path / "run",
                    "--device", "cpu", "--set", "training.epochs=2000")  # fmt: skip
    wait_until((tmp_path / "run" / "metrics.jsonl").is_file, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    assert f"xclip-search train --output {tmp_path / 'run'} --resume" in output
    assert "Traceback" not in output
    state = torch.load(tmp_path / "run" / "last" / "training_state.pt", weights_only=True)
    assert state["progress"]["epoch"] >= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_in_a_terminal_reaches_the_reading_processes_too_and_ends_the_run_the_same_way(
    corpus, tmp_path
):
    process = start(corpus / "small.toml", "--data", corpus / "corpus", "--output", tmp_path / "run",
                    "--device", "cpu", "--set", "training.epochs=2000", "--set", "data.num_workers=2",
                    new_group=True)  # fmt: skip
    wait_until((tmp_path / "run" / "metrics.jsonl").is_file, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert "Traceback" not in output


def largest_difference(one: Path, other: Path) -> float:
    ours, theirs = (load_file(run / "last" / "model.safetensors") for run in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("extra", [(), ("--set", "training.freeze_towers=[\"vision\"]", "--set",
                                        "training.cache_frame_features=true")])  # fmt: skip
def test_two_processes_train_the_model_that_one_trains(corpus, tmp_path, extra):
    options = (corpus / "small.toml", "--data", corpus / "corpus", "--device", "cpu", *extra)
    finish(start(*options, "--output", tmp_path / "one"))
    output = finish(start(*options, "--output", tmp_path / "two", processes=2))
    for line in ("epoch 3/3", "best: epoch", "pairs in"):
        assert output.count(line) == 1  # The first process alone speaks.
    assert "shared by 2 processes" in output
    difference = largest_difference(tmp_path / "one", tmp_path / "two")
    assert difference < 2e-5
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["num_processes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_stop_together_and_resume(corpus, tmp_path):
    options = (corpus / "small.toml", "--data", corpus / "corpus", "--device", "cpu",
               "--set", "training.epochs=12")  # fmt: skip
    finish(start(*options, "--output", tmp_path / "whole", processes=2))
    process = start(*options, "--output", tmp_path / "run", processes=2)
    wait_until((tmp_path / "run" / "metrics.jsonl").is_file, process)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on.
    output, _ = process.communicate(timeout=120)
    assert output.count("asked to stop") == 1, output
    assert len(metrics(tmp_path / "run")) < 12
    finish(start(*options, "--output", tmp_path / "run", "--resume", processes=2))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
