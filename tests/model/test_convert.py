"""Between the official checkpoint layout and ours: nothing is lost, and what one cannot hold is refused."""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import model.checkpoints.official
import xclip_search
from model import CheckpointError, XClip, XClipConfig
from model.checkpoints.loading import layout_of
from model.checkpoints.official import differences, to_official
from tests.support.training_runs.b32_drawing import b32_tensors

GOLDENS = Path(__file__).parents[1] / "goldens"
OFFICIAL_DTYPES = {
    name: getattr(torch, dtype)
    for name, dtype in json.loads((GOLDENS / "tiny_config.json").read_text())[
        "official_checkpoint_dtypes"
    ].items()
}

CLIP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 300, "width": 64, "heads": 1, "layers": 2},
    "quick_gelu": True,
}


def official_checkpoint() -> dict[str, Tensor]:
    """The golden tensors as a real checkpoint holds them: its order, half precision where it has it."""
    tensors = load_file(GOLDENS / "tiny_model.safetensors")
    return {name: tensors[name].to(dtype) for name, dtype in OFFICIAL_DTYPES.items()}


def trainable(**changes: object) -> XClip:
    """A small network as training makes one from CLIP's weights, all values random float32."""
    choices = {"num_words": 8, "num_frames": 3, "temporal_layers": 1, "mask_padding": False, **changes}
    torch.manual_seed(4)
    network = XClip(XClipConfig(**{"clip": CLIP, **choices})).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return network


def convert(*arguments: object) -> tuple[int, str]:
    """Exit status, and all that was printed."""
    result = CliRunner().invoke(xclip_search.app, ["convert", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert tensor.shape == other[name].shape, name
        assert tensor.numpy().tobytes() == other[name].numpy().tobytes(), name


# Round trips


def test_an_official_checkpoint_comes_back_the_same_through_our_layout(tmp_path):
    before = official_checkpoint()
    torch.save(before, tmp_path / "pytorch_model.bin.4")
    assert convert(tmp_path / "pytorch_model.bin.4", tmp_path / "ours")[0] == 0
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    status, output = convert(tmp_path / "ours", tmp_path / "again.bin")
    assert status == 0, output
    assert "35 tensors in float16, 60 in float32" in output
    after = torch.load(tmp_path / "again.bin", weights_only=True)
    assert type(after) is dict
    assert list(after) == list(OFFICIAL_DTYPES)
    assert_same_bits(after, before)


@pytest.mark.parametrize("name", ["pytorch_model.bin.0", "model.bin", "model.safetensors"])
def test_our_model_comes_back_the_same_through_the_official_layout(tmp_path, name):
    ours = trainable()
    ours.save(tmp_path / "ours")
    status, output = convert(tmp_path / "ours", tmp_path / name)
    assert status == 0, output
    assert f"fingerprint {ours.fingerprint}" in output
    assert "refused with the other" not in output
    assert convert(tmp_path / name, tmp_path / "again")[0] == 0
    again = XClip.load(tmp_path / "again", device="cpu")
    assert_same_bits(dict(again.state_dict()), dict(ours.state_dict()))
    assert again.fingerprint == ours.fingerprint
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "ours" / file).read_bytes()


def test_a_model_without_temporal_transformer_goes_through_the_official_layout_too(tmp_path):
    ours = trainable(temporal_layers=0)
    ours.save(tmp_path / "ours")
    status, output = convert(tmp_path / "ours", tmp_path / "model.bin")
    assert status == 0, output
    assert "--sim_header meanP" in output
    assert XClip.load(tmp_path / "model.bin", device="cpu").fingerprint == ours.fingerprint


def test_a_config_spelled_differently_gives_the_same_scores_and_the_other_fingerprint_is_reported(tmp_path):
    plain = trainable()
    clip = {**plain.config.clip, "vision_cfg": {**plain.config.clip["vision_cfg"], "head_width": 64}}
    spelled = XClip(replace(plain.config, clip=clip)).eval()
    spelled.load_state_dict(plain.state_dict())
    spelled.save(tmp_path / "ours")
    status, output = convert(tmp_path / "ours", tmp_path / "model.bin")
    assert status == 0
    assert f"the source's is {spelled.fingerprint}" in output
    assert XClip.load(tmp_path / "model.bin", device="cpu").fingerprint == plain.fingerprint


# Precision


def test_one_value_that_float16_cannot_hold_makes_the_whole_file_float32():
    network = XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu")
    assert to_official(network.config, network.state_dict()).num_half == 35
    name = "clip.visual.transformer.resblocks.1.mlp.c_fc.weight"
    with torch.no_grad():
        network.clip.visual.transformer.resblocks[1].mlp.c_fc.weight[2, 3] = 0.1
    official = to_official(network.config, network.state_dict())
    assert official.num_half == 0
    assert official.lossy == (name,)
    assert {tensor.dtype for tensor in official.tensors.values()} == {torch.float32}
    rounded = to_official(network.config, network.state_dict(), "float16")
    assert {each: tensor.dtype for each, tensor in rounded.tensors.items()} == OFFICIAL_DTYPES
    assert rounded.tensors[name][2, 3] == torch.tensor(0.1).half()


def test_the_precision_that_was_chosen_is_said(tmp_path):
    trainable().save(tmp_path / "ours")
    auto = convert(tmp_path / "ours", tmp_path / "auto.bin")[1]
    assert "0 tensors in float16" in auto
    assert "float32 throughout: float16 would round" in auto
    half = convert(tmp_path / "ours", tmp_path / "half.bin", "--dtype", "float16")[1]
    assert "were rounded to float16" in half
    assert "refused with the other" in half
    assert torch.load(tmp_path / "half.bin", weights_only=True)["clip.visual.proj"].dtype == torch.float16
    torch.save(official_checkpoint(), tmp_path / "mixed.bin")
    assert "0 tensors in float16, 95" in convert(
        tmp_path / "mixed.bin", tmp_path / "single.bin", "--to", "official", "--dtype", "float32"
    )[1]  # fmt: skip


def test_a_value_beyond_the_range_of_float16_is_not_made_infinite(tmp_path):
    network = trainable()
    with torch.no_grad():
        network.clip.text_projection[0, 0] = 1e6
    network.save(tmp_path / "ours")
    status, output = convert(tmp_path / "ours", tmp_path / "model.bin", "--dtype", "float16")
    assert status == 1
    assert "tensor clip.text_projection has values beyond the range of float16" in output
    assert not (tmp_path / "model.bin").exists()


# What the official layout cannot represent


def vision(**changes: object) -> dict[str, object]:
    return {"clip": {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], **changes}}}


