from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model import XClip, XClipConfig
from tests.support.video_files import write_coloured_video
from training.data.frames import FrameReader, FrameRecipe
from training.datasets.split import Clip, Split
from training.errors import DatasetError, EvaluationError
from training.evaluation.encoding import (
    SCORES,
    EncodingOptions,
    encode_split,
    encode_texts,
    score_matrices,
    similarity,
)
from training.evaluation.evaluation import compute_metrics, evaluate_split
from training.evaluation.metrics import multi_caption_metrics, retrieval_metrics, video_to_text_similarity

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 40, 190), "grey": (120, 120, 120)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = XClip(XClipConfig.tiny()).eval()
    with torch.no_grad():
        for matrix in model.matrices.parameters():
            matrix.add_(0.1 * torch.randn_like(matrix))
    return model


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    # Lengths from one frame's worth to more than F seconds.
    clips = tuple(
        Clip(name, write_coloured_video(folder / f"{name}.mp4", colour, seconds))
        for (name, colour), seconds in zip(COLOURS.items(), (1, 3, 6, 11), strict=True)
    )
    texts = tuple(f"a white bar crosses a {name} square" for name in COLOURS)
    return Split("captions", "test", clips, texts, (0, 1, 2, 3))


@pytest.fixture(scope="module")
def several(split):
    texts = ("red", "a red square", "green", "blue", "a blue square", "it is blue", "grey")
    return replace(split, texts=texts, clip_of_text=(0, 0, 1, 2, 2, 2, 3))


@pytest.fixture(scope="module")
def reader(model):
    return FrameReader(FrameRecipe(model.config.num_frames, model.config.image_size))


@pytest.fixture(scope="module")
def encoded(model, split, reader):
    return encode_split(model, split, reader)


def test_a_split_encoded_in_batches_equals_its_clips_and_texts_one_by_one(model, split, reader, encoded):
    in_batches = encode_split(model, split, reader, EncodingOptions(3))
    assert in_batches.clip_of_text == split.clip_of_text
    torch.testing.assert_close(in_batches.video.frames, encoded.video.frames)
    for place, clip in enumerate(split.clips):
        frames = reader.read(clip)
        pixels = torch.zeros(1, model.config.num_frames, 32, 32, 3, dtype=torch.uint8)
        pixels[0, : len(frames)] = torch.from_numpy(frames)
        alone = model.encode_video(
            model.normalize_pixels(pixels), torch.arange(model.config.num_frames)[None] < len(frames)
        )
        torch.testing.assert_close(encoded.video.video[place], alone.video[0], atol=1e-5, rtol=1e-5)
        assert encoded.video.frame_mask[place].tolist() == alone.frame_mask[0].tolist()
        text = model.encode_text([split.texts[place]])
        torch.testing.assert_close(encoded.text.sentence[place], text.sentence[0], atol=1e-5, rtol=1e-5)


def test_features_are_kept_on_the_cpu_and_in_half_the_memory_where_asked(model, split, reader, encoded):
    half = encode_split(model, split, reader, EncodingOptions(dtype=torch.float16))
    for features in (half.text, half.video, encoded.text, encoded.video):
        for name, tensor in vars(features).items():
            if tensor is not None:
                assert tensor.device.type == "cpu" and (tensor.dtype == torch.bool) == name.endswith("mask")
    assert (half.video.frames.dtype, encoded.video.frames.dtype) == (torch.float16, torch.float32)
    scores = similarity(model, encoded.text, encoded.video)
    np.testing.assert_allclose(
        similarity(model, half.text, half.video), scores, atol=2e-3 * model.logit_scale_exp
    )


@pytest.mark.parametrize("block_shape", [(1, 1), (3, 2), (100, 3), (2, 100)])
def test_scores_in_blocks_equal_scores_in_one_piece(model, encoded, several, block_shape):
    text = encode_texts(model, several.texts)
    whole = model.score(text, encoded.video)
    in_blocks = score_matrices(model, text, encoded.video, block_shape=block_shape)
    assert set(in_blocks) == set(SCORES)
    for name, values in in_blocks.items():
        assert values.dtype == np.float32 and values.shape == (7, 4)
        np.testing.assert_allclose(values, getattr(whole, name).numpy(), atol=1e-4)
    np.testing.assert_array_equal(
        similarity(model, text, encoded.video, block_shape=block_shape),
        in_blocks["total"],
    )


def test_a_score_that_does_not_exist_is_refused(model, encoded):
    with pytest.raises(EvaluationError, match="no such score: colour"):
        score_matrices(model, encoded.text, encoded.video, ("total", "colour"))


def test_one_text_a_clip_is_judged_by_the_square_matrix(model, split, reader, encoded):
    result = evaluate_split(model, split, reader, EncodingOptions(2))
    total = similarity(model, encoded.text, encoded.video)
    assert result.text_to_video == retrieval_metrics(total)
    assert result.video_to_text == retrieval_metrics(total.T)
    assert (result.num_texts, result.num_clips) == (4, 4)


def test_several_texts_a_clip_are_judged_by_the_multi_caption_protocol(model, several, reader, encoded):
    result = evaluate_split(model, several, reader)
    total = similarity(model, encode_texts(model, several.texts), encoded.video)
    assert result.text_to_video == multi_caption_metrics(total, several.clip_of_text)
    assert result.video_to_text == retrieval_metrics(video_to_text_similarity(total, several.clip_of_text))
    assert (result.text_to_video.num_queries, result.video_to_text.num_queries) == (7, 4)


def test_validation_leaves_a_model_in_training_as_it_was(model, split, reader):
    progress = []
    model.train()
    try:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        evaluate_split(model, split, reader, on_progress=lambda *step: progress.append(step))
        assert all(module.training for module in model.modules())
        assert torch.is_grad_enabled()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
        assert model.encode_text(["a red square"]).sentence.requires_grad
    finally:
        model.eval()
    assert [step for step in progress if step[1] == step[2]] == [
        ("texts", 4, 4),
        ("clips", 4, 4),
        ("pairs", 16, 16),
    ]


def test_a_clip_that_cannot_be_read_fails_by_name(model, split, reader, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    bad = replace(split, clips=(*split.clips[:3], Clip("broken one", Path(broken))))
    with pytest.raises(DatasetError, match="broken one"):
        evaluate_split(model, bad, reader)


def test_scores_that_are_not_finite_or_do_not_fit_are_told(split):
    scores = np.zeros((4, 4), np.float32)
    scores[1, 2] = np.nan
    with pytest.raises(EvaluationError, match=r"a green square\" with the clip blue is nan"):
        compute_metrics(scores, split)
    with pytest.raises(EvaluationError, match="4 texts and 4 clips"):
        compute_metrics(scores[:3], split)
