from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model import XClip, XClipConfig
from model.tokenization import vocabulary_of
from training.config import ModelChoices
from training.errors import ConfigError
from training.loop.preparation import is_plain_clip, starting_model
from training.scorers import SCORERS

WORDS = ["red", "dog", "blue", "a"]
TEXTS = ["a red dog", "a blue dog"]


def saved(directory, **changes) -> str:
    config = XClipConfig.tiny(vocabulary=vocabulary_of(WORDS), **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        XClip(config).save(directory)
    return str(directory)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("clip"), temporal_layers=0, num_words=20, num_frames=5)


def choices(start: str, **changes) -> ModelChoices:
    return ModelChoices(start, **{"num_words": 12, "num_frames": 3, "temporal_layers": 2, **changes})


def test_from_clip_the_towers_stay_and_what_is_above_them_begins_as_in_official_training(clip):
    start = starting_model(choices(clip), TEXTS, device="cpu")
    model, source = start.model, XClip.load(clip, "cpu")
    assert start.notes == ()
    assert start.fixed_parameters == frozenset()
    config = model.config
    assert (config.num_words, config.num_frames, config.temporal_layers, config.mask_padding) == (
        12, 3, 2, False,
    )  # fmt: skip
    for name, weight in source.clip.state_dict().items():
        assert torch.equal(model.clip.state_dict()[name], weight), name
    assert model.temporal is not None
    assert torch.equal(model.temporal.frame_position_embeddings.weight, source.clip.positional_embedding)
    for ours, theirs in zip(model.temporal.resblocks, source.clip.transformer.resblocks, strict=True):
        for name, weight in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], weight), name
    for matrix in model.matrices.parameters():
        assert torch.equal(matrix, torch.eye(len(matrix)))


def test_a_clip_whose_text_tower_does_not_fit_gets_a_random_temporal_transformer_and_a_note(tmp_path):
    config = XClipConfig.tiny(temporal_layers=0, vocabulary=vocabulary_of(WORDS))
    text_cfg = {**config.clip["text_cfg"], "width": 48, "heads": 3}
    wide = saved(tmp_path / "wide", temporal_layers=0, clip={**config.clip, "text_cfg": text_cfg})
    first = starting_model(choices(wide), TEXTS, seed=3, device="cpu")
    assert any("starts at random" in note for note in first.notes)
    again = starting_model(choices(wide), TEXTS, seed=3, device="cpu")
    other = starting_model(choices(wide), TEXTS, seed=4, device="cpu")
    weights = [start.model.temporal.state_dict() for start in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_checkpoint_of_the_same_sizes_keeps_every_weight(tmp_path):
    trained = starting_model(choices(saved(tmp_path / "clip", temporal_layers=0)), TEXTS, device="cpu").model
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    trained.save(tmp_path / "trained")
    model = starting_model(choices(str(tmp_path / "trained")), TEXTS, device="cpu").model
    for name, weight in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    # Choices that have no size are the config's.
    masked = starting_model(
        choices(str(tmp_path / "trained"), mask_padding=True, temperature=0.1), TEXTS, device="cpu"
    ).model
    assert masked.config.mask_padding
    assert masked.config.temperature == 0.1


@pytest.mark.parametrize("changes", [{"num_words": 13}, {"num_frames": 4}, {"temporal_layers": 1}])
def test_a_checkpoint_of_other_sizes_is_refused_by_the_field(tmp_path, changes):
    start = saved(tmp_path / "trained", num_words=12, num_frames=3, temporal_layers=2)
    with pytest.raises(
        ConfigError, match=rf"\[model\]\.{next(iter(changes))}: the checkpoint .* does not fit"
    ):
        starting_model(choices(start, **changes), TEXTS, device="cpu")


def test_plain_clip_is_towers_without_anything_learned_above_them(clip, tmp_path):
    assert is_plain_clip(XClip.load(clip, "cpu"))
    model = XClip.load(clip, "cpu")
    with torch.no_grad():
        model.matrices.global_matrix[0, 1] = 0.5
    assert not is_plain_clip(model)
    assert not is_plain_clip(XClip.load(saved(tmp_path / "temporal"), "cpu"))


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_can_be_started(clip, name):
    start = starting_model(choices(clip, scorer=name), TEXTS, device="cpu")
    scorer = SCORERS[name]
    has_temporal = scorer.temporal is not False
    assert (start.model.temporal is not None) == has_temporal
    assert {f"matrices.{matrix}" for matrix in scorer.identity} <= set(start.fixed_parameters)
    if name == "taco":
        weights = start.model.word_weights
        ids = start.model.tokenize(["red dog"])[0]
        assert weights[ids[1]] > weights[ids[2]]  # The rarer word counts more.


def test_a_scorer_is_refused_where_the_config_contradicts_it(clip):
    with pytest.raises(ConfigError, match="clip4clip-seqTransf has a temporal transformer"):
        starting_model(choices(clip, scorer="clip4clip-seqTransf", temporal_layers=0), TEXTS, device="cpu")
    with pytest.raises(ConfigError, match="unknown scorer 'x-clip'"):
        starting_model(replace(choices(clip), scorer="x-clip"), TEXTS, device="cpu")


@pytest.mark.slow
def test_real_architectures_start_from_open_clip():
    choices = ModelChoices("openclip:ViT-B-32-quickgelu/random?seed=0", num_words=64, num_frames=64)
    start = starting_model(choices, TEXTS, device="cpu")
    assert start.notes == ()
    assert sum(parameter.numel() for parameter in start.model.parameters()) == 164_454_065 + 3 * (
        64 * 64 - 32 * 32
    ) + 3 * (64 * 64 - 12 * 12)
