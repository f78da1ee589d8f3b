"""Two processes with half a batch each train as one with the whole."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training_runs.gather_process import GLOBAL_BATCH, take_steps, trained_model
from tests.support.training_runs.training_pairs import (
    double_precision,
    gradients,
    largest_relative_difference,
    random_pairs,
)
from training.distributed import (
    check_equal_parameters,
    explained_if_others_are_gone,
    gather_features,
    process_group,
    rank,
    share_parameters,
    world_size,
)
from training.errors import RunError
from training.loop.loss import loss_and_gradients

PROGRAM = Path(__file__).parents[1] / "support/training_runs/gather_process.py"
Found = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[Found]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "2", str(folder)],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return [load_file(folder / f"{number}.safetensors") for number in range(2)]


def under(found: Found, prefix: str) -> Found:
    part = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    assert part
    return part


@pytest.fixture(scope="module")
def alone() -> Found:
    """Loss and gradients of the whole batch in one process, in float64."""
    with double_precision():
        model = trained_model()
        loss = loss_and_gradients(model, random_pairs(model, GLOBAL_BATCH))
        return {"loss": torch.tensor(loss), **gradients(model)}


def is_encoder(name: str) -> bool:
    """Whether a parameter is used before the gather."""
    return not name.startswith("matrices.") and name not in ("clip.logit_scale", "loss")


@pytest.mark.parametrize("micro_batch", ["whole", "2"])
def test_the_exact_gather_gives_the_gradients_of_the_global_batch(found, alone, micro_batch):
    for process in found:
        together = under(process, f"exact-{micro_batch}/")
        assert max(largest_relative_difference(together, alone)) < 1e-11


@pytest.mark.parametrize("micro_batch", ["whole", "2"])
def test_the_official_gather_halves_the_encoders_gradients_and_no_others(found, alone, micro_batch):
    encoders = {name for name in alone if is_encoder(name)}
    assert encoders and set(alone) - encoders
    expected = {name: value / 2 if name in encoders else value for name, value in alone.items()}
    for process in found:
        together = under(process, f"official-{micro_batch}/")
        assert max(largest_relative_difference(together, expected)) < 1e-11


@pytest.mark.parametrize("micro_batch", ["whole", "2"])
def test_two_processes_take_the_steps_of_one(found, micro_batch):
    model = trained_model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    losses = take_steps(model, slice(0, GLOBAL_BATCH))
    for process in found:
        together = under(process, f"steps-{micro_batch}/")
        assert together.pop("loss").tolist() == pytest.approx(losses, rel=1e-5)
        for name, value in model.state_dict().items():
            # The rate is 1e-3 (1e-4 in the towers): a hundredth of a step.
            torch.testing.assert_close(together[name], value, rtol=0, atol=1e-5, msg=name)
        assert any((together[name] - start[name]).abs().max() > 1e-4 for name in start)


@pytest.mark.parametrize("micro_batch", ["whole", "2"])
def test_both_processes_have_the_same_bits_after_training(found, micro_batch):
    first, second = (under(process, f"steps-{micro_batch}/") for process in found)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_every_process_gets_all_features_and_masks_in_the_order_of_the_ranks(found):
    rows = torch.tensor([0.0, 1.0, 10.0, 11.0])
    for process in found:
        gathered = under(process, "gathered/")
        assert torch.equal(gathered["sentence"], rows[:, None])
        assert torch.equal(gathered["words"], rows[:, None, None].expand(4, 3, 1))
        assert torch.equal(gathered["video"], -rows[:, None])
        assert torch.equal(gathered["frames"], -rows[:, None, None].expand(4, 4, 1))
        assert torch.equal(gathered["word_mask"], rows[:, None] == 10 + torch.arange(3))
        assert torch.equal(gathered["frame_mask"], rows[:, None] < torch.arange(4))


@pytest.mark.parametrize("bucket_bytes", [1, 2**20])
def test_an_absent_gradient_counts_as_zero_unless_it_is_absent_everywhere(found, bucket_bytes):
    for process in found:
        assert process[f"average-{bucket_bytes}/both"].tolist() == [1.5] * 3
        assert process[f"average-{bucket_bytes}/one"].tolist() == [4.0] * 3


def test_weights_are_shared_and_a_single_different_bit_is_noticed_by_all(found):
    first = under(found[0], "shared/")
    for process in found:
        shared = under(process, "shared/")
        assert (shared["before"], shared["after"], shared["changed"]) == (True, False, True)
        assert all(torch.equal(value, first[name]) for name, value in shared.items())


def test_a_process_alone_gathers_nothing():
    model = trained_model()
    batch = random_pairs(model, 2)
    text = model.encode_tokens(torch.from_numpy(batch.input_ids))
    video = model.encode_video(model.normalize_pixels(batch.pixels), torch.from_numpy(batch.frame_mask))
    assert gather_features(text, video) == (text, video)
    assert (rank(), world_size()) == (0, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    share_parameters(model)
    check_equal_parameters(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with process_group("cpu") as device:
        assert device == torch.device("cpu")
        assert world_size() == 1


JOINING = """
import torch
from torch import distributed
from training.distributed import process_group, rank, wait_for_others, world_size
with process_group("cpu") as device:
    total = torch.tensor(float(rank() + 1))
    distributed.all_reduce(total)
    wait_for_others()
    print(f"process {rank()} of {world_size()} on {device}: {total.item()}", flush=True)
assert world_size() == 1
"""


@pytest.mark.slow
def test_torchrun_starts_the_processes_of_a_group(tmp_path):
    program = tmp_path / "joining.py"
    program.write_text(JOINING)
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(program)],
        capture_output=True,
        text=True,
        timeout=110,
        cwd=PROGRAM.parent.parent,
        env=os.environ | {"PYTHONPATH": str(PROGRAM.parent.parent), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == [
        "process 0 of 2 on cpu: 3.0",
        "process 1 of 2 on cpu: 3.0",
    ]


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1000ms for recv",
        "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3022",
        "NCCL communicator was aborted on rank 0.",
    ],
)
def test_a_wait_for_processes_that_are_gone_says_so_and_what_to_do(message: str) -> None:
    with (
        pytest.raises(RunError, match=r"did not answer for 2:00:00.*its own lines.*--resume"),
        explained_if_others_are_gone(timedelta(hours=2)),
    ):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="another"), explained_if_others_are_gone(timedelta(hours=2)):
        raise RuntimeError("another thing")