def text(**changes: object) -> dict[str, object]:
    return {"clip": {**CLIP, "text_cfg": {**CLIP["text_cfg"], **changes}}}


REFUSED = {
    "padding masked": ({"mask_padding": True}, "padding takes no part"),
    "some scores": ({"score_names": ("video_sentence", "frame_word")}, "only some of the four scores"),
    "own vocabulary": ({"vocabulary": tuple(range(200))}, "vocabulary of its own"),
    "other means": ({"pixel_mean": (0.5, 0.5, 0.5)}, "other channel means"),
    "other standard deviations": ({"pixel_deviation": (0.5, 0.5, 0.5)}, "other channel standard deviations"),
    "aggregation": ({"aggregation": "max-max"}, "aggregated by something else than attention"),
    "temperature": ({"temperature": 0.02}, "another temperature"),
    "one side": ({"frame_word_sides": "words"}, "the side of the words alone"),
    "gelu": ({"clip": {**CLIP, "quick_gelu": False}}, "QuickGELU"),
    "vision heads": (vision(head_width=32), "the vision tower has 2 heads, in the official code width // 64"),
    "text heads": (text(heads=2), "the text tower has 2 heads, in the official code width // 64 = 1"),
    "text width": (text(width=128, heads=2), "the temporal transformer has width 64"),
    "epsilon": (vision(norm_kwargs={"eps": 1e-6}), "vision tower has norm_kwargs {'eps': 1e-06}"),
    "average pooling": (vision(pool_type="avg"), "vision tower has pool_type 'avg'"),
    "norm after pooling": (vision(final_ln_after_pool=True), "vision tower has final_ln_after_pool True"),
    "layer scale": (text(ls_init_value=0.1), "text tower has ls_init_value 0.1"),
    "narrow blocks": (text(mlp_ratio=2.0), "text tower has mlp_ratio 2.0"),
    "cut frames": (vision(image_size=40), "frames of 40 pixels in patches of 16"),
    "too long": ({"num_words": 70, "num_frames": 64}, "70 words and 64 frames are more than 128 in all"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_the_official_code_would_score_differently_is_refused(case, tmp_path):
    changes, reason = REFUSED[case]
    trainable(**changes).save(tmp_path / "ours")
    status, output = convert(tmp_path / "ours", tmp_path / "model.bin")
    assert status == 1
    assert "the official layout cannot represent this model" in output.replace("\n", " ")
    assert reason in output.replace("\n", " ")
    assert not (tmp_path / "model.bin").exists()


def test_every_reason_is_named_together():
    config = replace(trainable().config, mask_padding=True, pixel_mean=(0.0, 0.0, 0.0), temperature=1.0)
    assert len(differences(config)) == 3


def test_what_changes_no_score_is_no_difference():
    config = trainable(**vision(patch_dropout=0.5, head_width=64)).config
    config = replace(config, description="mine", score_names=tuple(reversed(config.score_names)))
    assert differences(config) == []


@dataclass(frozen=True)
class NewerConfig(XClipConfig):
    """A config as a later version may have it."""

    loudness: float = 1.0


def test_a_choice_that_conversion_does_not_know_is_a_difference_unless_it_is_the_default():
    config = trainable().config
    known = {field.name: getattr(config, field.name) for field in fields(config)}
    assert differences(NewerConfig(**known)) == []
    assert differences(NewerConfig(**known, loudness=2.0)) == ["loudness is 2.0, in the official code 1.0"]


def test_a_tensor_without_a_counterpart_is_never_left_out_silently():
    network = trainable()
    network.register_buffer("loudness", torch.ones(3))
    with pytest.raises(CheckpointError, match="loudness has no counterpart in the official layout"):
        to_official(network.config, network.state_dict())


# What official files look like


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in official_checkpoint().items()}


def compiled_within(name: str) -> str:
    """As where the towers were compiled, sharded or given to DistributedDataParallel by themselves."""
    for before, after in (("clip.", "clip._orig_mod."), ("transformerClip.", "transformerClip.module.")):
        name = after + name.removeprefix(before) if name.startswith(before) else name
    return name.replace("resblocks.0.", "resblocks.0._checkpoint_wrapped_module.")


def state_dict_of_torch() -> OrderedDict[str, Tensor]:
    ordered = OrderedDict(official_checkpoint())
    ordered._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return ordered


WRAPPED: dict[str, Callable[[], object]] = {
    "plain": official_checkpoint,
    "a state dict of torch": state_dict_of_torch,
    "parameters": lambda: {n: torch.nn.Parameter(t) for n, t in official_checkpoint().items()},
    "DistributedDataParallel": lambda: prefixed("module."),
    "torch.compile": lambda: prefixed("_orig_mod."),
    "torch.compile of DistributedDataParallel": lambda: prefixed("_orig_mod.module."),
    "parts that were compiled": lambda: {compiled_within(n): t for n, t in official_checkpoint().items()},
    "AveragedModel": lambda: {"n_averaged": torch.tensor(9), **prefixed("module.")},
    "a training checkpoint": lambda: {"epoch": 3, "model_state_dict": official_checkpoint(), "loss": 0.25},
    "a parallel training checkpoint": lambda: {
        "epoch": 3,
        "state_dict": prefixed("module."),
        "optimizer": {"state": {}},
    },
    "Lightning": lambda: {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed("model."),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(41.5)}},
        "hyper_parameters": {"lr": 1e-4},
    },
    "a key model, and the options": lambda: {
        "model": official_checkpoint(),
        "optimizer": {"state": {}},
        "args": argparse.Namespace(lr=1e-4, output_dir="runs"),
    },
    "DeepSpeed": lambda: {"module": official_checkpoint(), "ds_version": "0.15"},
    "averaged weights alone": lambda: {"epoch": 2, "model_ema": {"module": prefixed("module.")}},
    "averaged weights as well": lambda: {
        "model_ema": {n: torch.zeros_like(t) for n, t in official_checkpoint().items()},
        "model": official_checkpoint(),
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_the_wrappings_of_real_checkpoints_are_seen_through(kind, zipped, tmp_path):
    path = tmp_path / "didemo_xclip_model.bin"
    torch.save(WRAPPED[kind](), path, _use_new_zipfile_serialization=zipped)
    plain = XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu")
    loaded = XClip.load(path, device="cpu")
    assert_same_bits(dict(loaded.state_dict()), dict(plain.state_dict()))
    assert loaded.fingerprint == plain.fingerprint


def without(name: str) -> dict[str, Tensor]:
    return {each: tensor for each, tensor in official_checkpoint().items() if each != name}


BROKEN = {
    "half of it parallel": (
        lambda: {**without("word_mat_weight2"), "module.word_mat_weight2": torch.eye(12)},
        "unexpected tensor module.word_mat_weight2",
    ),
    "a buffer of CLIP's archive": (
        lambda: {**official_checkpoint(), "clip.context_length": torch.tensor(77)},
        "unexpected tensor clip.context_length",
    ),
    "position ids": (
        lambda: {**official_checkpoint(), "clip.text_model.embeddings.position_ids": torch.arange(77)},
        "unexpected tensor clip.text_model.embeddings.position_ids",
    ),
    "the cross encoder of tightTransf": (
        lambda: {**official_checkpoint(), "similarity_dense.weight": torch.zeros(1, 64)},
        "unexpected tensor similarity_dense.weight",
    ),
    "3d patches": (
        lambda: {**official_checkpoint(), "clip.visual.conv2.weight": torch.zeros(64, 3, 3, 16, 16)},
        "unexpected tensor clip.visual.conv2.weight",
    ),
    "a missing layer": (
        lambda: {
            name: tensor
            for name, tensor in official_checkpoint().items()
            if not name.startswith("transformerClip.resblocks.0.")
        },
        r"missing tensor transformerClip\.resblocks\.0\.attn\.in_proj_weight",
    ),
    "a layer far away": (
        lambda: {**official_checkpoint(), "transformerClip.resblocks.999999999.ln_1.bias": torch.zeros(64)},
        r"missing tensor transformerClip\.resblocks\.2\.attn\.in_proj_weight",
    ),
    "one matrix missing": (
        lambda: without("word_mat_weight2"),
        "missing tensor word_mat_weight2",
    ),
    "two tensors of one name": (
        lambda: {**official_checkpoint(), "_orig_mod.word_mat_weight": torch.eye(12)},
        "two tensors are called word_mat_weight",
    ),
    "a Lightning module of two networks": (
        lambda: {"state_dict": {**prefixed("student."), "teacher.conv.weight": torch.zeros(1)}},
        r"the X-CLIP of this file lies below student, next to teacher: .* torch\.save",
    ),
    "double precision": (
        lambda: {**official_checkpoint(), "local_mat_weight": torch.eye(64).double()},
        "tensor local_mat_weight is torch.float64, expected float32, float16 or bfloat16",
    ),
    "too narrow for a head": (
        lambda: {**official_checkpoint(), "clip.positional_embedding": torch.zeros(77, 32)},
        "tensor clip.positional_embedding has width 32",
    ),
    "an optimizer's state": (
        lambda: {"epoch": 1, "optimizer_state_dict": {"state": {}, "param_groups": []}, "loss": 0.5},
        "is not a dictionary of tensors: 'epoch' holds int",
    ),
    "a list": (lambda: [torch.eye(2)], "holds list, not a dictionary of tensors"),
    "numbers of numpy": (
        lambda: {"model_state_dict": official_checkpoint(), "loss": np.float64(0.5)},
        r"read safely: it holds numpy\S*, which is no tensor; save the weights alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_any_other_file_is_an_error_that_names_what_is_wrong(case, tmp_path):
    make, message = BROKEN[case]
    torch.save(make(), tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=message):
        XClip.load(tmp_path / "model.bin", device="cpu")


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>Quota exceeded</html>", b"PK\x03\x04" + b"x" * 99]
)
def test_a_file_that_is_no_archive_is_one_plain_line(content, tmp_path):
    (tmp_path / "model.bin").write_bytes(content)
    status, output = convert(tmp_path / "model.bin", tmp_path / "ours")
    assert status == 1
    assert "model.bin is not a checkpoint that can be read safely" in output
    assert output.count("\n") == 1
    assert "weights_only" not in output


# Destinations


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("pytorch_model.bin", "official"),
        ("pytorch_model.bin.12", "official"),
        ("msrvtt-7k_xclip_model.bin", "official"),
        ("weights.safetensors", "official"),
        ("my-model", "ours"),
        ("my-model.v2", "ours"),
        ("model.pt", None),
        ("model.pth", None),
    ],
)
def test_the_layout_follows_from_the_name_where_it_is_clear(name, layout, tmp_path):
    assert layout_of(tmp_path / name) == layout


