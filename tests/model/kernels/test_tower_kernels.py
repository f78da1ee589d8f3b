"""CLIP's towers by their kernel: PyTorch's features, for every text and frame alone and among others."""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import model.runtimes.converted
import model.xclip
from model import XClip
from model.kernels import threads
from model.kernels.processor import has_instructions
from model.kernels.threads import at_work, helped
from model.runtimes.tower import FRAME_TOLERANCE, TEXT_TOLERANCE, text_to_convert, vision_to_convert
from model.towers import encode_positions, text_tower
from tests.support.small_architectures import FAMILIES, small_architectures

pytest.importorskip("numba")
if not has_instructions():
    pytest.skip("the kernel is not for this processor", allow_module_level=True)

from model.kernels.numba_transformer import Sequences, encode, new_scratch
from model.kernels.stages import dissolve, new_team
from model.kernels.vectors import SOURCE
from model.runtimes.tower_kernels import MAX_PATCHES, MAX_TOKENS, TextKernel, VisionKernel

WITHIN_SECONDS = 30.0
TEXTS = ["A red dog runs on the beach!", "two cats", "ein Hund läuft", "", "a " * 80]
WITHOUT_TEXT_KERNEL = {
    *("siglip", "siglip2", "siglip-i18n", "mobileclip2", "clipa", "coca"),
    *("coca-roberta", "roberta", "xlm-roberta", "mt5", "nllb"),
}
"""Families whose text towers read padding, append a position or are of transformers."""

WITH_VISION_KERNEL = {
    *("dfn", "clipa", "metaclip2", "coca", "coca-roberta", "roberta", "xlm-roberta", "mt5"),
}
"""Families whose vision towers are open_clip's own transformers."""


@pytest.fixture
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network(model_directory) -> XClip:
    return XClip.load(model_directory, "cpu", "torch")


def text_kernel(network: XClip) -> TextKernel | None:
    made = text_to_convert(network.clip, network.config, network.tokenizer).kernel
    assert made is not None
    return made()


def vision_kernel(network: XClip) -> VisionKernel | None:
    made = vision_to_convert(network.clip, network.config).kernel
    assert made is not None
    return made()


def pictures(network: XClip, count: int) -> Tensor:
    size = network.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def distance(found: Tensor, expected: Tensor) -> float:
    found, expected = (functional.normalize(x.detach().double(), dim=-1) for x in (found, expected))
    return float((found - expected).norm(dim=-1).max())


def assert_texts_as_pytorch(network: XClip, ids: Tensor, tolerance: float = 5e-4) -> None:
    kernel = text_kernel(network)
    assert kernel is not None
    double = copy.deepcopy(network).double()
    expected = encode_positions(text_tower(double.clip), network.config.architecture, ids)
    for ours, theirs in zip(kernel(ids), expected, strict=True):
        is_read = ours.any(dim=-1)
        assert ours.shape == theirs.shape and is_read.sum() >= len(ids)
        assert distance(ours[is_read], theirs[is_read]) <= tolerance


@torch.no_grad()
def assert_frames_as_pytorch(network: XClip, pixels: Tensor, tolerance: float = FRAME_TOLERANCE) -> None:
    kernel = vision_kernel(network)
    assert kernel is not None
    (found,) = kernel(pixels)
    expected = copy.deepcopy(network.clip.visual).double()(pixels.double())
    assert found.shape == expected.shape
    assert distance(found, expected) <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_clips_kind_has_the_features_of_pytorch_and_no_other_has_a_kernel(family, tmp_path):
    with small_architectures(tmp_path, [family]):
        network = XClip.load(f"openclip:small-{family}/random?seed=4", "cpu", "torch")
        if family in WITHOUT_TEXT_KERNEL:
            assert text_kernel(network) is None
        else:
            assert_texts_as_pytorch(network, network.tokenize(TEXTS))
        if family in WITH_VISION_KERNEL:
            assert_frames_as_pytorch(network, pictures(network, 3))
        else:
            assert vision_kernel(network) is None


