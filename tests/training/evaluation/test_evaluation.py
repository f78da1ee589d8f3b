"""Evaluation of a split: features, scores in blocks, official protocols, shortlists, rows of the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import model.scoring as model_scoring
import model.xclip as model_xclip
from model import XClip, XClipConfig
from model.kernels.processor import CompiledAttention
from tests.support.rounding import inner_product_error
from tests.support.video_files import write_coloured_video
from training.data.frames import FrameReader, FrameRecipe
from training.datasets.split import Clip, Split
from training.errors import DatasetError, EvaluationError
from training.evaluation import encoding
from training.evaluation.encoding import (
    SCORES,
    EncodingOptions,
    coarse_similarity,
    encode_split,
    encode_texts,
    score_matrices,
    similarity,
)
from training.evaluation.evaluation import (
    bank_rows,
    choose_candidates,
    compute_metrics,
    dual_softmax_rows,
    evaluate_split,
    exhaustive_rows,
    tie_warnings,
    two_stage_metrics,
    two_stage_rows,
)
from training.evaluation.hubness import QueryBank, bank_statistics
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
    return FrameReader(FrameRecipe(model.config.num_frames, model.config.resizing))


@pytest.fixture(scope="module")
def encoded(model, split, reader):
    return encode_split(model, split, reader)


def test_a_split_encoded_in_batches_equals_its_clips_and_texts_one_by_one(model, split, reader, encoded):
    in_batches = encode_split(model, split, reader, EncodingOptions(3))
    assert in_batches.clip_of_text == split.clip_of_text
    torch.testing.assert_close(in_batches.video.frames, encoded.video.frames)
    for position, clip in enumerate(split.clips):
        frames = reader.read(clip)
        pixels = torch.zeros(1, model.config.num_frames, 32, 32, 3, dtype=torch.uint8)
        pixels[0, : len(frames)] = torch.from_numpy(frames)
        alone = model.encode_video(
            model.normalize_pixels(pixels), torch.arange(model.config.num_frames)[None] < len(frames)
        )
        torch.testing.assert_close(encoded.video.video[position], alone.video[0], atol=1e-5, rtol=1e-5)
        assert encoded.video.frame_mask[position].tolist() == alone.frame_mask[0].tolist()
        text = model.encode_text([split.texts[position]])
        torch.testing.assert_close(encoded.text.sentence[position], text.sentence[0], atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_many_pairs_are_scored_by_the_compiled_kernel_and_get_the_scores_of_few(
    model, split, several, reader, dtype, monkeypatch
):
    pytest.importorskip("numba")
    kernel = CompiledAttention()
    monkeypatch.setattr(model_scoring, "COMPILED", kernel)
    monkeypatch.setattr(model_xclip, "COMPILED", kernel)
    kept = encode_split(model, split, reader, EncodingOptions(dtype=dtype))
    text, num_compiled = encode_texts(model, several.texts), []
    without = score_matrices(model, text, kept.video)
    assert not kernel.is_for(model.config, text, kept.video)
    monkeypatch.setattr(encoding, "MIN_PAIRS_COMPILED", len(text) * len(kept.video))
    score = kernel.scores
    monkeypatch.setattr(kernel, "scores", lambda *given: num_compiled.append(1) or score(*given))
    compiled = score_matrices(model, text, kept.video)
    if not kernel.is_for(model.config, text, kept.video):
        pytest.skip("the kernel is not for this processor")
    assert len(num_compiled) == 1
    for name, values in compiled.items():
        np.testing.assert_allclose(values, without[name], atol=1e-4, err_msg=name)


def test_a_score_that_does_not_exist_is_refused(model, encoded):
    with pytest.raises(EvaluationError, match="no such score: colour"):
        score_matrices(model, encoded.text, encoded.video, ("total", "colour"))


def test_one_text_a_clip_is_evaluated_by_the_square_matrix(model, split, reader, encoded):
    result = evaluate_split(model, split, reader, EncodingOptions(2))
    total = similarity(model, encoded.text, encoded.video)
    assert result.text_to_video == retrieval_metrics(total)
    assert result.video_to_text == retrieval_metrics(total.T)
    assert (result.num_texts, result.num_clips) == (4, 4)


def test_several_texts_a_clip_are_evaluated_by_the_multi_caption_protocol(model, several, reader, encoded):
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


def test_scores_that_are_not_finite_or_do_not_fit_are_reported(split):
    scores = np.zeros((4, 4), np.float32)
    scores[1, 2] = np.nan
    with pytest.raises(EvaluationError, match=r"a green square\" with the clip blue is nan"):
        compute_metrics(scores, split)
    with pytest.raises(EvaluationError, match="4 texts and 4 clips"):
        compute_metrics(scores[:3], split)


# Coarse integers, so that many scores are tied.
seeds, sizes = st.integers(0, 10_000), st.integers(1, 12)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 6, shape).astype(np.float32)


def ranking(coarse: np.ndarray, total: np.ndarray, num_candidates: int) -> list[int]:
    """Clips of one text in final order; of equal ones the earlier first."""
    by_coarse = sorted(range(len(coarse)), key=lambda clip: (-coarse[clip], clip))
    candidates = sorted(by_coarse[:num_candidates], key=lambda clip: (-total[clip], clip))
    return candidates + by_coarse[num_candidates:]


@settings(deadline=None)
@given(seeds, sizes, st.integers(1, 15))
def test_ranks_equal_a_loop_that_shortlists_and_sorts(seed, num_clips, num_candidates):
    num_texts = num_clips + 2
    coarse, total = drawn(seed, num_texts, num_clips), drawn(seed + 1, num_texts, num_clips)
    clip_of_text = sorted(np.random.default_rng(seed).integers(0, num_clips, num_texts).tolist())
    ours = two_stage_metrics(coarse, total, clip_of_text, num_candidates)
    ranks, found = [], 0
    for own, one_coarse, one_total in zip(clip_of_text, coarse, total, strict=True):
        order = ranking(one_coarse, one_total, num_candidates)
        ranks.append(order.index(own) + 1)
        found += ranks[-1] <= num_candidates
    assert ours.metrics.mean_rank == pytest.approx(np.mean(ranks))
    assert ours.metrics.recall_at_1 == pytest.approx(100 * np.mean(np.array(ranks) <= 1))
    assert ours.candidate_recall == pytest.approx(100 * found / num_texts)


@settings(deadline=None)
@given(seeds, sizes)
def test_a_shortlist_of_everything_is_exhaustive(seed, num_clips):
    coarse, total = drawn(seed, num_clips, num_clips), drawn(seed + 1, num_clips, num_clips)
    one_each = list(range(num_clips))
    for num_candidates in (num_clips, num_clips + 5):
        everything = two_stage_metrics(coarse, total, one_each, num_candidates)
        assert everything.metrics == retrieval_metrics(total)
        assert everything.candidate_recall == 100.0
    several = sorted(one_each + one_each)
    coarse, total = np.repeat(coarse, 2, axis=0), drawn(seed + 2, 2 * num_clips, num_clips)
    assert two_stage_metrics(coarse, total, several, num_clips).metrics == multi_caption_metrics(
        total, several
    )


@settings(deadline=None)
@given(seeds, st.integers(2, 12), st.integers(1, 11))
def test_a_missed_clip_ranks_beyond_the_shortlist_and_recall_at_1_needs_it_there(
    seed, num_clips, num_candidates
):
    coarse, total = drawn(seed, num_clips, num_clips), drawn(seed + 1, num_clips, num_clips)
    ours = two_stage_metrics(coarse, total, list(range(num_clips)), num_candidates)
    assert ours.metrics.optimistic.recall_at_1 <= ours.candidate_recall
    candidate = choose_candidates(coarse, num_candidates)
    assert (candidate.sum(axis=1) == min(num_candidates, num_clips)).all()
    worst_in = np.where(candidate, coarse, np.inf).min(axis=1)
    best_out = np.where(candidate, -np.inf, coarse).max(axis=1)
    assert (worst_in >= best_out).all()


def test_the_coarse_scores_order_clips_as_the_coarse_index_does():
    torch.manual_seed(0)
    model = XClip(XClipConfig.tiny()).eval()
    with torch.no_grad():
        model.matrices.global_matrix.add_(0.2 * torch.randn_like(model.matrices.global_matrix))
    text = model.encode_text([f"a {thing} runs" for thing in ("dog", "cat", "bird", "horse", "car")])
    pixels = torch.randint(0, 256, (9, model.config.num_frames, 32, 32, 3), dtype=torch.uint8)
    video = model.encode_video(model.normalize_pixels(pixels), torch.ones(9, model.config.num_frames))
    coarse = coarse_similarity(model, text, video)
    index = faiss.IndexFlatIP(model.config.embedding_dim)
    index.add(video.video.numpy())
    scores, positions = index.search(model.coarse_query(text).numpy(), 9)
    np.testing.assert_array_equal(np.argsort(-coarse, axis=1, kind="stable"), positions)
    # Each side sums the same D products in an order of its own; the model also multiplies by the scale, and
    # the test divides by it.
    length = float(model.coarse_query(text).norm(dim=1).max())
    rounding = 2 * inner_product_error(model.config.embedding_dim + 2, length)
    np.testing.assert_allclose(-np.sort(-coarse, axis=1), scores, atol=rounding)
    by_model = similarity(model, text, video, score="video_sentence") / model.logit_scale_exp
    np.testing.assert_allclose(coarse, by_model, atol=rounding)


def test_scores_that_cannot_be_evaluated_are_refused():
    good = np.zeros((2, 2), np.float32)
    with pytest.raises(EvaluationError, match="at least one candidate"):
        two_stage_metrics(good, good, [0, 1], 0)
    with pytest.raises(EvaluationError, match="coarse scores"):
        two_stage_metrics(good[:1], good, [0, 1], 1)
    with pytest.raises(EvaluationError, match="finite"):
        two_stage_metrics(good, np.full((2, 2), np.inf), [0, 1], 1)


NUM_CLIPS = 12


def split_of(texts_per_clip: int) -> Split:
    positions = tuple(clip for clip in range(NUM_CLIPS) for _ in range(texts_per_clip))
    return Split(
        "captions",
        "test",
        tuple(Clip(f"clip{clip}", Path(f"{clip}.mp4")) for clip in range(NUM_CLIPS)),
        tuple(f"text {number}" for number in range(len(positions))),
        positions,
    )


def scores_of(drawn_split: Split, seed: int, strength: float = 0.2) -> np.ndarray:
    scores = np.random.default_rng(seed).uniform(-0.2, 0.4, (len(drawn_split.texts), NUM_CLIPS))
    scores[np.arange(len(drawn_split.texts)), drawn_split.clip_of_text] += strength
    return scores.astype(np.float32)


@pytest.fixture(params=[1, 3], ids=["one text a clip", "three texts a clip"])
def drawn_split(request):
    return split_of(request.param)


def test_exhaustive_rows_go_both_ways(drawn_split):
    scores = scores_of(drawn_split, 0)
    to_video, to_text = exhaustive_rows(scores, drawn_split)
    several = drawn_split.has_several_texts_per_clip
    assert to_video.metrics == (
        multi_caption_metrics(scores, drawn_split.clip_of_text) if several else retrieval_metrics(scores)
    )
    assert to_text.metrics.num_queries == NUM_CLIPS
    assert ("best caption" in to_text.note) == several


def test_two_stage_rows_say_their_k_and_leave_out_shortlists_of_everything(drawn_split):
    coarse, total = scores_of(drawn_split, 1), scores_of(drawn_split, 2)
    rows = two_stage_rows(coarse, total, drawn_split, [500, 3, 3, NUM_CLIPS, 1])
    assert [row.parameters["num_candidates"] for row in rows] == [1, 3]
    assert all(str(row.parameters["num_candidates"]) in row.label for row in rows)
    assert rows[0].parameters["candidate_recall"] <= rows[1].parameters["candidate_recall"] < 100
    assert {row.direction for row in rows} == {"text to video"}
    assert all(row.servable for row in rows)


def test_dual_softmax_rows_are_not_servable_and_better_where_items_are_hubs(drawn_split):
    scores = 100 * scores_of(drawn_split, 3, strength=0.6)
    scores[:, 0] += 60
    before = exhaustive_rows(scores, drawn_split)
    after = dual_softmax_rows(scores, drawn_split)
    assert [row.direction for row in after] == ["text to video", "video to text"]
    assert not any(row.servable for row in after)
    assert after[0].metrics.recall_at_1 > before[0].metrics.recall_at_1


def test_bank_rows_name_their_bank_and_are_servable_without_test_queries(drawn_split):
    scores, statistics = scores_of(drawn_split, 4), bank_statistics([scores_of(drawn_split, 5, 0.0)])
    clean = QueryBank(("a",) * len(drawn_split.texts), "captions train", 50, 2)
    rows = bank_rows(scores, drawn_split, statistics, clean, ["query-bank", "nearest-neighbour"])
    assert [row.kind for row in rows] == ["query-bank", "nearest-neighbour"]
    for row in rows:
        assert row.servable and row.direction == "text to video"
        assert row.parameters["bank_source"] == "captions train" and str(clean) in row.note
        assert row.parameters["bank_size"] == len(drawn_split.texts)
    tainted = QueryBank(("a",), "mine.txt", 1, 0, holds_test_queries=True)
    (row,) = bank_rows(scores, drawn_split, statistics, tainted, ["query-bank"])
    assert not row.servable and "TEST QUERIES" in row.note


def test_ties_are_warned_of_with_their_bounds(drawn_split):
    assert tie_warnings(exhaustive_rows(scores_of(drawn_split, 6), drawn_split)) == []
    warnings = tie_warnings(
        exhaustive_rows(np.zeros((len(drawn_split.texts), NUM_CLIPS), np.float32), drawn_split)
    )
    assert len(warnings) == 2
    assert f"{len(drawn_split.texts)} of {len(drawn_split.texts)} queries" in warnings[0]
    assert "between 0.0 and 100.0" in warnings[0]