def test_an_unclear_destination_asks_for_the_layout(tmp_path):
    status, output = convert("demo", tmp_path / "model.pt")
    assert status == 2
    assert "say --to official or --to ours" in output
    assert convert("demo", tmp_path / "model.pt", "--to", "ours")[0] == 0
    assert (tmp_path / "model.pt" / "config.json").is_file()


def test_nothing_is_replaced_without_the_option(tmp_path):
    trainable().save(tmp_path / "ours")
    torch.save(official_checkpoint(), tmp_path / "model.bin")
    before = (tmp_path / "model.bin").read_bytes()
    for arguments in (
        (tmp_path / "ours", tmp_path / "model.bin"),
        (tmp_path / "model.bin", tmp_path / "ours"),
    ):
        status, output = convert(*arguments)
        assert status == 2
        assert "exists; --overwrite replaces it" in output.replace("\n", " ")
    assert (tmp_path / "model.bin").read_bytes() == before
    assert XClip.load(tmp_path / "ours", device="cpu").fingerprint == trainable().fingerprint
    assert convert(tmp_path / "model.bin", tmp_path / "ours", "--overwrite")[0] == 0
    plain = XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu")
    assert XClip.load(tmp_path / "ours", device="cpu").fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("demo", "here", "--to", "official"), "must be named"),
        (("demo", "absent/model.bin"), "there is no directory absent"),
        (("demo", "there", "--dtype", "float16"), "our layout is float32 always"),
        (("demo", "folder", "--to", "official"), "is a directory"),
        (("demo", "file.txt", "--to", "ours"), "is a file"),
        (("nothing-of-this-name", "there"), "names no model"),
        (("demo", "there", "--to", "theirs"), "theirs"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file.txt").write_text("mine")
    status, output = convert(*arguments)
    assert status == 2
    assert message in output
    assert Path("file.txt").read_text() == "mine"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    trainable().save(tmp_path / "ours")
    (tmp_path / "model.bin").write_bytes(b"old")

    def fail(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(model.checkpoints.official.torch, "save", fail)
    status, output = convert(tmp_path / "ours", tmp_path / "model.bin", "--overwrite")
    assert status == 1
    assert "cannot be written: PytorchStreamWriter failed" in output.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "ours"]
    assert (tmp_path / "model.bin").read_bytes() == b"old"


def test_a_save_that_is_interrupted_never_leaves_new_weights_under_an_old_config(tmp_path, monkeypatch):
    trainable().save(tmp_path)

    def interrupt(tensors: object, path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("model.checkpoints.loading.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainable(num_frames=5).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        XClip.load(tmp_path, device="cpu")


# True sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_words", "num_frames"), [(32, 12), (64, 64)], ids=["MSR-VTT", "DiDeMo, ActivityNet"]
)
def test_a_checkpoint_of_the_published_teachers_size_loads_and_comes_back(num_words, num_frames, tmp_path):
    """TeachCLIP's `{dataset}_xclip_model.bin`: ViT-B/32, 4 temporal layers (its configs/*.yaml)."""
    before = b32_tensors(num_words, num_frames)
    torch.save(before, tmp_path / "teacher_xclip_model.bin")
    loaded = XClip.load(tmp_path / "teacher_xclip_model.bin", device="cpu")
    assert (loaded.config.num_words, loaded.config.num_frames, loaded.config.embedding_dim) == (
        num_words,
        num_frames,
        512,
    )
    assert (loaded.config.image_size, loaded.config.temporal_layers) == (224, 4)
    words = loaded.encode_text(["a dog runs on the beach", "two people cook"])
    pixels = torch.randn(2, num_frames, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, num_frames, dtype=torch.bool)
    mask[:, :3] = True
    scores = loaded.score(words, loaded.encode_video(pixels, mask))
    assert bool(scores.total.isfinite().all())
    official = to_official(loaded.config, loaded.state_dict())
    assert list(official.tensors) == list(before)
    assert_same_bits(dict(official.tensors), before)
    save_file(dict(official.tensors), tmp_path / "teacher.safetensors")
    assert XClip.load(tmp_path / "teacher.safetensors", device="cpu").fingerprint == loaded.fingerprint
