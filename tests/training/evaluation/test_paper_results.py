from __future__ import annotations

from collections import Counter

import pytest

from model import XClipConfig
from training.evaluation.paper_results import (
    PAPER_RESULTS,
    SOURCES,
    backbone_of,
    paper_results,
)

# What the abstract of arXiv:2207.07285 says of text to video with ViT-B/16, R@1.
ABSTRACT_RECALLS = {"msrvtt-9k": 49.3, "msvd": 50.4, "lsmdc": 26.1, "didemo": 47.8, "activitynet": 46.2}


def test_five_data_sets_have_both_backbones_in_both_directions():
    assert Counter(row.dataset for row in PAPER_RESULTS) == dict.fromkeys(ABSTRACT_RECALLS, 4)
    assert len({(row.dataset, row.backbone, row.direction) for row in PAPER_RESULTS}) == 20
    assert {row.dataset: row.table for row in PAPER_RESULTS} == dict(
        zip(ABSTRACT_RECALLS, range(1, 6), strict=True)
    )


def test_the_abstract_says_the_same():
    for row in PAPER_RESULTS:
        if row.backbone == "ViT-B/16" and row.direction == "text to video":
            assert row.recall_at_1 == ABSTRACT_RECALLS[row.dataset]


def test_relative_gains_that_the_paper_states_in_words_follow_from_the_figures():
    # "+6.6% (+3.1%), +11.1% (+2.6%), +6.7% (+3.0%), +3.8% (+1.7%)" over CLIP4Clip, section 4.3.
    for dataset, gain, relative in (
        ("msvd", 3.1, 6.6),
        ("lsmdc", 2.6, 11.1),
        ("didemo", 3.0, 6.7),
        ("activitynet", 1.7, 3.8),
    ):
        ours = paper_results(dataset, "ViT-B/16")[0].recall_at_1
        assert 100 * gain / (ours - gain) == pytest.approx(relative, abs=0.06)


def test_figures_are_plausible_and_say_where_they_were_read():
    for row in PAPER_RESULTS:
        recalls = [
            row.recall_at_1,
            row.recall_at_5,
            *([] if row.recall_at_10 is None else [row.recall_at_10]),
        ]
        assert recalls == sorted(recalls) and recalls[0] > 20 and recalls[-1] < 100
        assert row.mean_rank > 1
        assert row.is_confirmed and set(row.confirmed_by) <= set(SOURCES)


def test_a_larger_backbone_is_better_in_every_table():
    for small in (row for row in PAPER_RESULTS if row.backbone == "ViT-B/32"):
        large = next(
            row for row in paper_results(small.dataset, "ViT-B/16") if row.direction == small.direction
        )
        assert large.recall_at_1 > small.recall_at_1
        assert large.mean_rank < small.mean_rank


def test_rows_are_chosen_by_data_set_and_backbone():
    assert len(paper_results("lsmdc")) == 4
    assert {row.backbone for row in paper_results("lsmdc", "ViT-B/32")} == {"ViT-B/32"}
    assert paper_results("msrvtt-7k") == paper_results("msrvtt-9k")
    assert paper_results("captions") == []


@pytest.mark.parametrize(
    ("patch_size", "width", "expected"),
    [(32, 768, "ViT-B/32"), (16, 768, "ViT-B/16"), (14, 1024, None), (14, 768, None)],
)
def test_the_backbone_is_read_off_the_config(patch_size, width, expected):
    clip = {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": width, "patch_size": patch_size},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
    }
    assert backbone_of(XClipConfig(clip)) == expected
    assert backbone_of(XClipConfig.tiny()) is None
