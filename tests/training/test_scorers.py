"""Every baseline scores by its paper's formula, on the code path of X-CLIP itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import VideoFeatures, XClip, XClipConfig
from model.score_names import SCORE_NAMES
from tests.support.rounding import inner_product_error
from training.errors import ConfigError
from training.loop.loss import contrastive_loss
from training.scorers import (
    SCORERS,
    apply_scorer,
    find_scorer,
    fixed_parameters,
    inverse_document_frequencies,
    prepare_model,
)

TEXTS = ["a dog runs", "a red car stops, then a boat grows", "", "two cats"]
CAPTIONS = ["a dog runs", "a cat sleeps", "a dog and a cat", "the red car"]


def model_of(name: str, start: XClipConfig | None = None, **changes: object) -> XClip:
    """A network of scorer `name` that started from a trained X-CLIP: none of its matrices is the identity."""
    torch.manual_seed(4)
    model = XClip(apply_scorer(name, start or XClipConfig.tiny(), changes)).eval()
    with torch.no_grad():
        for matrix in model.matrices.parameters():
            matrix.add_(0.1 * torch.randn_like(matrix))
    prepare_model(name, model, model.tokenize(CAPTIONS))
    return model


def frames_and_mask(num_videos: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(num_videos, 8, 32, generator=generator)
    return frames, torch.arange(8) < torch.arange(1, num_videos + 1)[:, None] * 2


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def rounding(model: XClip) -> float:
    """How far a score may be from its definition in float64.

    D terms of the inner product, D for the lengths of frames and of their mean, and the mean over words or
    frames; then the scale multiplies all of it.
    """
    num_terms = 2 * model.config.embedding_dim + max(model.config.num_words, model.config.num_frames)
    return model.logit_scale_exp * inner_product_error(num_terms)


def mean_of_frames(frames: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """CLIP4Clip's video: frames to unit length, mean over the real ones, unit length. [V, D]"""
    return np.stack(
        [
            unit(unit(some[real].double().numpy()).mean(axis=0))
            for some, real in zip(frames, mask, strict=True)
        ]
    )


def real_grid(model: XClip, text, video, t: int, v: int) -> np.ndarray:
    """Cosines of the real words and the real frames of one pair. [words, frames]"""
    words = text.words[t][text.word_mask[t]].double().numpy()
    return words @ video.frames[v][video.frame_mask[v]].double().numpy().T


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_scores_the_same_after_saving_and_loading(name, tmp_path):
    model = model_of(name)
    text, video = model.encode_text(TEXTS), model.encode_frames(*frames_and_mask())
    scores = model.score(text, video)
    assert all(getattr(scores, one).isfinite().all() for one in (*SCORE_NAMES, "total"))
    expected = torch.stack([getattr(scores, one) for one in model.config.score_names]).mean(0)
    torch.testing.assert_close(scores.total, expected)
    model.save(tmp_path)
    loaded = XClip.load(str(tmp_path), device="cpu")
    assert loaded.fingerprint == model.fingerprint
    again = loaded.score(loaded.encode_text(TEXTS), loaded.encode_frames(*frames_and_mask()))
    torch.testing.assert_close(again.total, scores.total)
    # What the service draws moments and the coarse stage from.
    assert (loaded.frame_matches(text, video).isfinite() == video.frame_mask).all()
    coarse = loaded.coarse_query(text) @ video.video.T * loaded.logit_scale_exp
    torch.testing.assert_close(coarse, scores.video_sentence, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "clip4clip-meanP"])
def test_mean_pooling_is_the_cosine_of_the_sentence_with_the_mean_frame(name):
    model = model_of(name)
    assert model.temporal is None
    text, (frames, mask) = model.encode_text(TEXTS), frames_and_mask()
    total = model.score(text, model.encode_frames(frames, mask)).total
    expected = model.logit_scale_exp * text.sentence.double().numpy() @ mean_of_frames(frames, mask).T
    np.testing.assert_allclose(total, expected, atol=rounding(model))


def test_seqtransf_is_the_cosine_with_the_mean_frame_after_the_temporal_transformer():
    model = model_of("clip4clip-seqTransf")
    assert model.temporal is not None
    text, (frames, mask) = model.encode_text(TEXTS), frames_and_mask()
    with torch.no_grad():
        mixed = model.temporal(frames, mask)
    total = model.score(text, model.encode_frames(frames, mask)).total
    expected = model.logit_scale_exp * text.sentence.double().numpy() @ mean_of_frames(mixed, mask).T
    np.testing.assert_allclose(total, expected, atol=rounding(model))


