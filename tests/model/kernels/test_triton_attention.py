"""The Triton kernel of attention scores: in the interpreter, compiled without a GPU, and on one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.scoring import draw_texts, draw_videos, head_of
from model import TextFeatures, VideoFeatures, XClipConfig, scoring
from model.kernels.gpu import FusedAttention
from model.score_names import SCORE_NAMES
from tests.conftest import REPOSITORY
from tests.model.kernels.test_attention_kernel import F, W, features, first
from tests.model.kernels.test_attention_kernel import head_of as small_head

pytest.importorskip(
    "triton", reason="Triton comes with PyTorch for GPUs, which is not installed", exc_type=ImportError
)

SCALE = torch.tensor(100.0)
BOUND = {"atol": 2e-3, "rtol": 1e-5}
"""For scores up to 100 at 512 dimensions: rounding errors of 1e-7 in similarities, times 100, and for what
attention makes of them, times an exponent's 100 at most."""

SHARED_MEMORY_BYTES = 99 * 1024
"""What a block may have on any GPU from 8.0 on."""


def test_in_tritons_interpreter_the_kernel_gives_the_plain_scores():
    program = """
import sys, pytest
from model.quick_start import shorten_import
shorten_import()
sys.exit(pytest.main(["-p", "no:cacheprovider", "-p", "no:xdist", sys.argv[1]]))
"""
    command = [sys.executable, "-c", program, str(Path(__file__).with_name("triton_interpreted.py"))]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


_TINY = XClipConfig.tiny().clip
LONG_TEXTS = {**_TINY, "text_cfg": {**_TINY["text_cfg"], "context_length": 200}}


