"""The ways to make a score of similarities: each equals its definition in loops, whatever else is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model import CheckpointError, ShapeError, TextFeatures, VideoFeatures, XClip, XClipConfig
from model.aggregation import REDUCTIONS, average, largest
from model.score_names import SCORE_NAMES
from model.scoring import ScoreHead

W, F, D = 6, 5, 8
NUM_TEXTS, NUM_VIDEOS = 4, 3
SCALE = 20.0
WEIGHTED = "inverse-document-frequency"
VARIANTS = [
    {
        "aggregation": aggregation,
        "temperature": temperature,
        "frame_word_sides": sides,
        "word_weighting": weighting,
    }
    for aggregation in REDUCTIONS
    for temperature in ((0.01, 0.3) if aggregation == "attention" else (0.01,))
    for sides in ("both", "words")
    for weighting in (("uniform", WEIGHTED) if "mean" in aggregation else ("uniform",))
]
every_variant = pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values()))
)
SUBSETS = [names for size in range(1, 5) for names in combinations(SCORE_NAMES, size)]


def features(weighted: bool = False) -> tuple[TextFeatures, VideoFeatures]:
    """Texts and videos of all lengths, padding included; the shortest have one word and one frame."""
    generator = torch.Generator().manual_seed(3)

    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    word_mask = torch.arange(W) < torch.tensor([[1], [3], [4], [W]])
    frame_mask = torch.arange(F) < torch.tensor([[1], [3], [F]])
    weights = torch.rand(NUM_TEXTS, W, generator=generator) * word_mask if weighted else None
    return (
        TextFeatures(unit(NUM_TEXTS, D), unit(NUM_TEXTS, W, D), word_mask, weights),
        VideoFeatures(unit(NUM_VIDEOS, D), unit(NUM_VIDEOS, F, D), frame_mask),
    )


def score_head(noise: float = 0.1, **choices: object) -> ScoreHead:
    """Of D, W and F, in evaluation mode. noise: how far its matrices are from the identity."""
    config = XClipConfig.tiny(
        clip={**XClipConfig.tiny().clip, "embed_dim": D}, num_words=W, num_frames=F, **choices
    )
    torch.manual_seed(1)
    head = ScoreHead(config).eval()
    with torch.no_grad():
        for matrix in head.parameters():
            matrix.add_(noise * torch.randn_like(matrix))
    return head


def small_model(**changes: object) -> XClip:
    torch.manual_seed(0)
    model = XClip(XClipConfig.tiny(**changes)).eval()
    with torch.no_grad():
        for matrix in model.matrices.parameters():
            matrix.add_(0.1 * torch.randn_like(matrix))
    return model


def random_video(num_videos: int) -> VideoFeatures:
    def unit(*shape: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(num_videos, *shape, 32), dim=-1)

    return VideoFeatures(unit(), unit(8), torch.ones(num_videos, 8).bool())


@pytest.fixture(scope="module")
def model() -> XClip:
    """For tests that replace its config by one of the same sizes."""
    return small_model()


class Loops:
    """The scores of one text and one video in plain numbers, loop by loop."""

    def __init__(self, text, video, head):
        config = head.config
        self.sentence, self.words = text.sentence.double().numpy(), text.words.double().numpy()
        self.video, self.frames = video.video.double().numpy(), video.frames.double().numpy()
        self.real_words = text.word_mask.numpy() if config.mask_padding else np.ones(W, bool)
        self.real_frames = video.frame_mask.numpy() if config.mask_padding else np.ones(F, bool)
        self.weights = np.ones(W) if text.word_weights is None else text.word_weights.double().numpy()
        self.m = {name: one.detach().double().numpy() for name, one in head.named_parameters()}
        self.temperature, self.sides = config.temperature, config.frame_word_sides
        self.outer, self.inner = (
            ("attention", "attention") if config.aggregation == "attention" else config.aggregation.split("-")
        )

    def reduce(self, how, values, real, matrix, weights):
        values, weights = np.asarray(values)[real], weights[real]
        if how == "max":
            return max(values)
        if how == "mean":
            return sum(weights * values) / sum(weights)
        share = np.exp((values - max(values)) / self.temperature)
        return (share / share.sum()) @ self.m[matrix][np.ix_(real, real)] @ values

    def over_words(self, how, values, matrix):
        return self.reduce(how, values, self.real_words, matrix, self.weights)

    def over_frames(self, how, values, matrix):
        return self.reduce(how, values, self.real_frames, matrix, np.ones(F))

    def grid(self):
        return (self.words @ self.m["local_matrix"]) @ self.frames.T  # [W, F]

    def video_sentence(self):
        return self.sentence @ self.m["global_matrix"] @ self.video

    def video_word(self):
        return self.over_words(self.outer, self.words @ self.video, "word_logit")

    def sentence_frame(self):
        return self.over_frames(self.outer, self.frames @ self.sentence, "frame_logit")

    def frame_word(self):
        grid = self.grid()
        per_word = [self.over_frames(self.inner, grid[w], "frame") for w in range(W)]
        by_words = self.over_words(self.outer, per_word, "word_second")
        if self.sides == "words":
            return by_words
        per_frame = [self.over_words(self.inner, grid[:, f], "word") for f in range(F)]
        return (by_words + self.over_frames(self.outer, per_frame, "frame_second")) / 2

    def words_with_frame(self, f):
        if self.sides == "words":
            return self.over_words(self.outer, self.grid()[:, f], "word_second")
        return self.over_words(self.inner, self.grid()[:, f], "word")


def every_pair(text, video):
    for t in range(NUM_TEXTS):
        for v in range(NUM_VIDEOS):
            weights = None if text.word_weights is None else text.word_weights[t]
            one_text = type("Text", (), {})()
            one_text.sentence, one_text.words = text.sentence[t], text.words[t]
            one_text.word_mask, one_text.word_weights = text.word_mask[t], weights
            one_video = type("Video", (), {})()
            one_video.video, one_video.frames = video.video[v], video.frames[v]
            one_video.frame_mask = video.frame_mask[v]
            yield t, v, one_text, one_video


@every_variant
@pytest.mark.parametrize("mask_padding", [True, False])
def test_every_score_equals_its_definition_in_loops(mask_padding, variant):
    text, video = features(variant["word_weighting"] == WEIGHTED)
    head = score_head(mask_padding=mask_padding, **variant)
    scores = head(text, video, torch.tensor(SCALE))
    matching = score_head(mask_padding=mask_padding, score_names=("frame_word",), **variant)
    matches = matching.match_frames(text, video, torch.tensor(SCALE))
    for t, v, one_text, one_video in every_pair(text, video):
        loops = Loops(one_text, one_video, head)
        for name in SCORE_NAMES:
            expected = SCALE * getattr(loops, name)()
            assert getattr(scores, name)[t, v].item() == pytest.approx(expected, abs=1e-4), (name, t, v)
        for f in range(F):
            if video.frame_mask[v, f]:
                expected = SCALE * loops.words_with_frame(f)
                assert matches[t, v, f].item() == pytest.approx(expected, abs=1e-4), (t, v, f)
            else:
                assert matches[t, v, f] == float("-inf")


@every_variant
@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("max_elements", [1, W * F * 2, 1 << 20])
def test_scoring_in_blocks_equals_scoring_unblocked(max_elements, mask_padding, variant):
    text, video = features(variant["word_weighting"] == WEIGHTED)
    head = score_head(mask_padding=mask_padding, **variant)
    unblocked = head.unblocked(text, video, torch.tensor(SCALE))
    in_blocks = head.in_blocks(text, video, torch.tensor(SCALE), max_elements)
    for name in (*SCORE_NAMES, "total"):
        torch.testing.assert_close(getattr(in_blocks, name), getattr(unblocked, name), atol=1e-4, rtol=1e-5)


@every_variant
def test_with_masking_the_content_of_padding_changes_no_score_of_any_aggregation(variant):
    text, video = features(variant["word_weighting"] == WEIGHTED)
    words = torch.where(text.word_mask[..., None], text.words, 9.0)
    frames = torch.where(video.frame_mask[..., None], video.frames, -9.0)
    other_text = TextFeatures(text.sentence, words, text.word_mask, text.word_weights)
    other_video = VideoFeatures(video.video, frames, video.frame_mask)
    scale = torch.tensor(SCALE)
    masking = score_head(mask_padding=True, **variant)
    plain, changed = masking(text, video, scale), masking(other_text, other_video, scale)
    for name in SCORE_NAMES:
        torch.testing.assert_close(getattr(changed, name), getattr(plain, name), atol=0, rtol=0)
    unmasked = score_head(mask_padding=False, **variant)(text, video, scale)
    assert not torch.allclose(unmasked.frame_word, plain.frame_word)


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
@pytest.mark.parametrize("aggregation", ["attention", "mean-max"])
def test_the_total_is_the_mean_of_the_named_scores_in_both_modes(model, aggregation, names):
    text, video = model.encode_text(["a dog runs", "two red cars"]), random_video(3)
    model.matrices.config = replace(model.config, score_names=names, aggregation=aggregation)
    scores = model.eval().score(text, video)
    expected = torch.stack([getattr(scores, name) for name in names]).mean(0)
    torch.testing.assert_close(scores.total, expected)
    assert all(getattr(scores, name).isfinite().all() for name in SCORE_NAMES)
    in_training = model.train().score(text, video)
    torch.testing.assert_close(in_training.total, scores.total, atol=1e-4, rtol=1e-5)
    for name in SCORE_NAMES:
        found = getattr(in_training, name)
        assert found.isfinite().all() if name in names else found.isnan().all()
        assert found.shape == scores.total.shape


@pytest.mark.parametrize("wanted", SUBSETS, ids="+".join)
@pytest.mark.parametrize("names", [SCORE_NAMES, ("video_sentence", "sentence_frame")], ids="+".join)
def test_only_what_is_wanted_is_computed_and_a_total_only_of_what_is_known(names, wanted):
    text, video = features()
    head, scale = score_head(score_names=names), torch.tensor(SCALE)
    full = head(text, video, scale)
    for mode in (True, False):
        some = head.train(mode)(text, video, scale, wanted)
        for name in SCORE_NAMES:
            if name in wanted:
                torch.testing.assert_close(getattr(some, name), getattr(full, name), atol=1e-4, rtol=1e-5)
            else:
                assert getattr(some, name).isnan().all()
        if set(names) <= set(wanted):
            torch.testing.assert_close(some.total, full.total, atol=1e-4, rtol=1e-5)
        else:
            assert some.total.isnan().all()
        assert some.total.shape == full.total.shape
        with pytest.raises(ValueError, match="there are video_sentence, "):
            head(text, video, scale, (*wanted, "frame"))


@every_variant
@pytest.mark.parametrize("mask_padding", [True, False])
def test_gradients_are_finite_and_reach_exactly_the_matrices_in_use(mask_padding, variant):
    for names in SUBSETS:
        head = score_head(mask_padding=mask_padding, score_names=names, **variant).train()
        text, video = features(variant["word_weighting"] == WEIGHTED)
        # What a model that masks padding gives, which is where zeros meet a maximum.
        text.words.mul_(text.word_mask[..., None] | (not mask_padding))
        video.frames.mul_(video.frame_mask[..., None] | (not mask_padding))
        inputs = [text.sentence, text.words, video.video, video.frames]
        for tensor in inputs:
            tensor.requires_grad_()
        head(text, video, torch.tensor(SCALE)).total.square().sum().backward()
        assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in inputs)
        reached = set()
        for name, matrix in head.named_parameters():
            if matrix.grad is not None:
                assert matrix.grad.isfinite().all() and matrix.grad.abs().sum() > 0, name
                reached.add(name)
        assert reached == head.matrices_in_use(), names


@pytest.mark.parametrize(("temperature", "limit"), [(1e-6, "max-max"), (1e6, "mean-mean")])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_attention_with_identity_matrices_has_the_maximum_and_the_mean_as_its_limits(
    mask_padding, temperature, limit
):
    text, video = features()
    one = torch.tensor(1.0)
    attention = score_head(0, mask_padding=mask_padding, temperature=temperature)(text, video, one)
    other = score_head(0, mask_padding=mask_padding, aggregation=limit)(text, video, one)
    for name in SCORE_NAMES:
        torch.testing.assert_close(getattr(attention, name), getattr(other, name), atol=1e-5, rtol=0)


def test_the_names_are_read_from_the_outside_in():
    grid = torch.tensor([[1.0, 3.0], [2.0, 8.0], [5.0, 5.0]])  # 3 words by 2 frames
    text = TextFeatures(torch.zeros(1, 3), torch.eye(3)[None], torch.ones(1, 3).bool())
    video = VideoFeatures(torch.zeros(1, 3), grid.T[None].contiguous(), torch.ones(1, 2).bool())

    def score(aggregation, sides):
        config = XClipConfig.tiny(
            clip={**XClipConfig.tiny().clip, "embed_dim": 3},
            num_words=3,
            num_frames=2,
            score_names=("frame_word",),
            aggregation=aggregation,
            frame_word_sides=sides,
        )
        return ScoreHead(config)(text, video, torch.tensor(1.0)).total.item()

    by_words, by_frames = (3 + 8 + 5) / 3, (5 + 8) / 2
    assert score("mean-max", "words") == pytest.approx(by_words)
    assert score("mean-max", "both") == pytest.approx((by_words + by_frames) / 2)
    assert score("max-mean", "words") == pytest.approx(max(2, 5, 5))
    assert score("max-max", "both") == pytest.approx(8)
    assert score("mean-mean", "both") == pytest.approx(24 / 6)


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n),
            st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=n, max_size=n),
        )
    )
)
def test_a_maximum_or_mean_over_nothing_is_zero_and_passes_no_undefined_gradient(case):
    values, mask, weights = case
    similarity = torch.tensor([values], requires_grad=True)
    real = torch.tensor([mask])
    found_largest = largest(similarity, real, dim=1)
    found_average = average(similarity, real, dim=1)
    found_weighted = average(similarity, real, 1, torch.tensor([weights]))
    chosen = [value for value, is_real in zip(values, mask, strict=True) if is_real]
    counted = [weight for weight, is_real in zip(weights, mask, strict=True) if is_real]
    assert found_largest.item() == pytest.approx(max(chosen, default=0.0))
    assert found_average.item() == pytest.approx(sum(chosen) / max(1, len(chosen)), abs=1e-6)
    expected = sum(weight * value for weight, value in zip(counted, chosen, strict=True))
    assert found_weighted.item() == pytest.approx(expected / (sum(counted) or 1.0), abs=1e-6)
    (found_largest + found_average + found_weighted).sum().backward()
    assert similarity.grad is not None and similarity.grad.isfinite().all()
    assert (similarity.grad[~real] == 0).all()


# The config and what is saved


def test_the_shipped_config_is_written_to_the_byte_as_it_was():
    text = (Path(__file__).parents[2] / "model/checkpoints/demo/config.json").read_text(encoding="utf-8")
    assert XClipConfig.from_json(text).to_json() == text
    plain = json.loads(XClipConfig.tiny().to_json())
    assert not {"aggregation", "temperature", "word_weighting", "frame_word_sides"} & plain.keys()


def test_choices_that_differ_from_the_default_are_written_and_read_back():
    config = XClipConfig.tiny(
        aggregation="mean-max",
        temperature=0.5,
        word_weighting="inverse-document-frequency",
        frame_word_sides="words",
    )
    assert XClipConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["temperature"] == 0.5
    whole, real = XClipConfig.tiny(temperature=1), XClipConfig.tiny(temperature=1.0)
    assert whole.to_json() == real.to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregation": "min-max"}, "aggregation 'min-max' is not one of attention"),
        ({"aggregation": None}, "aggregation None is not one of"),
        ({"temperature": 0}, "temperature 0 is not a number above 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": "warm"}, "temperature 'warm'"),
        ({"temperature": True}, "temperature True"),
        ({"word_weighting": "idf"}, "word_weighting 'idf' is not one of uniform"),
        ({"word_weighting": "inverse-document-frequency"}, "averages no words that could be weighted"),
        ({"frame_word_sides": "frames"}, "frame_word_sides 'frames' is not one of both, words"),
    ],
)
def test_choices_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        XClipConfig.tiny(**changes)
    if all(value == value for value in changes.values()):
        values = json.loads(XClipConfig.tiny().to_json())
        with pytest.raises(CheckpointError, match=message):
            XClipConfig.from_json(json.dumps({**values, **changes}))


WEIGHTED_MEAN = {"aggregation": "mean-max", "word_weighting": WEIGHTED}


def test_word_weights_are_saved_with_the_model_and_are_part_of_its_fingerprint(tmp_path):
    model = small_model(**WEIGHTED_MEAN)
    before = model.fingerprint
    weights = torch.rand(49408)
    model.set_word_weights(weights)
    assert model.fingerprint != before
    model.save(tmp_path)
    loaded = XClip.load(str(tmp_path), device="cpu")
    assert loaded.fingerprint == model.fingerprint
    text = loaded.encode_text(["a dog runs", ""])
    assert text.word_weights is not None
    expected = weights[loaded.tokenize(["a dog runs", ""])] * text.word_mask
    torch.testing.assert_close(text.word_weights, expected)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["word_weights"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing tensor word_weights"):
        XClip.load(str(tmp_path), device="cpu")


def test_a_model_that_weights_words_equally_has_no_tensor_more_than_before():
    assert "word_weights" not in XClip(XClipConfig.tiny()).state_dict()
    assert XClip(XClipConfig.tiny()).encode_text(["a dog"]).word_weights is None


def test_word_weights_travel_with_the_features_and_are_not_forgotten_in_silence():
    model = small_model(**WEIGHTED_MEAN)
    text = model.encode_text(["a dog runs", "two cats", ""])
    assert text.word_weights is not None
    again = TextFeatures.cat([text[:1], text[[1, 2]]]).to("cpu")
    assert torch.equal(again.word_weights, text.word_weights)
    assert "word_weights=[3, 32]" in repr(text)
    bare = TextFeatures(text.sentence, text.words, text.word_mask)
    video = random_video(1)
    for ask in (model.score, model.frame_matches):
        with pytest.raises(ShapeError, match="word weighting is inverse-document-frequency"):
            ask(bare, video)
        with pytest.raises(ShapeError, match="word weighting is uniform"):
            getattr(small_model(), ask.__name__)(text, video)
    with pytest.raises(ShapeError, match="optional tensor"):
        TextFeatures.cat([text, bare])
    with pytest.raises(ShapeError, match=r"word_weights \[T, W\]"):
        TextFeatures(text.sentence, text.words, text.word_mask, torch.ones(3, 2))


@pytest.mark.parametrize("weights", [torch.ones(3), torch.full((49408,), -1.0), torch.full((49408,), np.nan)])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ShapeError, match="49408 finite numbers"):
        small_model(**WEIGHTED_MEAN).set_word_weights(weights)
    with pytest.raises(ShapeError, match="weights words equally"):
        small_model().set_word_weights(weights)
