"""A start waits neither for libraries that few architectures need nor for weights that are then replaced."""

import subprocess
import sys

import pytest
import torch

from model import XClip, XClipConfig
from model.checkpoints.tensors import WithoutRandomWeights, all_finite
from model.quick_start import complete_import, shorten_import

PROGRAM = """
import sys
from pathlib import Path
from model.quick_start import shorten_import
shorten_import()
import torch
import model.xclip
left_out = [name for name in ("timm", "transformers", "torch._dynamo") if name in sys.modules]
assert left_out == [], left_out
loaded = model.xclip.XClip.load("demo", device="cpu")
assert loaded.encode_text(["a red car"]).sentence.isfinite().all()
assert "torch._dynamo" not in sys.modules
print("loaded without")

from tests.support.small_architectures import small_architectures
families = ["vit-of-timm", "roberta", "coca"]
with small_architectures(Path(sys.argv[1]), families):
    for family in families:
        loaded = model.xclip.XClip.load(f"openclip:small-{family}/random?seed=0", device="cpu")
        size = loaded.config.image_size
        shown = torch.zeros(1, loaded.config.num_frames, 3, size, size)
        seen = loaded.encode_video(shown, torch.ones(1, loaded.config.num_frames))
        assert seen.video.isfinite().all() and loaded.encode_text(["dog"]).sentence.isfinite().all()
print("came when needed")

from torchvision.ops.roi_align import is_compile_supported as stood_in_for
from torch._dynamo.utils import is_compile_supported
assert stood_in_for is not is_compile_supported
assert [stood_in_for(name) for name in ("cpu", "cuda", "mps")] == [
    bool(is_compile_supported(name)) for name in ("cpu", "cuda", "mps")
]
print("answers alike")
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A process that says how far it came: one for all of this, because imports take seconds."""
    command = [sys.executable, "-c", PROGRAM, str(tmp_path_factory.mktemp("architectures"))]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_model_is_loaded_without_timm_transformers_and_the_compiler(done):
    assert "loaded without" in done.stdout, done.stderr


def test_what_was_left_out_comes_when_a_tower_needs_it(done):
    assert "came when needed" in done.stdout, done.stderr


def test_the_one_function_that_was_stood_in_for_answers_as_the_true_one(done):
    assert "answers alike" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_where_open_clip_is_there_already_nothing_changes():
    import open_clip  # noqa: F401

    finders = list(sys.meta_path)
    shorten_import()
    complete_import()
    assert sys.meta_path == finders and "timm" in sys.modules


def test_a_network_whose_weights_are_read_draws_none():
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        with WithoutRandomWeights():
            XClip(XClipConfig.tiny())
        assert torch.equal(torch.get_rng_state(), before)
        XClip(XClipConfig.tiny())
        assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_found_and_large_ones_are_no_such(dtype):
    largest = torch.full((300,), torch.finfo(dtype).max, dtype=dtype)  # their sum is infinite
    assert all_finite(largest)
    assert all_finite(torch.empty(0, dtype=dtype))
    for wrong in (float("inf"), float("-inf"), float("nan")):
        assert not all_finite(torch.tensor([1.0, wrong, 2.0], dtype=dtype))
    assert not all_finite(torch.tensor([float("inf"), float("-inf")], dtype=dtype))