def test_filip_is_the_mean_of_the_two_mean_token_wise_maxima():
    model = model_of("filip")
    text, video = model.encode_text(TEXTS), model.encode_frames(*frames_and_mask())
    total = model.score(text, video).total
    for t in range(len(text)):
        for v in range(len(video)):
            grid = real_grid(model, text, video, t, v)
            text_to_video, video_to_text = grid.max(axis=1).mean(), grid.max(axis=0).mean()
            expected = model.logit_scale_exp * (text_to_video + video_to_text) / 2
            assert total[t, v].item() == pytest.approx(expected, abs=rounding(model))


def test_taco_is_the_mean_of_the_sentence_level_and_of_the_weighted_best_frames_of_the_words():
    model = model_of("taco")
    text, (frames, mask) = model.encode_text(TEXTS), frames_and_mask()
    video = model.encode_frames(frames, mask)
    total = model.score(text, video).total
    weights_by_token = inverse_document_frequencies(model.tokenize(CAPTIONS), 49408)
    for t, ids in enumerate(model.tokenize(TEXTS)):
        weights = weights_by_token[ids][text.word_mask[t]].double().numpy()
        for v in range(len(video)):
            best = real_grid(model, text, video, t, v).max(axis=1)
            token_level = weights @ best / weights.sum() if weights.sum() else 0.0
            sentence_level = text.sentence[t].double() @ video.video[v].double()
            expected = model.logit_scale_exp * (sentence_level.item() + token_level) / 2
            assert total[t, v].item() == pytest.approx(expected, abs=rounding(model))
    assert text.word_weights[2].sum() == 0  # the empty text, which has no word


def test_taco_takes_a_matching_rare_word_for_more_than_a_matching_common_one():
    model = model_of("taco", score_names=["frame_word"])
    text = model.encode_text(["a dog"])
    common, rare = text.words[0, 1], text.words[0, 2]
    frames = torch.stack([common, rare])[:, None].expand(2, 8, 32).contiguous()
    mask = torch.ones(2, 8).bool()
    video = VideoFeatures(frames[:, 0], frames, mask)
    with_common, with_rare = model.score(text, video).total[0].tolist()
    assert with_rare > with_common


@pytest.mark.parametrize("name", ["filip", "taco"])
def test_token_level_scorers_leave_padding_out(name):
    model = model_of(name, XClipConfig.tiny(mask_padding=False))
    text, (frames, mask) = model.encode_text(TEXTS), frames_and_mask()
    other = torch.where(mask[..., None], frames, 3.0)
    plain = model.score(text, model.encode_frames(frames, mask)).total
    assert torch.equal(model.score(text, model.encode_frames(other, mask)).total, plain)