@pytest.mark.parametrize("factor", [0.1, 3.0])
@pytest.mark.parametrize("activation", [nn.GELU, "quick"])
def test_small_and_large_activations_and_logits_are_those_of_pytorch(network, factor, activation):
    from open_clip.transformer import LayerScale, QuickGELU

    torch.manual_seed(0)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for block in (
            *text_tower(changed.clip).transformer.resblocks,
            *changed.clip.visual.transformer.resblocks,
        ):
            block.mlp.gelu = QuickGELU() if activation == "quick" else activation()
            block.mlp.c_fc.weight.mul_(factor)
            block.attn.in_proj_weight.mul_(factor)
            for norm in (block.ln_1, block.ln_2):  # Not ones and zeros, as they are at first.
                norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
                norm.bias.copy_(torch.randn_like(norm.bias) / 4)
            block.ls_1, block.ls_2 = (LayerScale(len(block.ln_1.weight), 0.7) for _ in range(2))
            block.ls_2.gamma.mul_(torch.linspace(-1, 1, len(block.ls_2.gamma)))
    tolerance = 2e-3 if factor > 1 else 5e-4
    assert_texts_as_pytorch(changed, changed.tokenize(TEXTS), tolerance)
    assert_frames_as_pytorch(changed, pictures(changed, 3), tolerance)


