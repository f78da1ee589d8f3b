"""The demo model: how it is trained, and what the checkpoint that ships can do."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import model
from model import Scores, XClip
from model.tokenization import Tokenizer
from training.demo_corpus.captions import (
    KIND_WORDS,
    NOTHING_SHOWN,
    claims_of,
    describe,
    describe_briefly,
    facts_of,
    named_by,
    names,
    plain_caption,
    satisfies,
    say,
    shown,
    true_of,
    vocabulary,
)
from training.demo_corpus.held_out import is_held_out, random_set, sibling_hard_set
from training.demo_corpus.scene import COLOURS, KINDS, Scene, scene_key, swapped_order
from training.demo_model import learning
from training.demo_model.evaluation import brief_table, encode_frames, named_right, recall, score_set, table
from training.demo_model.recipe import Recipe, Stage
from training.demo_model.training_set import (
    TrainingSet,
    draw_frames,
    draw_scenes,
    make_groups,
    make_training_set,
    put_in_unknown_words,
)
from training.loop.loss import contrastive_loss

SMALL = Recipe(
    vision={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    embedding_dim=32,
    text_width=32,
    text_layers=1,
    temporal_layers=1,
    num_groups=4,
    captions_per_video=2,
    brief_captions_per_video=2,
    pictures=Stage(num_steps=12, batch_size=32, num_captioned=16, learning_rate=3e-3),
    videos=Stage(num_steps=8, batch_size=8, num_captioned=4),
    alike=Stage(num_steps=8, batch_size=8, num_captioned=4, num_kinds=4),
)


def _training_set(recipe: Recipe) -> TrainingSet:
    scenes = [scene for group in make_groups(recipe) for scene in group]
    frames = draw_scenes(scenes, recipe.num_frames, recipe.image_size, num_processes=1)
    tokenizer = Tokenizer(32, recipe.model_config(sorted(vocabulary())).vocabulary)
    return make_training_set(recipe, scenes, frames, tokenizer)


@pytest.fixture(scope="module")
def small_set() -> TrainingSet:
    return _training_set(SMALL)


def test_training_scenes_are_never_held_out_and_never_twice():
    scenes = [scene for group in make_groups(replace(SMALL, num_groups=200)) for scene in group]
    assert not any(is_held_out(scene) for scene in scenes)
    assert len({scene_key(scene) for scene in scenes}) == len(scenes) == 800


def test_captions_and_scenes_as_numbers_say_what_descriptions_say():
    rng = random.Random(5)
    scenes = [scene for group in make_groups(replace(SMALL, num_groups=40)) for scene in group]
    for say_little in (describe_briefly, lambda scene, rng: describe(scene, rng, partial_share=0.7)):
        descriptions = [say_little(scene, rng) for scene in scenes]
        claims = np.array([claims_of(description) for description in descriptions])
        found = true_of(claims, np.array([facts_of(scene) for scene in scenes]))
        expected = np.array([[satisfies(one, scene) for scene in scenes] for one in descriptions])
        assert (found == expected).all()
        assert found.diagonal().all()
        assert found.sum() > len(scenes)


def test_every_thing_and_colour_has_a_name_which_is_true_of_the_frames_that_show_it():
    wordings, claims = zip(*names(), strict=True)
    assert len(set(wordings)) == len(wordings) == len(COLOURS) + len(KINDS) * (len(COLOURS) + 1)
    assert ("a plane", "a airplane") not in wordings and ("a plane", "an airplane") in wordings
    scenes = [scene for group in make_groups(replace(SMALL, num_groups=20)) for scene in group]
    facts = np.array([shown(scene, second) for scene in scenes for second in range(8)])
    found = named_by(np.array(claims), facts)
    for number, (kind, colour) in enumerate(facts.tolist()):
        true = {wordings[row][0] for row in np.flatnonzero(found[:, number])}
        if kind == NOTHING_SHOWN:
            assert not true
            continue
        word, said = KIND_WORDS[KINDS[kind]][0], COLOURS[colour]
        assert {text.split(" ", 1)[1] for text in true if "something" not in text} == {word, f"{said} {word}"}
        assert {text for text in true if "something" in text} == {f"something {said}"}
    assert (facts[:, 0] == NOTHING_SHOWN).any()


def test_each_true_pair_is_ranked_above_the_false_ones_of_its_row_and_column():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    one_to_one = torch.eye(5, dtype=torch.bool)
    assert torch.allclose(learning.ranking_loss(scores, one_to_one), contrastive_loss(scores))
    # Two videos that both satisfy a text do not compete: raising one costs the other nothing.
    true = torch.tensor([[True, True, False]])
    low, high = (learning.ranking_loss(torch.tensor([[5.0, other, 0.0]]), true) for other in (5.0, 50.0))
    assert high < low
    everything = torch.zeros(2, 2, requires_grad=True)
    learning.ranking_loss(everything, torch.ones(2, 2, dtype=torch.bool)).backward()
    assert (everything.grad == 0).all()


def test_the_training_set_is_the_same_for_the_same_seed(small_set):
    again = _training_set(SMALL)
    for name in ("frames", "frame_ids", "facts", "shown", "name_ids"):
        assert (getattr(again, name) == getattr(small_set, name)).all(), name
    for kind in ("full", "brief"):
        assert (getattr(again, kind).ids == getattr(small_set, kind).ids).all()


def test_every_word_of_every_caption_is_in_the_models_vocabulary(small_set):
    tokenizer = Tokenizer(32, SMALL.model_config(sorted(vocabulary())).vocabulary)
    rng = random.Random(0)
    captions = [say(describe(scene, rng), rng) for group in make_groups(SMALL) for scene in group]
    assert not (tokenizer(captions) == tokenizer.unknown_id).any()
    # Those that the training set holds were put in on purpose, in about the share that the recipe says.
    share = (small_set.frame_ids == tokenizer.unknown_id).any(axis=-1).mean()
    assert 0.05 < share < 0.25


def test_unknown_words_are_put_in_and_nothing_else_changes():
    tokenizer = Tokenizer(13, SMALL.model_config(sorted(vocabulary())).vocabulary)
    rows = tokenizer(["a red car spins, then it grows", "a cat", "nothing"]).numpy()
    changed = put_in_unknown_words(rows, tokenizer, 1.0, np.random.default_rng(3))
    for before, after in zip(rows.tolist(), changed.tolist(), strict=True):
        kept = [token for token in after if token != tokenizer.unknown_id]
        assert 1 <= after.count(tokenizer.unknown_id) <= 3
        assert kept == before[: len(kept)]
        assert after[0] == tokenizer.start_id
        assert max(after) == tokenizer.end_id
    full = tokenizer(["a red car spins then a blue boat grows and spins"]).numpy()
    assert (put_in_unknown_words(full, tokenizer, 1.0, np.random.default_rng(3)) == full).all()


def test_both_stages_learn_and_repeat_to_the_bit(small_set):
    def run() -> tuple[dict[str, list[float]], XClip]:
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True)
        losses: dict[str, list[float]] = {}
        model = XClip(SMALL.model_config(sorted(vocabulary()))).train()
        learning.start_softly(model, SMALL.matrix_identity)
        rng = np.random.default_rng(0)

        def on_step(stage: str, step: int, loss: float) -> None:
            losses.setdefault(stage, []).append(loss)

        for learn in (learning.learn_pictures, learning.learn_videos):
            learn(model, small_set, SMALL, rng, on_step)
        torch.use_deterministic_algorithms(False)
        return losses, model.eval()

    losses, model = run()
    assert {name: len(values) for name, values in losses.items()} == {"pictures": 12, "videos": 8}
    assert np.mean(losses["pictures"][-3:]) < losses["pictures"][0]
    again, same = run()
    assert again == losses
    assert same.fingerprint == model.fingerprint


def test_the_second_stage_leaves_the_vision_tower_alone(small_set):
    torch.manual_seed(0)
    model = XClip(SMALL.model_config(sorted(vocabulary()))).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learning.learn_videos(model, small_set, SMALL, np.random.default_rng(0), lambda *_: None)
    for name, tensor in model.state_dict().items():
        if name.startswith("clip.visual."):
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.matrices.word, before["matrices.word"])


@pytest.mark.parametrize(
    ("recipe", "num_held_out", "scale"),
    [
        pytest.param(SMALL, 10, "0.2", id="small"),
        pytest.param(
            Recipe(),
            500,
            "0.001",
            marks=[pytest.mark.slow, pytest.mark.timeout(600)],
            id="the demo model's",
        ),
    ],
)
def test_a_training_that_was_stopped_goes_on_after_its_last_finished_part(
    recipe, num_held_out, scale, tmp_path, monkeypatch
):
    from typer.testing import CliRunner

    from training.demo_model import __main__ as commands

    monkeypatch.setattr("training.demo_model.recipe.Recipe", lambda: recipe)
    monkeypatch.setattr(commands, "NUM_HELD_OUT", num_held_out)

    def train(folder: Path) -> str:
        options = ["--groups", "50", "--scale", scale, "--threads", "1"]
        result = CliRunner().invoke(commands.app, ["train", "--output", str(folder), *options])
        assert result.exit_code == 0, result.output
        return XClip.load(folder / "checkpoint", "cpu", "torch").fingerprint

    whole = train(tmp_path / "whole")
    for left_out in ("after-videos", "checkpoint"):
        shutil.rmtree(tmp_path / "whole" / left_out)
    assert train(tmp_path / "whole") == whole
    refused = CliRunner().invoke(commands.app, ["train", "--output", str(tmp_path / "whole"), "--seed", "9"])
    assert refused.exit_code == 2
    assert "another recipe" in refused.output


def test_the_table_names_the_total_each_score_and_each_pair_in_both_directions():
    perfect = torch.eye(12)
    others = [torch.randn(12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    rows = table(Scores(perfect, *others, total=perfect))
    assert len(rows) == 2 * (1 + 4 + 6)
    assert recall(rows, "video_sentence") == recall(rows, "total", "video to text") == 100.0
    assert recall(rows, "frame_word") < 50.0


# The checkpoint that ships


@pytest.fixture(scope="module")
def demo() -> XClip:
    return XClip.load("demo", device="cpu")


def test_the_demo_checkpoint_is_small_and_knows_the_grammars_words(demo):
    checkpoint = Path(model.__file__).parent / "checkpoints" / "demo"
    size_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert size_bytes <= 16 * 1024**2
    assert demo.unknown_words(" ".join(sorted(vocabulary()))) == []
    assert demo.unknown_words("a purple elephant spins") == ["elephant"]


def drawn(demo: XClip, scenes: Sequence[Scene]) -> NDArray[np.uint8]:
    return np.stack([draw_frames(scene, demo.config.num_frames, demo.config.image_size) for scene in scenes])


@pytest.fixture(scope="module")
def held_out(demo) -> tuple[list[tuple[Scene, str]], NDArray[np.uint8]]:
    """Scenes that were not learnt, with captions; and their frames."""
    pairs = random_set(150, 99)
    return pairs, drawn(demo, [scene for scene, _ in pairs])


def assert_finds(demo: XClip, frames: NDArray[np.uint8], captions: list[str], least: float) -> None:
    rows = table(score_set(demo, frames, captions))
    assert recall(rows, "total") >= least
    assert recall(rows, "total", "video to text") >= least


def test_the_demo_model_finds_held_out_videos(demo, held_out):
    pairs, frames = held_out
    assert_finds(demo, frames[:100], [caption for _, caption in pairs[:100]], 92.0)


def test_the_demo_model_tells_siblings_apart(demo):
    pairs = sibling_hard_set(80, random.Random("demo model test").randrange(10**6))
    frames = drawn(demo, [scene for scene, _ in pairs])
    assert_finds(demo, frames, [caption for _, caption in pairs], 82.0)


def test_the_demo_model_finds_things_by_a_word_or_two(demo, held_out):
    pairs, frames = held_out
    scenes, frames = [scene for scene, _ in pairs[:80]], frames[:80]
    right = {row["query"]: row["first_result_right"] for row in brief_table(demo, scenes, frames, seed=77)}
    assert right["a thing"] >= 96.0
    assert right["a thing and its colour"] >= 94.0
    assert right["a thing and what it does"] >= 85.0
    assert named_right(demo, scenes, frames)["kind"] >= 90.0


def test_the_demo_model_knows_the_order_of_events(demo, held_out):
    pairs, frames = held_out
    chosen = [number for number, (scene, _) in enumerate(pairs) if len(scene.events) == 2][:60]
    assert len(chosen) == 60
    scenes = [pairs[number][0] for number in chosen]
    swapped = drawn(demo, [swapped_order(scene) for scene in scenes])
    text = demo.encode_text([plain_caption(scene) for scene in scenes])
    rightly, wrongly = (
        demo.score(text, encode_frames(demo, seen)).total.diag() for seen in (frames[chosen], swapped)
    )
    assert (rightly > wrongly).float().mean().item() >= 0.85
