"""X-CLIP on other towers than CLIP's: trained, saved, loaded, evaluated, indexed and searched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from open_clip import pretrained

from indexer.index import Index
from indexer.media.frame_reader import VideoFile
from model import XClip
from model.preprocessing import Resizing
from model.score_names import SCORE_NAMES
from model.towers import block_of
from tests.support.small_architectures import FAMILIES, small_architectures
from tests.support.training_runs.small_training import small_config, write_small_corpus
from training.config import ModelChoices
from training.data.batches import Batch
from training.data.frames import FrameReader
from training.data.splits import frame_recipe, load_splits
from training.errors import ConfigError
from training.evaluation.evaluation import evaluate_fully
from training.loop.events import Note
from training.loop.loss import loss_and_gradients
from training.loop.preparation import StartingModel, checkpoint_activations, freeze, starting_model
from training.loop.trainer import train

TEXTS = ["a red square with a slow bar", "fast bar blue"]
# Not MobileCLIP's FastViT: at these sizes its backward pass on a CPU was seen to write beyond its memory, in
# oneDNN; with the widths of the published models it was not. ConvNeXt and ResNet stand for convolutions.
BACKBONES = ["siglip2", "convnext", "resnet", "eva02", "coca", "metaclip2", "xlm-roberta", "mt5"]


@pytest.fixture(scope="module", autouse=True)
def _known(tmp_path_factory):
    directory = tmp_path_factory.mktemp("architectures")
    with small_architectures(directory, list(FAMILIES)), pytest.MonkeyPatch.context() as patch:
        published = pretrained._PRETRAINED["ViT-B-16-SigLIP2"]  # random weights take their way with pixels
        patch.setitem(pretrained._PRETRAINED, "small-siglip2", published)
        yield


def start_of(family: str, **changes) -> StartingModel:
    choices = {"num_words": 12, "num_frames": 3, "temporal_layers": 2, "mask_padding": True, **changes}
    return starting_model(
        ModelChoices(f"openclip:small-{family}/random?seed=2", **choices), TEXTS, device="cpu"
    )


def some_pairs(model: XClip) -> Batch:
    size = model.config.image_size
    pixels = np.random.default_rng(4).integers(0, 256, (2, 3, size, size, 3), np.uint8)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    pixels[1, 2] = 0
    pairs = torch.arange(2)
    return Batch(pairs, pairs, model.tokenize(TEXTS), mask, torch.from_numpy(pixels), None)


def test_a_siglip_is_trained_saved_loaded_evaluated_indexed_and_searched(tmp_path):
    corpus = write_small_corpus(tmp_path / "corpus")
    config = small_config(
        corpus, "openclip:small-siglip2/random?seed=1", "model.mask_padding=true", "training.epochs=2"
    )
    notes: list[str] = []
    result = train(
        config, tmp_path / "run", device="cpu",
        on_event=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
    )  # fmt: skip
    assert any("starts at random and changes nothing" in note for note in notes)
    assert any("logit_bias" in note for note in notes)
    assert all(math.isfinite(row["loss"]) for row in result.rows)

    model = XClip.load(result.best, "cpu")
    assert model.config.score_names == SCORE_NAMES
    assert (model.config.num_words, model.config.num_tokens) == (12, 64)
    assert model.config.resizing == Resizing(32, "squash", "bicubic")
    assert (result.best / "tokenizer").is_dir()
    split = load_splits(config).validation
    reader = FrameReader(frame_recipe(config, model.config.resizing))
    evaluation = evaluate_fully(model, split, reader)
    expected = max(row["validation"]["text_to_video"]["recall_at_1"] for row in result.rows)
    assert evaluation.rows[0].metrics.recall_at_1 == pytest.approx(expected)

    clip = corpus / "red_slow.mp4"
    with Index.create(tmp_path / "index", str(result.best)) as index:
        assert index.add_folder(corpus).num_added == 12
        answer = index.search("a red square with a slow bar", limit=3)
        stored = index.encode(clip).frames[0, 0]
    assert all(score is not None for score in answer.results[0].scores.values())
    first = next(VideoFile(clip).frames_at([0.0])).rgb
    pixels = model.normalize_pixels(Resizing(32, "squash")(first)[None, None]).expand(1, 3, -1, -1, -1)
    frames = model.encode_video(pixels, torch.tensor([[1, 0, 0]])).frames
    torch.testing.assert_close(stored, frames[0, 0], atol=1e-3, rtol=0)  # stored as float16


@pytest.mark.parametrize("family", BACKBONES)
def test_every_tower_learns_and_its_stem_and_first_blocks_can_be_frozen(family):
    start = start_of(family)
    model = start.model.train()
    statistics = {name: buffer.clone() for name, buffer in model.clip.named_buffers()}
    batch = some_pairs(model)
    assert math.isfinite(loss_and_gradients(model, batch))
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.clip.named_buffers())
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    for part in (
        "clip.visual.",
        "clip.text." if hasattr(model.clip, "text") else "clip.transformer.",
        "temporal.",
    ):
        assert any(name.startswith(part) for name in learning), part
    assert "clip.logit_bias" not in dict(model.named_parameters())

    stems = freeze(model, num_layers=0)
    one_block = freeze(model, num_layers=1)
    assert {name for name in stems if "visual" in name} and {name for name in stems if "visual" not in name}
    assert set(stems) < set(one_block)
    for tower in ("visual.", ""):
        numbers = {
            block_of(name)
            for name, _ in model.clip.named_parameters()
            if name.startswith("visual.") == bool(tower)
        }
        assert {-1, 0, 1, None} <= numbers, tower  # a stem, blocks, and what lies above them
    freeze(model, towers=["vision", "text"])
    assert all(not parameter.requires_grad for parameter in model.clip.visual.parameters())


@pytest.mark.parametrize("family", ["siglip2", "coca", "xlm-roberta"])
def test_what_training_starts_from_ranks_as_the_towers_do_without_it(family):
    zero_shot = XClip.load(f"openclip:small-{family}/random?seed=2", "cpu")
    model = start_of(family).model.eval()
    batch = some_pairs(model)
    pixels = model.normalize_pixels(batch.pixels)
    trained = model.encode_video(pixels, batch.frame_mask)
    mixed = model.temporal(trained.frames * 10, batch.frame_mask) / 20  # of the length that real towers give
    torch.testing.assert_close(mixed, trained.frames, atol=5e-3, rtol=0)
    torch.testing.assert_close(model.encode_text(TEXTS).sentence, zero_shot.encode_text(TEXTS).sentence)


@pytest.mark.parametrize("family", ["siglip2", "convnext", "xlm-roberta"])
def test_gradients_are_the_same_when_activations_are_computed_twice(family):
    model = start_of(family).model.eval().requires_grad_(True)
    model.training = model.matrices.training = True  # gradients, but no dropout and no random depth
    found = []
    for enabled in (False, True, False):
        checkpoint_activations(model, enabled)
        loss_and_gradients(model, some_pairs(model))
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    checkpoint_activations(model, enabled=False)


def test_words_are_weighed_by_their_frequency_with_any_tokenizer():
    model = start_of("siglip2", scorer="taco").model
    ids = model.tokenize(["red bar"])[0]
    # "bar" and the end token are in both texts, and so tell nothing.
    assert model.word_weights[ids[0]] > model.word_weights[ids[1]] == model.word_weights[ids[2]] == 0


def test_lengths_that_the_tower_does_not_have_are_refused_by_the_field():
    with pytest.raises(ConfigError, match=r"num_words 32 is not within 3\.\.16"):
        start_of("siglip", num_words=32)
    with pytest.raises(ConfigError, match="layers to freeze must be within -1 and 2"):
        freeze(start_of("siglip2").model, num_layers=3)
