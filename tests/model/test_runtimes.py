"""Towers on OpenVINO: the same features as PyTorch's, conversions that are made once, and what if not."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import model.runtimes.converted
import model.runtimes.openvino
import model.xclip
from model import SpecError, XClip
from model.runtimes import conversions
from model.runtimes.conversions import MAX_KEPT, VERDICT_FILE, conversion
from model.runtimes.converted import usable_runtime
from model.runtimes.openvino import WEIGHTS_FILE
from model.runtimes.tower import (
    BFLOAT16_TOLERANCE,
    FRAME_TOLERANCE,
    TEXT_TOLERANCE,
    PlainAttention,
    with_plain_attention,
)
from tests.support.small_architectures import FAMILIES, small_architectures

TEXTS = ["A red dog runs on the beach!", "two cats", "ein Hund läuft", "", "a " * 60]
QUICK = ("siglip", "coca", "xlm-roberta")
"""One of each kind of text tower beside CLIP's: reads padding, appends a position, of transformers."""


@pytest.fixture(scope="module")
def _shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(_shared_cache, monkeypatch):
    """The folder of conversions, of this module's tests alone; the same for all, as for one user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(_shared_cache))
    return conversions.cache_folder()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """One that no other test has filled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return conversions.cache_folder()


def pixels_of(network: XClip) -> tuple[torch.Tensor, torch.Tensor]:
    """Two videos, the first with three real frames."""
    num_frames, size = network.config.num_frames, network.config.image_size
    pixels = torch.randn(2, num_frames, 3, size, size, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, num_frames)
    mask[0, 3:] = 0
    return pixels * mask[:, :, None, None, None], mask


def require_same_features(converted: XClip, reference: XClip) -> None:
    for texts in (TEXTS, TEXTS[1:2]):
        ours, theirs = converted.encode_text(texts), reference.encode_text(texts)
        assert torch.equal(ours.word_mask, theirs.word_mask)
        for name in ("sentence", "words"):
            distance = (getattr(ours, name) - getattr(theirs, name)).norm(dim=-1).max()
            assert distance <= TEXT_TOLERANCE, name
    ours, theirs = (
        converted.encode_video(*pixels_of(converted)),
        reference.encode_video(*pixels_of(reference)),
    )
    assert (ours.frames - theirs.frames).norm(dim=-1).max() <= FRAME_TOLERANCE
    assert (ours.video - theirs.video).norm(dim=-1).max() <= FRAME_TOLERANCE


def test_a_clip_with_its_padding_and_temporal_transformer_has_the_features_of_pytorch(model_directory):
    converted, reference = (XClip.load(model_directory, "cpu", name) for name in ("openvino", "torch"))
    assert converted.runtimes == {"text": None, "vision": None}
    require_same_features(converted, reference)
    assert converted.runtimes == {"text": "openvino", "vision": "openvino"}
    assert reference.runtimes == {"text": "torch", "vision": "torch"}
    assert converted.fingerprint == reference.fingerprint


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_of_towers_has_the_features_of_pytorch(family, tmp_path):
    with small_architectures(tmp_path, [family]):
        spec = f"openclip:small-{family}/random?seed=4"
        converted, reference = (XClip.load(spec, "cpu", name) for name in ("openvino", "torch"))
        require_same_features(converted, reference)
    assert converted.runtimes == {"text": "openvino", "vision": "openvino"}


def test_attention_in_plain_words_is_that_of_pytorch_and_shares_its_weights(model_directory):
    clip = XClip.load(model_directory, "cpu", "torch").clip
    plain = with_plain_attention(clip)
    assert [weight.data_ptr() for weight in plain.parameters()] == [w.data_ptr() for w in clip.parameters()]
    blocks = zip(clip.transformer.resblocks, plain.transformer.resblocks, strict=True)
    for theirs, ours in blocks:
        assert isinstance(ours.attn, PlainAttention) and isinstance(theirs.attn, torch.nn.MultiheadAttention)
        x = torch.randn(2, 5, theirs.attn.embed_dim)
        causal = torch.full((5, 5), float("-inf")).triu(1)
        others = {"need_weights": True}, {"need_weights": False, "attn_mask": causal.isinf()}
        for options in ({"need_weights": False, "attn_mask": causal}, {"need_weights": False}, *others):
            torch.testing.assert_close(ours.attn(x, x, x, **options), theirs.attn(x, x, x, **options))
        torch.testing.assert_close(
            ours.attn(x, x[:, :3], x[:, :3], need_weights=False)[0],
            theirs.attn(x, x[:, :3], x[:, :3], need_weights=False)[0],
        )