class DriverOf:
    """Stands in for the driver of a GPU, for which the kernel is compiled and not run."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return device


def zeros(config, num_texts=1, num_videos=5):
    """Features of the right shapes."""
    num_words, num_frames, dimension = config.num_words, config.num_frames, config.embedding_dim
    mask = torch.ones(num_texts, num_words).bool()
    text = TextFeatures(torch.zeros(num_texts, dimension), torch.zeros(*mask.shape, dimension), mask)
    mask = torch.ones(num_videos, num_frames).bool()
    frames = torch.zeros(*mask.shape, dimension, dtype=torch.float16)
    return text, VideoFeatures(torch.zeros(num_videos, dimension), frames, mask)


@pytest.fixture
def compile_for(monkeypatch, tmp_path):
    """Compiles from nothing for an architecture and numbers of words, frames and texts."""
    from triton.runtime import driver

    from model.kernels import triton_attention as kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    @torch.no_grad()
    def compile_kernel(architecture, num_words, num_frames, num_texts):
        monkeypatch.setattr(driver, "_active", DriverOf(architecture))
        kernel.score_kernel.device_caches.clear()
        clip = {**LONG_TEXTS, "embed_dim": 512}
        head = scoring.ScoreHead(XClipConfig.tiny(clip=clip, num_words=num_words, num_frames=num_frames))
        text, video = zeros(head.config, num_texts)
        variant = kernel.variant_of(num_words, (num_frames, 512), SCORE_NAMES, head.config)
        texts = kernel.prepare_texts(head.config, dict(head.named_parameters()), text, variant)
        videos = kernel.Videos(video.frames, video.video, video.frame_mask, torch.arange(5))
        scores = torch.empty(4, num_texts, 5)
        return kernel.score_kernel.warmup(
            texts, videos, scores, num_texts, 5, variant, grid=(2,), **kernel.LAUNCH_OPTIONS
        )

    yield compile_kernel
    kernel.score_kernel.device_caches.clear()


@pytest.mark.parametrize(
    ("architecture", "num_words", "num_frames", "num_texts"),
    [
        (90, 8, 12, 1),
        pytest.param(80, 32, 12, 2, marks=pytest.mark.slow),
        pytest.param(75, 8, 12, 1, marks=pytest.mark.slow),
        pytest.param(120, 32, 12, 1, marks=pytest.mark.slow),
        pytest.param(90, 64, 64, 1, marks=pytest.mark.slow),
        pytest.param(80, 128, 32, 1, marks=pytest.mark.slow),
    ],
)
def test_the_kernel_compiles_for_gpus(compile_for, architecture, num_words, num_frames, num_texts):
    compiled = compile_for(architecture, num_words, num_frames, num_texts)
    assert len(compiled.asm["cubin"]) > 0
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES
    if architecture >= 80:
        assert "mma" in compiled.asm["ptx"], "tensor cores multiply"


def test_without_the_kernel_scores_are_computed_in_blocks_and_the_reason_is_logged_once(monkeypatch, caplog):
    # On memory of the processor the compiled kernel cannot be launched, with a GPU or without.
    monkeypatch.setattr(scoring, "FUSED", FusedAttention("cpu"))
    text, video = features([first(n, W) for n in (2, 7)], [first(n, F) for n in (1, 5, 3)])
    head = small_head()
    expected = head.unblocked(text, video, SCALE).total
    for _ in range(2):
        torch.testing.assert_close(head(text, video, SCALE).total, expected, atol=1e-4, rtol=1e-5)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "scoring goes without its Triton kernel"
    ]


@pytest.mark.parametrize(
    "choices",
    [
        {"aggregation": "max-mean"},
        {"num_frames": 65, "temporal_layers": 0},
        {"num_words": 129, "clip": LONG_TEXTS},
        {"num_words": 65, "num_frames": 33, "clip": LONG_TEXTS},
    ],
)
def test_what_the_kernel_is_not_for_is_no_failure(choices, monkeypatch, caplog):
    monkeypatch.setattr(scoring, "FUSED", FusedAttention("cpu"))
    config = XClipConfig.tiny(**choices)
    text, video = zeros(config, num_videos=1)
    assert scoring.ScoreHead(config).eval()(text, video, SCALE).total.tolist() == [[0.0]]
    assert not caplog.records


@pytest.mark.gpu
@pytest.mark.parametrize("num_words", [1, 8, 32])
@pytest.mark.parametrize("num_texts", [1, 5])
@pytest.mark.parametrize("names", [("video_sentence", "sentence_frame"), SCORE_NAMES])
@torch.no_grad()
def test_on_a_gpu_the_kernel_gives_the_plain_scores(num_words, num_texts, names, caplog):
    head = head_of(names).to("cuda")
    text, video = draw_texts(num_texts, num_words).to("cuda"), draw_videos(203, torch.float16).to("cuda")
    plain = head.unblocked(text, video, SCALE.cuda())
    found = head(text, video, SCALE.cuda())
    for name in (*SCORE_NAMES, "total"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), **BOUND)
    assert not caplog.records


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_rows_beyond_two_to_the_31_numbers_are_gathered():
    head, text = head_of(SCORE_NAMES).to("cuda"), draw_texts(2, 8).to("cuda")
    count = (1 << 31) // (12 * 512) + 1000
    some = draw_videos(1000, torch.float16).to("cuda")
    frames = torch.zeros(count, 12, 512, dtype=torch.float16, device="cuda")
    pooled = torch.zeros(count, 512, device="cuda")
    frames[-1000:], pooled[-1000:] = some.frames, some.video
    video = VideoFeatures(pooled, frames, torch.ones(count, 12, dtype=torch.bool, device="cuda"))
    rows = torch.arange(count - 1, count - 1001, -1, device="cuda")
    matrices = dict(head.named_parameters())
    found = scoring.FUSED.scores(head.config, matrices, text, video, SCORE_NAMES, rows)
    plain = head.unblocked(text, some, torch.tensor(1.0, device="cuda"))
    for name in SCORE_NAMES:
        torch.testing.assert_close(found[name], getattr(plain, name).flip(1), atol=2e-5, rtol=1e-5)
