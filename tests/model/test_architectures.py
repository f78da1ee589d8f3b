"""Every family of image-text models that open_clip builds, against its own encoders and transforms."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip import pretrained
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import save_file

from model import SpecError, TokenError, XClip, XClipConfig
from model.preprocessing import PIXEL_MEAN, Resizing
from tests.support.small_architectures import FAMILIES, describe, small_architectures

TEXTS = ["A red dog runs on the beach!", "two cats", "ein Hund läuft", "", "犬 が 走る " * 40]
NUM_PICTURES = 3


@pytest.fixture(scope="module", autouse=True)
def _known(tmp_path_factory):
    with small_architectures(tmp_path_factory.mktemp("architectures"), list(FAMILIES)):
        yield


def open_clips_own(family: str, directory) -> tuple[torch.nn.Module, str]:
    """open_clip's model with random weights, and the spec under which we find the same weights."""
    torch.manual_seed(3)
    theirs = open_clip.create_model(f"small-{family}", pretrained_text=False).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():  # also what begins as zeros, as classifier heads do
            if tensor.is_floating_point() and tensor.ndim > 1:
                tensor.add_(0.02 * torch.randn_like(tensor))
    torch.save(theirs.state_dict(), directory / "weights.pt")
    return theirs, f"openclip:small-{family}/{directory / 'weights.pt'}"


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_open_clips_own_encoders(family, tmp_path):
    theirs, spec = open_clips_own(family, tmp_path)
    model = XClip.load(spec, "cpu")
    assert model.config.score_names == ("video_sentence", "sentence_frame")
    size, num_frames = model.config.image_size, model.config.num_frames
    ids = open_clip.get_tokenizer(f"small-{family}")(TEXTS)
    texts = TEXTS if model.config.num_tokens == ids.shape[1] else TEXTS[:4]  # CLIP's are cut earlier by us
    pictures = torch.randn(NUM_PICTURES, 3, size, size)
    with torch.no_grad():
        sentences = theirs.encode_text(ids[: len(texts)], normalize=True)
        images = theirs.encode_image(pictures, normalize=True)
    text = model.encode_text(texts)
    torch.testing.assert_close(text.sentence, sentences, atol=1e-5, rtol=0)
    pixels = torch.zeros(NUM_PICTURES, num_frames, 3, size, size)
    pixels[:, 0] = pictures
    mask = torch.zeros(NUM_PICTURES, num_frames)
    mask[:, 0] = 1
    video = model.encode_video(pixels, mask)
    torch.testing.assert_close(video.frames[:, 0], images, atol=1e-5, rtol=0)
    torch.testing.assert_close(video.video, images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["siglip2", "mobileclip2", "coca", "xlm-roberta", "mt5", "nllb"])
def test_random_weights_depend_on_the_seed_alone_and_a_saved_model_needs_nothing_else(
    family, tmp_path, monkeypatch
):
    with small_architectures(tmp_path / "elsewhere", [family]):
        model = XClip.load(f"openclip:small-{family}/random?seed=4", "cpu")
        again = XClip.load(f"openclip:small-{family}/random?seed=4", "cpu")
        assert again.fingerprint == model.fingerprint
        assert XClip.load(f"openclip:small-{family}/random?seed=5", "cpu").fingerprint != model.fingerprint
        model.save(tmp_path / "saved")
        expected = model.encode_text(TEXTS)
        shutil.rmtree(tmp_path / "elsewhere")  # the tokenizer's files, and the text tower's configuration
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        loaded = XClip.load(tmp_path / "saved", "cpu")
    assert loaded.fingerprint == model.fingerprint
    text = loaded.encode_text(TEXTS)
    assert torch.equal(text.sentence, expected.sentence)
    assert torch.equal(text.words, expected.words)


@pytest.mark.parametrize(
    "family", ["siglip", "siglip2", "mobileclip2", "clipa", "metaclip2", "coca", "roberta", "mt5"]
)
def test_the_words_of_a_text_are_its_own_positions_and_do_not_depend_on_its_neighbours(family):
    model = XClip.load(f"openclip:small-{family}/random?seed=6", "cpu")
    together = model.encode_text(TEXTS[:3])
    assert together.words.shape == (3, model.config.num_words, 32)
    for row, text in enumerate(TEXTS[:3]):
        alone = model.encode_text([text])
        torch.testing.assert_close(alone.sentence[0], together.sentence[row], atol=2e-6, rtol=0)
        torch.testing.assert_close(alone.words[0], together.words[row], atol=2e-6, rtol=0)
        num_real = int(alone.word_mask.sum())
        assert num_real == len(model.tokenizer.pieces(text)) <= model.config.num_words
        lengths = alone.words[0].norm(dim=-1)
        torch.testing.assert_close(lengths[:num_real], torch.ones(num_real))
        assert not lengths[num_real:].any()
    assert model.tokenizer.num_tokens("two cats") == 2
    assert 2 < model.tokenizer.num_read <= model.config.context_length
    with pytest.raises(TokenError, match="lone surrogate"):
        model.encode_text(["\ud800"])