def test_auto_is_the_kernel_except_for_small_towers(model_directory, monkeypatch):
    assert XClip.load(model_directory, "cpu").runtimes == {"text": "torch", "vision": "torch"}
    monkeypatch.setattr(model.xclip, "MIN_PARAMETERS", 1)
    network = XClip.load(model_directory, "cpu")
    network.encode_text(TEXTS)
    assert network.runtimes == {"text": "numba", "vision": None}
    network.prepare("text", "vision")
    assert network.runtimes == {"text": "numba", "vision": "numba"}


def test_a_gpu_computes_with_pytorch_and_wrong_wishes_are_refused():
    assert usable_runtime("auto", torch.device("cuda")) == "torch"
    with pytest.raises(SpecError, match="not on cuda: use --device cpu"):
        usable_runtime("openvino", torch.device("cuda"))
    with pytest.raises(SpecError, match="no runtime 'onnx'; there are auto, torch, openvino, openvino-bf16"):
        usable_runtime("onnx", torch.device("cpu"))


def test_without_openvino_pytorch_computes_and_the_log_says_how_to_get_it(
    model_directory, monkeypatch, caplog
):
    monkeypatch.setattr(model.runtimes.converted, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert XClip.load(model_directory, "cpu").runtimes == {"text": "torch", "vision": "torch"}
    assert [record.message for record in caplog.records if "xclip-search[fast]" in record.message]
    with pytest.raises(SpecError, match=r"not installed: .*xclip-search\[fast\]"):
        XClip.load(model_directory, "cpu", "openvino")


@pytest.fixture
def on_bfloat16():
    if not model.runtimes.openvino.has_bfloat16():
        pytest.skip("this processor does not compute in bfloat16")


@pytest.mark.usefixtures("on_bfloat16")
def test_frames_in_bfloat16_are_near_those_of_pytorch_under_a_fingerprint_of_their_own(model_directory):
    network, exact = (XClip.load(model_directory, "cpu", name) for name in ("openvino-bf16", "openvino"))
    ours, theirs = (loaded.encode_video(*pixels_of(loaded)) for loaded in (network, exact))
    distances = (ours.frames - theirs.frames).norm(dim=-1)
    assert FRAME_TOLERANCE < distances.max() <= BFLOAT16_TOLERANCE
    distances = (network.encode_text(TEXTS).words - exact.encode_text(TEXTS).words).norm(dim=-1)
    assert distances.max() <= TEXT_TOLERANCE
    assert network.runtimes == {"text": "numba", "vision": "openvino-bf16"}
    again = XClip.load(model_directory, "cpu", "openvino-bf16")
    assert again.fingerprint == network.fingerprint != exact.fingerprint
    # PyTorch computes a copy, and what goes on learning: in float32.
    assert copy.deepcopy(network).fingerprint == network.train().eval().fingerprint == exact.fingerprint


@pytest.mark.usefixtures("on_bfloat16")
def test_bfloat16_has_no_stand_in(model_directory, own_cache, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(model.runtimes.openvino, "convert", fail)
    network = XClip.load(model_directory, "cpu", "openvino-bf16")
    for _ in range(2):
        with pytest.raises(SpecError, match="not for this model: OpenVINO cannot convert it"):
            network.encode_video(*pixels_of(network))


def test_a_processor_without_bfloat16_is_not_asked_for_it(model_directory, monkeypatch):
    monkeypatch.setattr(model.runtimes.openvino, "has_bfloat16", lambda: False)
    with pytest.raises(SpecError, match="needs a processor that computes in bfloat16"):
        XClip.load(model_directory, "cpu", "openvino-bf16")


def test_an_openvino_that_cannot_be_loaded_costs_one_line_a_tower(model_directory, monkeypatch, caplog):
    network, reference = (XClip.load(model_directory, "cpu", name) for name in ("openvino", "torch"))
    monkeypatch.delitem(sys.modules, "model.runtimes.openvino")
    monkeypatch.setitem(sys.modules, "openvino", None)
    for _ in range(2):
        assert torch.equal(network.encode_text(TEXTS).words, reference.encode_text(TEXTS).words)
    assert [record.message for record in caplog.records] == [
        "PyTorch computes the text tower: OpenVINO import of openvino halted; None in sys.modules"
    ]
    assert network.runtimes["text"] == "torch"


def test_openvino_reports_nothing_to_its_maker():
    assert sys.modules["openvino_telemetry"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")
def test_openvino_works_beside_an_allocator_in_the_place_of_libc_s():
    """Without what `model.runtimes` sets, libc kills the process: `double free or corruption`."""
    allocator = Path(model.runtimes.openvino.openvino.__file__).parent / "libs" / "libtbbmalloc_proxy.so.2"
    assert allocator.is_file()
    program = """
import sys
sys.modules["openvino_telemetry"] = None
import model.runtimes, openvino
openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TBB_ENABLE_SANITIZERS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"LD_PRELOAD": str(allocator)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO sets stacks for signals on Linux")
def test_a_signal_is_handled_after_towers_were_dropped_in_the_order_in_which_they_were_compiled(tmp_path):
    """With one `openvino.Core` for each tower the signal ends the process."""
    tower = torch.nn.Linear(4, 4).eval()
    model.runtimes.openvino.convert(tower, torch.zeros(1, 4), (-1, 4), tmp_path, half=False)
    program = """
import gc, os, signal, sys
from pathlib import Path
import torch
from model.runtimes.openvino import CompiledTower
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
towers = [CompiledTower(Path(sys.argv[1]), num_threads=1) for _ in range(2)]
assert [tower(torch.zeros(1, 4))[0].shape for tower in towers] == [(1, 4)] * 2
while towers:
    del towers[0]
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
assert handled
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("problem", ["computes other features", "cannot convert it: no such operation"])
def test_a_tower_that_is_not_converted_rightly_is_pytorchs_and_that_is_remembered(
    problem, model_directory, own_cache, monkeypatch, caplog
):
    attempts = []

    def convert_wrongly(tower, example, shape, directory, half):
        attempts.append(directory)
        if "cannot" in problem:
            raise RuntimeError("no such operation\nand more lines")

        shifted = torch.nn.Module()
        shifted.tower = tower
        shifted.forward = lambda pixels: (tower(pixels)[0] + 1e-3,)
        right(shifted, example, shape, directory, half)

    right = model.runtimes.openvino.convert
    monkeypatch.setattr(model.runtimes.openvino, "convert", convert_wrongly)
    reference = XClip.load(model_directory, "cpu", "torch")
    for _ in range(2):
        network = XClip.load(model_directory, "cpu", "openvino")
        frames = network.encode_video(*pixels_of(network)).frames
        assert torch.equal(frames, reference.encode_video(*pixels_of(network)).frames)
        assert network.runtimes["vision"] == "torch"
    assert len(attempts) == 1
    messages = [record.message for record in caplog.records]
    assert len(messages) == 2
    assert all(f"PyTorch computes the vision tower: OpenVINO {problem}" in message for message in messages)


def test_a_conversion_is_read_again_and_made_again_where_it_is_damaged(
    model_directory, own_cache, monkeypatch
):
    made = []
    right = model.runtimes.openvino.convert
    monkeypatch.setattr(
        model.runtimes.openvino, "convert", lambda *arguments: (made.append(1), right(*arguments))
    )

    def sentences() -> torch.Tensor:
        network = XClip.load(model_directory, "cpu", "openvino")
        features = network.encode_text(TEXTS).sentence
        assert network.runtimes["text"] == "openvino"
        return features

    expected = sentences()
    assert torch.equal(sentences(), expected)
    assert len(made) == 1
    (weights,) = own_cache.glob(f"*/{WEIGHTS_FILE}")
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)
    assert torch.equal(sentences(), expected)
    assert len(made) == 2


def write_part(directory) -> None:
    (directory / "part").write_text("content")


@pytest.mark.parametrize(
    "damage", ["part is missing", "part is shorter", "no verdict", "no JSON", "other JSON"]
)
def test_whatever_is_damaged_is_made_again(damage, own_cache):
    with conversion("tower", write_part) as (directory, problem):
        assert problem is None
    part, verdict = directory / "part", directory / VERDICT_FILE
    match damage:
        case "part is missing":
            part.unlink()
        case "part is shorter":
            part.write_text("con")
        case "no verdict":
            verdict.unlink()
        case "no JSON":
            verdict.write_text('{"problem": nu')
        case "other JSON":
            verdict.write_text(json.dumps([1]))
    with conversion("tower", write_part) as (directory, _):
        assert (directory / "part").read_text() == "content"


def test_a_conversion_that_fails_leaves_nothing_and_the_next_one_clears_what_a_killed_process_left(own_cache):
    def fail(directory):
        (directory / "part").write_text("half")
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"), conversion("tower", fail):
        pass
    assert [path.name for path in own_cache.iterdir()] == ["lock"]
    (own_cache / "unfinished-abc" / "tower").mkdir(parents=True)
    with conversion("tower", write_part) as (directory, _):
        assert directory == own_cache / "tower"
    assert {path.name for path in own_cache.iterdir()} == {"lock", "tower"}


def test_several_processes_that_start_together_convert_once(own_cache, tmp_path):
    program = """
import sys, time
from pathlib import Path
from model.runtimes.conversions import conversion
def make(directory):
    time.sleep(0.3)
    (directory / "part").write_text("content")
    with open(sys.argv[1], "a") as log:
        log.write("made\\n")
with conversion("tower", make) as (directory, problem):
    assert (directory / "part").read_text() == "content" and problem is None
"""
    command = [sys.executable, "-c", program, str(tmp_path / "log")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert (tmp_path / "log").read_text() == "made\n"


def test_where_nothing_can_be_kept_a_conversion_lasts_as_long_as_it_is_read(tmp_path, monkeypatch, caplog):
    (tmp_path / "cache").write_text("a file, where a folder would be made")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with conversion("tower", write_part) as (directory, problem):
        assert (directory / "part").read_text() == "content"
        assert problem is None
    assert not directory.exists()
    assert "converted at each start" in caplog.text


def test_the_longest_unused_conversions_are_deleted(own_cache):
    for number in range(MAX_KEPT + 1):
        with conversion(f"tower-{number}", write_part):
            pass
        with conversion("tower-0", write_part):  # used all the time
            pass
    assert {path.name for path in own_cache.iterdir()} == {
        "lock", "tower-0", *(f"tower-{number}" for number in range(2, MAX_KEPT + 1)),
    }  # fmt: skip


def test_weights_that_change_move_or_are_copied_are_computed_by_pytorch(model_directory):
    def loaded() -> XClip:
        return XClip.load(model_directory, "cpu", "openvino")

    by_pytorch = {"text": "torch", "vision": "torch"}
    assert loaded().eval().runtimes == {"text": None, "vision": None}
    assert loaded().train().eval().runtimes == by_pytorch
    assert loaded().to(torch.float64).runtimes == by_pytorch
    network = loaded()
    network.encode_text(TEXTS)
    assert copy.deepcopy(network).runtimes == by_pytorch
    weights = {name: tensor + 0.01 for name, tensor in network.state_dict().items()}
    before = network.fingerprint
    network.load_state_dict(weights)
    assert network.runtimes == by_pytorch
    assert network.fingerprint != before


def test_threads_that_begin_together_get_what_each_would_get_alone(model_directory):
    network = XClip.load(model_directory, "cpu", "openvino")
    texts = [[text] * (1 + number % 3) for number, text in enumerate(TEXTS * 8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda some: network.encode_text(some).words, texts))
    for some, words in zip(texts, together, strict=True):
        assert torch.equal(words, network.encode_text(some).words)


def test_no_text_and_no_gradient_is_asked_of_openvino(model_directory):
    network = XClip.load(model_directory, "cpu", "openvino")
    assert network.encode_text([]).sentence.shape == (0, network.config.embedding_dim)
    pixels, mask = pixels_of(network)
    assert not network.encode_video(pixels.requires_grad_(), mask).frames.requires_grad
