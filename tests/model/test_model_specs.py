"""Specs that fetch weights, with the real loading code on small weights made here."""

from __future__ import annotations

import time

import open_clip
import pytest
import torch
from huggingface_hub import constants

from model import CheckpointError, SpecError, XClip, XClipConfig

ARCHITECTURE = "ViT-S-32-alt"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def towers() -> open_clip.CLIP:
    torch.manual_seed(8)
    return open_clip.create_model(ARCHITECTURE)


def test_openclip_weights_become_a_zero_shot_model_with_the_same_towers(towers, tmp_path):
    torch.save(towers.state_dict(), tmp_path / "weights.pt")
    spec = f"openclip:{ARCHITECTURE}/{tmp_path / 'weights.pt'}"
    model = XClip.load(spec, device="cpu", runtime="torch")  # Of other runtimes: test_runtimes.py.
    assert model.config.mask_padding
    assert model.config.score_names == ("video_sentence", "sentence_frame")
    assert not model.training
    texts = ["a dog runs", "two cats on a sofa"]
    with torch.no_grad():
        plain = towers.eval().encode_text(open_clip.get_tokenizer(ARCHITECTURE)(texts), normalize=True)
        pictures = torch.randn(3, 3, model.config.image_size, model.config.image_size)
        expected = towers.encode_image(pictures, normalize=True)
    text = model.encode_text(texts)
    torch.testing.assert_close(text.sentence, plain, atol=1e-5, rtol=0)
    pixels = torch.zeros(3, model.config.num_frames, 3, model.config.image_size, model.config.image_size)
    pixels[:, 0] = pictures
    mask = torch.zeros(3, model.config.num_frames, dtype=torch.bool)
    mask[:, 0] = True
    video = model.encode_video(pixels, mask)
    # One frame: the video is that frame, and both scores in use are CLIP's own similarity.
    torch.testing.assert_close(video.video, expected, atol=1e-5, rtol=0)
    similarity = plain @ expected.T * towers.logit_scale.exp().detach()
    torch.testing.assert_close(model.score(text, video).total, similarity, atol=1e-3, rtol=1e-4)


def in_hub_cache(cache, model: XClip, name: str) -> None:
    """Lay a saved model down as huggingface_hub keeps a downloaded repository."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    model.save(repository / "snapshots" / REVISION)


def test_a_hub_repository_loads_from_the_cache_without_a_network(tmp_path, monkeypatch):
    torch.manual_seed(2)
    model = XClip(XClipConfig.tiny()).eval()
    in_hub_cache(tmp_path, model, "someone/xclip")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert XClip.load("hf-hub:someone/xclip", device="cpu").fingerprint == model.fingerprint
    with pytest.raises(SpecError, match="hf-hub:someone/other cannot be fetched"):
        XClip.load("hf-hub:someone/other", device="cpu")


@pytest.mark.parametrize(
    ("offline", "reason"), [(True, "stay offline"), (False, "127.0.0.1 cannot be reached")]
)
def test_openclip_weights_that_cannot_be_fetched_are_one_line_that_says_what_to_do(
    offline, reason, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    nowhere = "http://127.0.0.1:9"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    with pytest.raises(SpecError) as caught:
        XClip.load("openclip:ViT-B-32-quickgelu/openai", device="cpu")
    said = str(caught.value)
    assert said.startswith("openclip:ViT-B-32-quickgelu/openai cannot be loaded: ")
    assert reason in said and "run this once with a network, or copy the cache" in said
    assert "\n" not in said
    assert not [record for record in caplog.records if record.name == "root"], "nothing else complains of it"


def test_a_directory_without_a_model_is_refused_and_names_the_one_inside(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json; a model spec is one of"):
        XClip.load(tmp_path, "cpu")
    for name in ("last", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    with pytest.raises(CheckpointError, match=rf"holds no config\.json; is it {tmp_path / 'best'}\?"):
        XClip.load(tmp_path, "cpu")