SHAPES = [(48, 64), (64, 48), (33, 200), (32, 32), (31, 33), (7, 5), (100, 100)]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_picture_becomes_the_square_that_open_clip_makes_of_it(mode, interpolation):
    resizing = Resizing(32, mode, interpolation, fill_color=70)
    transform = image_transform(
        32, False, (0, 0, 0), (1, 1, 1), resize_mode=mode, interpolation=interpolation, fill_color=70
    )
    rng = np.random.default_rng(2)
    for height, width in SHAPES:
        rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
        expected = transform(Image.fromarray(rgb)).permute(1, 2, 0).mul(255).round().byte().numpy()
        np.testing.assert_array_equal(resizing(rgb), expected)


def test_each_model_sees_pixels_as_its_weights_were_trained_and_its_fingerprint_says_so():
    clip = XClip.load("openclip:small-dfn/random", "cpu").config
    assert (clip.resize_mode, clip.interpolation, clip.pixel_mean) == ("shortest", "bicubic", PIXEL_MEAN)
    for source, family, mode, interpolation, mean in (
        ("ViT-B-16-SigLIP2", "siglip2", "squash", "bicubic", (0.5, 0.5, 0.5)),
        ("MobileCLIP2-S0", "mobileclip2", "shortest", "bilinear", (0.0, 0.0, 0.0)),
        ("ViT-L-14-CLIPA", "clipa", "squash", "bilinear", (0.485, 0.456, 0.406)),
        ("ViT-H-14-378-quickgelu", "dfn", "squash", "bicubic", PIXEL_MEAN),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(pretrained._PRETRAINED, f"small-{family}", pretrained._PRETRAINED[source])
            model = XClip.load(f"openclip:small-{family}/random", "cpu")
        config = model.config
        assert (config.resize_mode, config.interpolation, config.pixel_mean) == (mode, interpolation, mean)
        assert config.resizing == Resizing(config.image_size, mode, interpolation)
        assert XClipConfig.from_json(config.to_json()) == config
        plain = XClip.load(f"openclip:small-{family}/random", "cpu")
        assert plain.fingerprint != model.fingerprint


@pytest.mark.parametrize("family", ["siglip", "siglip2", "siglip-i18n", "nllb"])
def test_a_model_trained_with_a_sigmoid_gives_the_probability_that_open_clip_computes(family, tmp_path):
    theirs, spec = open_clips_own(family, tmp_path)
    with torch.no_grad():
        theirs.logit_scale.fill_(1.5)
        theirs.logit_bias.fill_(-2.5)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    model = XClip.load(spec, "cpu")
    size = model.config.image_size
    picture = torch.randn(1, 3, size, size)
    ids = open_clip.get_tokenizer(f"small-{family}")(TEXTS[:3])
    with torch.no_grad():
        _, logits = theirs.get_logits(picture, ids)
    pixels = torch.zeros(1, model.config.num_frames, 3, size, size)
    pixels[:, 0] = picture
    mask = torch.zeros(1, model.config.num_frames)
    mask[:, 0] = 1
    scores = model.score(model.encode_text(TEXTS[:3]), model.encode_video(pixels, mask))
    probability = model.probability(scores.video_sentence)
    torch.testing.assert_close(probability, logits.sigmoid(), atol=1e-5, rtol=0)
    assert XClip.load("openclip:small-eva02/random", "cpu").probability(scores.total) is None


def test_a_directory_with_open_clips_own_config_is_a_model_with_its_own_pixels_and_tokenizer(tmp_path):
    """What fine-tuning with open_clip, or a repository on the Hub, looks like."""
    theirs, _ = open_clips_own("siglip2", tmp_path)
    description = describe("siglip2", tmp_path)
    facts = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "resize_mode": "longest", "fill_color": 9}
    folder = tmp_path / "siglip2-files"
    config = {"model_cfg": description, "preprocess_cfg": facts}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    model = XClip.load(f"openclip:local-dir:{folder}", "cpu")
    assert model.config.pixel_mean == (0.1, 0.2, 0.3)
    assert model.config.resizing == Resizing(32, "longest", "bicubic", 9)
    with torch.no_grad():
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        sentences = theirs.encode_text(ids, normalize=True)
    torch.testing.assert_close(model.encode_text(TEXTS).sentence, sentences, atol=1e-5, rtol=0)


def test_without_transformers_a_model_that_needs_it_says_what_to_install(monkeypatch):
    model = XClip.load("openclip:small-siglip2/random", "cpu")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        SpecError, match=r"tokenizer .* needs .*transformers.* pip install 'xclip-search\[hf\]'"
    ):
        model.encode_text(["a dog"])
    with pytest.raises(
        SpecError, match=r"text tower .* needs .*transformers.* pip install 'xclip-search\[hf\]'"
    ):
        XClip.load("openclip:small-mt5/random", "cpu")
    assert XClip.load("openclip:small-mobileclip2/random", "cpu").encode_text(["a dog"])


def test_what_is_not_here_and_cannot_be_fetched_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for spec, what in (
        ("openclip:roberta-ViT-B-32/random", "the text tower roberta-base"),
        ("openclip:local-dir:/nowhere", "openclip:local-dir:/nowhere"),
        ("openclip:hf-hub:nobody/nothing", "openclip:hf-hub:nobody/nothing"),
    ):
        with pytest.raises(SpecError, match=f"^{what} cannot be loaded: ") as caught:
            XClip.load(spec, "cpu")
        assert "\n" not in str(caught.value)