def test_a_text_has_the_same_features_to_the_bit_alone_among_others_and_on_any_number_of_threads(
    network, num_threads
):
    kernel = text_kernel(network)
    ids = network.tokenize(TEXTS * (1 + MAX_TOKENS // 20))
    torch.set_num_threads(1)
    alone_each = [kernel(row[None]) for row in ids]
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        for _ in range(10):
            sentences, positions = kernel(ids)
            assert torch.equal(sentences, torch.cat([one[0] for one in alone_each]))
            assert torch.equal(positions, torch.cat([one[1] for one in alone_each]))


def test_a_frame_has_the_same_features_to_the_bit_alone_among_others_and_on_any_number_of_threads(
    network, num_threads
):
    kernel = vision_kernel(network)
    num_patches = 1 + (network.config.image_size // network.config.clip["vision_cfg"]["patch_size"]) ** 2
    pixels = pictures(network, 5).repeat(2 + MAX_PATCHES // num_patches // 5, 1, 1, 1)
    with torch.inference_mode():
        torch.set_num_threads(1)
        alone_each = torch.cat(
            [kernel._tower.transformer(x) for x in kernel._tower._embeds(pixels)[:5, None]]
        )
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found = kernel._tower.transformer(kernel._tower._embeds(pixels))
            assert torch.equal(found[:5], alone_each)
            assert torch.equal(found, alone_each.repeat(len(found) // 5, 1, 1))


def test_padding_is_computed_where_the_model_reads_it_and_nowhere_else(network):
    ids = network.tokenize(TEXTS)
    mask = network.tokenizer.mask(ids)
    text, architecture = text_tower(network.clip), network.config.architecture
    skipping, reading = (TextKernel(text, architecture, network.tokenizer, skips) for skips in (True, False))
    expected = encode_positions(text, architecture, ids)[1]
    assert torch.equal(skipping(ids)[1][mask], reading(ids)[1][mask])
    assert not skipping(ids)[1][~mask].any()
    assert distance(reading(ids)[1], expected) <= TEXT_TOLERANCE
    assert torch.equal(skipping(ids)[0], reading(ids)[0])


def test_texts_that_begin_differently_do_not_take_each_others_first_token(network):
    ids = network.tokenize(TEXTS)
    ids[1, 0], ids[3, 0] = 7, 9
    assert_texts_as_pytorch(network, ids)


def test_a_model_computes_both_towers_by_the_kernel(model_directory, monkeypatch):
    monkeypatch.setattr(model.xclip, "MIN_PARAMETERS", 1)
    ours, reference = XClip.load(model_directory, "cpu"), XClip.load(model_directory, "cpu", "torch")
    assert ours.fingerprint == reference.fingerprint
    for texts in (TEXTS, TEXTS[1:2], []):
        found, expected = ours.encode_text(texts), reference.encode_text(texts)
        assert torch.equal(found.word_mask, expected.word_mask)
        assert torch.allclose(found.sentence, expected.sentence, atol=TEXT_TOLERANCE)
        assert torch.allclose(found.words, expected.words, atol=TEXT_TOLERANCE)
    assert ours.runtimes == {"text": "numba", "vision": None}
    num_frames = ours.config.num_frames
    pixels = pictures(ours, 2 * num_frames).unflatten(0, (2, num_frames))
    mask = torch.arange(num_frames).expand(2, -1) < 3
    found, expected = (one.encode_video(pixels, mask) for one in (ours, reference))
    assert torch.allclose(found.frames, expected.frames, atol=FRAME_TOLERANCE)
    assert torch.allclose(found.video, expected.video, atol=FRAME_TOLERANCE)
    assert ours.runtimes == {"text": "numba", "vision": "numba"}


@pytest.mark.parametrize("problem", ["without Numba", "a kernel that is wrong", "a kernel that fails"])
def test_without_the_kernel_the_tower_is_openvinos(problem, model_directory, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(model.xclip, "MIN_PARAMETERS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = XClip.load(model_directory, "cpu", "torch")
    if problem == "without Numba":
        real = model.runtimes.converted.find_spec
        monkeypatch.setattr(
            model.runtimes.converted, "find_spec", lambda name: None if name == "numba" else real(name)
        )
        monkeypatch.setitem(sys.modules, "llvmlite.binding", None)  # It comes with Numba.
    elif problem == "a kernel that fails":
        monkeypatch.setattr(TextKernel, "every_position", lambda *arguments: 1 / 0)
    else:
        right = TextKernel.every_position
        monkeypatch.setattr(
            TextKernel, "every_position", lambda *inputs: tuple(x * float("nan") for x in right(*inputs))
        )
    network._use_runtime("auto")
    with caplog.at_level(logging.WARNING):
        network.encode_text(TEXTS)
    messages = [record.message for record in caplog.records if "goes without its kernel" in record.message]
    assert network.runtimes["text"] == "openvino"
    if problem == "without Numba":
        assert not messages
    elif problem == "a kernel that fails":
        assert messages == ["the text tower goes without its kernel: ZeroDivisionError: division by zero"]
    else:
        assert "computes other features: unit vectors nan apart" in messages[0]


# Threads that help


def test_helpers_that_come_late_take_part_or_find_nothing_to_do(network, num_threads, monkeypatch):
    class Late(ThreadPoolExecutor):
        def submit(self, function, *arguments):
            def later():
                started.set()
                assert go.wait(WITHIN_SECONDS)
                return function(*arguments)

            future = super().submit(later)
            assert started.wait(WITHIN_SECONDS)  # It is under way, and cannot be cancelled.
            futures.append(future)
            return future

    kernel, ids = text_kernel(network), network.tokenize(TEXTS)
    torch.set_num_threads(1)
    expected = kernel(ids)
    torch.set_num_threads(2)
    started, go, futures = threading.Event(), threading.Event(), []
    late = Late(4)
    monkeypatch.setattr(threads, "_threads", lambda: late)
    for found, features in zip(kernel(ids), expected, strict=True):
        assert torch.equal(found, features)
    assert futures and not futures[0].done()
    go.set()
    assert futures[0].result(WITHIN_SECONDS) is None


def test_a_helper_leaves_where_the_kernel_was_not_called_in_the_end(network):
    transformer, team = text_kernel(network)._transformer, new_team()
    nothing = np.empty(0, np.float32)
    sequences = Sequences(nothing, np.zeros(1, np.int64), True, nothing, nothing)
    scratch = new_scratch(transformer.shape, [1], 2)
    given = (team, sequences, transformer._weights, transformer.shape, scratch)
    helper = threading.Thread(target=partial(encode, True, *given))
    helper.start()
    helper.join(0.05)
    assert helper.is_alive()
    dissolve(team)
    helper.join(WITHIN_SECONDS)
    assert not helper.is_alive()


def test_a_thread_is_helped_where_no_other_has_work():
    def work() -> bool:
        with at_work(), at_work():  # Counted once.
            begun.wait()
            found = is_helped()
            ended.wait()
            return found

    def is_helped() -> bool:
        done = threading.Event()
        with helped(done.set, 2):
            return done.wait(0.5)

    for number in (1, 2):
        begun, ended = threading.Barrier(number), threading.Barrier(number)
        with ThreadPoolExecutor(number) as pool:
            found = [pool.submit(work) for _ in range(number)]
            assert [one.result(WITHIN_SECONDS) for one in found] == [number == 1] * number
    assert is_helped()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are not told apart here")
def test_help_comes_from_another_processor_where_there_is_one_and_may_go_anywhere_then(monkeypatch):
    allowed, asked, while_helping = os.sched_getaffinity(0), [], []
    first = min(allowed)
    monkeypatch.setattr(threads, "_processor", lambda: first)
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, processors: asked.append(processors))
    threads._elsewhere(lambda: while_helping.append(list(asked)), first)
    assert while_helping == ([[allowed - {first}, allowed]] if len(allowed) > 1 else [[]])
    threads._elsewhere(lambda: None, first + 1)
    threads._elsewhere(lambda: None, None)
    assert asked == while_helping[0]


def test_a_kernel_is_compiled_again_when_a_file_of_kernels_has_changed():
    values = [cell.cell_contents for cell in encode.py_func.__closure__]
    assert SOURCE in values  # Numba puts them into the key of what it has compiled.
    assert len(SOURCE) == 64 and Path(encode.py_func.__code__.co_filename).parent.name == "kernels"