@pytest.mark.parametrize("name", SCORERS)
def test_exactly_the_parameters_that_are_not_fixed_learn(name):
    model = model_of(name)
    fixed = fixed_parameters(name, model)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name not in fixed)
    if not SCORERS[name].needs_training:
        assert fixed == {parameter_name for parameter_name, _ in model.named_parameters()}
        return
    model.train()
    text = model.encode_text(TEXTS[:3])
    pixels = torch.randn(3, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    loss = contrastive_loss(model.score(text, model.encode_video(pixels, frames_and_mask()[1])).total)
    loss.backward()
    assert loss.isfinite()
    assert fixed <= {parameter_name for parameter_name, _ in model.named_parameters()}
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (parameter_name in fixed), parameter_name
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name


def test_matrices_that_stay_the_identity_are_it_whatever_the_model_started_from():
    for name, scorer in SCORERS.items():
        model = model_of(name)
        for matrix_name, matrix in model.matrices.named_parameters():
            is_identity = torch.equal(matrix, torch.eye(len(matrix)))
            assert is_identity == (matrix_name in scorer.identity), (name, matrix_name)
            if is_identity:
                assert f"matrices.{matrix_name}" in fixed_parameters(name, model)


# From configs to configs


def test_xclip_leaves_a_config_as_it_is_and_undoes_other_scorers():
    config = XClipConfig.tiny(mask_padding=False, temperature=0.1)
    assert apply_scorer("xclip", config) == config
    assert apply_scorer("xclip", apply_scorer("taco", XClipConfig.tiny())) == XClipConfig.tiny()


def test_what_is_given_goes_before_what_the_scorer_says():
    overrides = {
        "score_names": ["frame_word", "video_sentence"],
        "aggregation": "max-max",
        "temperature": 0.5,
        "temporal_layers": 2,
        "mask_padding": False,
    }
    config = apply_scorer("filip", XClipConfig.tiny(), overrides)
    assert config.score_names == ("video_sentence", "frame_word")
    assert (config.aggregation, config.temperature) == ("max-max", 0.5)
    assert (config.temporal_layers, config.mask_padding) == (2, False)


@pytest.mark.parametrize(
    ("start", "text_layers", "expected"), [(0, 12, 4), (3, 12, 3), (0, 2, 2)], ids=["none", "three", "few"]
)
def test_a_scorer_with_a_temporal_transformer_takes_the_official_depth_where_there_is_none(
    start, text_layers, expected
):
    clip = dict(XClipConfig.tiny().clip)
    clip["text_cfg"] = {**clip["text_cfg"], "layers": text_layers}
    config = XClipConfig.tiny(clip=clip, temporal_layers=start)
    assert apply_scorer("clip4clip-seqTransf", config).temporal_layers == expected
    assert apply_scorer("clip4clip-meanP", config).temporal_layers == 0


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("x-pool", {}, "unknown scorer 'x-pool'; there are xclip, clip, clip4clip-meanP"),
        ("xclip", {"score_names": ["video"]}, r"unknown scores \['video'\]; there are video_sentence"),
        ("xclip", {"score_names": ["frame_word"] * 2}, "named twice"),
        ("xclip", {"score_names": []}, "scorer xclip: .*no score to average"),
        ("xclip", {"temperature": 0.0}, "scorer xclip: .*temperature 0.0"),
        ("taco", {"aggregation": "attention"}, "scorer taco: .*averages no words"),
    ],
)
def test_choices_that_make_no_scorer_are_config_errors(name, choices, message):
    with pytest.raises(ConfigError, match=message):
        apply_scorer(name, XClipConfig.tiny(), choices)


def test_a_scorer_that_counts_words_asks_for_captions():
    model = XClip(apply_scorer("taco", XClipConfig.tiny()))
    for captions in (None, torch.zeros(0, 32, dtype=torch.long)):
        with pytest.raises(ConfigError, match="needs captions"):
            prepare_model("taco", model, captions)
    with pytest.raises(ConfigError, match="unknown scorer"):
        prepare_model("bm25", model)


def test_every_scorer_says_what_it_is_and_where_it_comes_from():
    page = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text(encoding="utf-8")
    for name, scorer in SCORERS.items():
        assert scorer.name == name and find_scorer(name) is scorer
        assert scorer.description and "\n" not in scorer.description
        assert "arXiv:" in scorer.source
        assert f"`{name}`" in page


# Word weights


def test_inverse_document_frequencies_by_hand():
    start, end = 8, 9
    captions = torch.tensor(
        [
            [start, 1, 2, end, 0, 0],
            [start, 1, 1, end, 0, 0],
            [start, 1, 0, end, 0, 0],
        ]
    )
    found = inverse_document_frequencies(captions, 10)
    assert found.dtype == torch.float32 and found.shape == (10,)
    in_all, in_one, in_none = 0.0, np.log(4 / 2), np.log(4 / 1)
    # Token 0 stands in one caption; as padding it is not a word. Token 1 counts once a caption.
    expected = [in_one, in_all, in_one, *[in_none] * 5, in_all, in_all]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_every_caption_holds_weighs_nothing_and_never_less():
    for num_captions in range(1, 200):
        caption = torch.tensor([[5, 1, 6, 0]]).expand(num_captions, -1)
        weights = inverse_document_frequencies(caption, 7)
        assert (weights >= 0).all() and weights[5] == weights[1] == weights[6] == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=5), min_size=1, max_size=8))
def test_inverse_document_frequencies_equal_counting_in_python(bodies):
    captions = torch.tensor([[7, *body, 8, *[0] * (5 - len(body))] for body in bodies])
    found = inverse_document_frequencies(captions, 9).tolist()
    for token in range(9):
        holding = sum(token in (7, *body, 8) for body in bodies)
        assert found[token] == pytest.approx(np.log((1 + len(bodies)) / (1 + holding)), abs=1e-6)
    assert found[7] == found[8] == 0


def test_counting_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="no captions"):
        inverse_document_frequencies(torch.zeros(0, 4, dtype=torch.long), 10)
    with pytest.raises(ValueError, match=r"within 0\.\.9"):
        inverse_document_frequencies(torch.tensor([[8, 10]]), 10)
