"""What the network promises beyond the official arrays: equivalences, masks, saving, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model import (
    CheckpointError,
    ShapeError,
    SpecError,
    TextFeatures,
    TokenError,
    VideoFeatures,
    XClip,
    XClipConfig,
)
from model.aggregation import attend
from model.preprocessing import Resizing
from model.scoring import ScoreHead
from model.tokenization import HubTokenizer, Tokenizer

W, F, D, R = 32, 8, 32, 32


def random_model(seed: int = 0, **changes: object) -> XClip:
    torch.manual_seed(seed)
    model = XClip(XClipConfig.tiny(**changes)).eval()
    with torch.no_grad():
        for matrix in model.matrices.parameters():
            matrix.add_(0.1 * torch.randn_like(matrix))
    return model


@pytest.fixture(scope="module")
def model() -> XClip:
    return random_model()


TEXTS = ["a dog runs", "a red car moves to the left, then a boat grows", "", "two cats"]


def random_videos(num_videos: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(F) < torch.randint(1, F + 1, (num_videos, 1), generator=generator)
    pixels = torch.randn(num_videos, F, 3, R, R, generator=generator) * mask[:, :, None, None, None]
    return pixels, mask


def test_encoding_a_batch_equals_encoding_one_by_one(model):
    pixels, mask = random_videos(5)
    together = model.encode_video(pixels, mask)
    one_by_one = VideoFeatures.cat([model.encode_video(pixels[i : i + 1], mask[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together.video, one_by_one.video, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.frames, one_by_one.frames, atol=1e-5, rtol=0)
    text = model.encode_text(TEXTS)
    alone = TextFeatures.cat([model.encode_text([one]) for one in TEXTS])
    torch.testing.assert_close(text.words, alone.words, atol=1e-5, rtol=0)
    torch.testing.assert_close(text.sentence, alone.sentence, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temporal_layers", [0, 1])
@pytest.mark.parametrize("mask_padding", [True, False])
def test_encoding_only_real_frames_equals_encoding_all_of_them(mask_padding, temporal_layers):
    model = random_model(5, mask_padding=mask_padding, temporal_layers=temporal_layers)
    pixels, mask = random_videos(6)
    whole = model.clip.visual(pixels.flatten(0, 1)).detach().unflatten(0, mask.shape)
    expected = model.encode_frames(whole, mask)
    found = model.encode_video(pixels, mask.long())
    torch.testing.assert_close(found.video, expected.video, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.frames, expected.frames, atol=1e-5, rtol=0)
    assert found.frames.isfinite().all()
    padding = found.frames[~mask]
    assert (padding == 0).all() if mask_padding else (padding.norm(dim=-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("max_elements", [1, W * F * 3, W * F * 7, 1 << 22])
def test_scoring_in_blocks_equals_scoring_unblocked(mask_padding, max_elements):
    model = random_model(mask_padding=mask_padding)
    text, video = model.encode_text(TEXTS), model.encode_video(*random_videos(7))
    scale = torch.tensor(20.0)
    unblocked = model.matrices.unblocked(text, video, scale)
    in_blocks = model.matrices.in_blocks(text, video, scale, max_elements)
    torch.testing.assert_close(in_blocks.total, unblocked.total, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(in_blocks.frame_word, unblocked.frame_word, atol=1e-4, rtol=1e-5)


def frame_word_in_words(words, frames, word_mask, frame_mask, matrices: ScoreHead) -> float:
    """The frame-word score of one text and one video, loop by loop, as the specification says it."""

    def softmax(values, mask):
        weights = np.where(mask, np.exp((values - values[mask].max()) / 0.01), 0.0)
        return weights / weights.sum()

    def aggregate(values, mask, matrix):
        weights = softmax(values, mask) @ matrix
        return sum(weight * value for weight, value, real in zip(weights, values, mask, strict=True) if real)

    m = {name: matrix.detach().double().numpy() for name, matrix in matrices.named_parameters()}
    grid = (words @ m["local_matrix"]) @ frames.T  # [W, F]
    per_frame = np.array([aggregate(grid[:, f], word_mask, m["word"]) for f in range(grid.shape[1])])
    per_word = np.array([aggregate(grid[w], frame_mask, m["frame"]) for w in range(grid.shape[0])])
    by_frames = aggregate(per_frame, frame_mask, m["frame_second"])
    by_words = aggregate(per_word, word_mask, m["word_second"])
    return (by_frames + by_words) / 2


@pytest.mark.parametrize("mask_padding", [True, False])
def test_the_frame_word_score_equals_the_specification_in_loops(mask_padding):
    model = random_model(1, mask_padding=mask_padding)
    text, video = model.encode_text(TEXTS), model.encode_video(*random_videos(3))
    scores = model.score(text, video)
    for t in range(len(text)):
        for v in range(len(video)):
            expected = model.logit_scale_exp * frame_word_in_words(
                text.words[t].double().numpy(),
                video.frames[v].double().numpy(),
                text.word_mask[t].numpy() | (not mask_padding),
                video.frame_mask[v].numpy() | (not mask_padding),
                model.matrices,
            )
            assert scores.frame_word[t, v].item() == pytest.approx(expected, abs=1e-4)


def test_with_masking_the_content_of_padding_changes_no_score():
    model = random_model(2, mask_padding=True)
    text, video = model.encode_text(TEXTS), model.encode_video(*random_videos(6))
    noise = torch.nn.functional.normalize(torch.randn_like(video.frames), dim=-1)
    other = VideoFeatures(
        video.video, torch.where(video.frame_mask[..., None], video.frames, noise), video.frame_mask
    )
    torch.testing.assert_close(model.score(text, other).total, model.score(text, video).total)
    unmasked = random_model(2, mask_padding=False)
    assert not torch.allclose(unmasked.score(text, other).total, unmasked.score(text, video).total)


def test_the_coarse_query_times_the_scale_is_the_video_sentence_score(model):
    text, video = model.encode_text(TEXTS), model.encode_video(*random_videos(9))
    coarse = model.coarse_query(text) @ video.video.T * model.logit_scale_exp
    torch.testing.assert_close(coarse, model.score(text, video).video_sentence, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("names", [("video_sentence", "sentence_frame"), ("frame_word",)])
def test_the_total_is_the_mean_of_the_named_scores(names):
    model = random_model(3, score_names=names)
    scores = model.score(model.encode_text(TEXTS), model.encode_video(*random_videos(4)))
    expected = torch.stack([getattr(scores, name) for name in names]).mean(0)
    torch.testing.assert_close(scores.total, expected)


@pytest.mark.parametrize(
    "names", [("video_sentence", "sentence_frame"), ("frame_word",), ("video_sentence",)]
)
def test_frame_matches_name_real_frames_only(names):
    model = random_model(4, score_names=names)
    _, mask = random_videos(5)
    matches = model.frame_matches(model.encode_text(TEXTS), model.encode_video(*random_videos(5)))
    assert matches.shape == (len(TEXTS), 5, F)
    assert (torch.isfinite(matches) == mask).all()


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(-1, 1, width=32), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    )
)
def test_attention_with_the_identity_lies_between_the_least_and_the_greatest_real_value(case):
    values, mask = case
    result = attend(torch.tensor([values]), torch.eye(len(values)), torch.tensor([mask]), dim=1).item()
    real = [value for value, is_real in zip(values, mask, strict=True) if is_real]
    if real:
        assert min(real) - 1e-6 <= result <= max(real) + 1e-6
    else:
        assert result == 0.0


def test_a_saved_model_loads_to_the_same_fingerprint_and_scores(model, tmp_path):
    model.save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    loaded = XClip.load(str(tmp_path / "saved"), device="cpu")
    assert loaded.fingerprint == model.fingerprint
    assert loaded.config == model.config
    pixels, mask = random_videos(3)
    torch.testing.assert_close(
        loaded.encode_video(pixels, mask).video, model.encode_video(pixels, mask).video
    )


def test_any_change_of_weight_or_config_changes_the_fingerprint(model):
    seen = {model.fingerprint}
    for changed in (random_model(9), XClip(replace(model.config, mask_padding=False))):
        seen.add(changed.fingerprint)
    nudged = random_model()
    with torch.no_grad():
        nudged.matrices.word[0, 0] += 1e-3
    assert random_model().fingerprint in seen
    assert nudged.fingerprint not in seen
    assert len(seen) == 3
    described = XClip(replace(model.config, description="the same network"))
    described.load_state_dict(model.state_dict())
    assert described.fingerprint == model.fingerprint


def test_training_forgets_the_fingerprint():
    model = random_model()
    before = model.fingerprint
    model.train()
    with torch.no_grad():
        model.matrices.global_matrix.mul_(2)
    assert model.eval().fingerprint != before


@pytest.mark.parametrize("temporal_layers", [0, 1])
def test_padding_frames_make_no_gradient_undefined(temporal_layers):
    model = random_model(temporal_layers=temporal_layers).train()
    scores = model.score(model.encode_text(TEXTS), model.encode_video(*random_videos(4)))
    scores.total.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_gradients_flow_in_training_mode_only():
    model = random_model()
    assert not model.encode_text(["a dog"]).sentence.requires_grad
    model.train()
    assert model.encode_text(["a dog"]).sentence.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("matrices.word"), "missing tensor matrices.word"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected tensor extra"),
        (lambda tensors: tensors.update({"matrices.word": torch.zeros(3, 3)}), r"matrices.word is \[3, 3\]"),
        (
            lambda tensors: tensors["matrices.word"].fill_(float("nan")),
            "matrices.word holds values that are not",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(model, tmp_path, change, message):
    model.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        XClip.load(str(tmp_path), device="cpu")


def test_a_damaged_or_pickled_checkpoint_is_refused_and_never_run(model, tmp_path):
    model.save(tmp_path / "saved")
    weights = tmp_path / "saved" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="can be read safely"):
        XClip.load(str(tmp_path / "saved"))

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"clip.logit_scale": Trap()}, tmp_path / "pytorch_model.bin.0")
    with pytest.raises(CheckpointError, match="can be read safely"):
        XClip.from_official(tmp_path / "pytorch_model.bin.0")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no-such-model", "names no model"),
        ("openclip:ViT-B-32", "names no weights"),
        ("openclip:NoSuchNet/openai", "knows no architecture"),
        ("openclip:ViT-B-32/no_such_tag", "has no weights"),
        ("openclip:ViT-B-32/openai", "use openclip:ViT-B-32-quickgelu/openai"),
        ("hf-hub:not a name", "not OWNER/NAME"),
    ],
)
def test_a_spec_that_names_nothing_says_what_to_do(spec, message):
    with pytest.raises(SpecError, match=message):
        XClip.load(spec)


def test_a_random_openclip_model_is_the_same_for_the_same_seed_and_scores_without_words():
    first = XClip.load("openclip:ViT-S-32-alt/random?seed=3", device="cpu")
    assert first.config.score_names == ("video_sentence", "sentence_frame")
    assert first.config.mask_padding
    again = XClip.load("openclip:ViT-S-32-alt/random?seed=3", device="cpu")
    assert torch.equal(first.clip.text_projection, again.clip.text_projection)
    assert torch.equal(first.matrices.word, torch.eye(first.config.num_words))


def test_wrong_shapes_are_refused_with_the_expected_ones(model):
    pixels, mask = random_videos(2)
    with pytest.raises(ShapeError, match="pixels must be"):
        model.encode_video(pixels[:, :3], mask[:, :3])
    with pytest.raises(ShapeError, match="frame_mask must be"):
        model.encode_video(pixels, mask[:1])
    with pytest.raises(ShapeError, match="without a single real frame"):
        model.encode_video(pixels, torch.zeros_like(mask))
    with pytest.raises(ShapeError, match="token ids must be"):
        model.encode_tokens(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ShapeError, match="uint8"):
        model.normalize_pixels(np.zeros((2, 2, 3), np.float32))
    video = model.encode_video(pixels, mask)
    with pytest.raises(ShapeError, match="8 frames"):
        model.score(
            model.encode_text(["a"]), VideoFeatures(video.video, video.frames[:, :4], video.frame_mask[:, :4])
        )


def test_a_lone_surrogate_is_a_token_error(model):
    with pytest.raises(TokenError, match="surrogate"):
        model.encode_text(["broken \ud800 text"])


def test_a_small_vocabulary_names_the_words_it_lacks():
    from model.tokenization import Tokenizer, vocabulary_of

    tokenizer = Tokenizer(16, vocabulary_of(["a", "red", "car", "spins", ",", "then"]))
    assert tokenizer.unknown_words("A red car spins, then a CARBOAT explodes; explodes") == [
        "carboat",
        "explodes",
    ]
    ids = tokenizer(["a red car spins"])[0]
    assert ids.argmax().item() == 5
    assert ids.max().item() == tokenizer.end_id == tokenizer.size - 1
    assert (ids[6:] == 0).all()
    unknown = tokenizer(["a zebra"])[0].tolist()
    assert tokenizer.size - 3 in unknown
    assert Tokenizer(16).unknown_words("anything at all") == []


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40))
def test_preprocessing_always_gives_the_square_and_keeps_a_flat_colour(height, width, size):
    flat = np.full((height, width, 3), (10, 120, 250), np.uint8)
    square = Resizing(size)(flat)
    assert square.shape == (size, size, 3)
    assert (square == flat[0, 0]).all()


def test_importing_the_package_loads_no_torch():
    code = "import sys, model, model.preprocessing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "ein Hund läuft am Strand",
        "un chien court sur la plage",
        "un perro corre por la playa",
        "pies biegnie po plaży",
        "собака бежит по пляжу",
        "一只狗在海滩上奔跑",
        "犬が浜辺を走っている",
        "كلب يركض على الشاطئ",
    ],
)
def test_a_text_in_another_language_seems_foreign_to_clip_s_tokenizer(text: str) -> None:
    assert Tokenizer(77).seems_foreign(text)


def test_the_tokenizer_names_the_language_that_queries_should_be_in() -> None:
    assert Tokenizer(77).language == "English"
    # Those of the Hub were mostly made for many languages.
    assert HubTokenizer("no-such-place", 64, {}, lambda error: error).language is None


@pytest.mark.parametrize(
    "text",
    [
        "a dog runs on the beach",
        "Angela Merkel speaks in parliament",
        "a café in Montmartre",
        "sushi",
        "a boat, then a red car; 12 birds",
        "42",
        "🐕",
    ],
)
def test_english_with_names_and_signs_does_not_seem_foreign(text: str) -> None:
    assert not Tokenizer(77).seems_foreign(text)
    assert not Tokenizer(77, ("a", "dog")).seems_foreign("ein Hund am Strand"), "its unknown words say more"
