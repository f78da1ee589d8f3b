"""The figures that the X-CLIP paper (arXiv:2207.07285) gives for its five data sets, its tables 1 to 5.

Read in the paper's LaTeX source; `confirmed_by` names every text in which a row was found again, and how much
of it. Table numbers are the positions in that source.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from model import XClipConfig

Backbone = Literal["ViT-B/32", "ViT-B/16"]
Direction = Literal["text to video", "video to text"]

LATEX = "LaTeX source"
ABSTRACT = "abstract"
TAME, VEDJE, DREAM, MEMVERSE, ISSUE_9 = "TAME", "VEDJE", "DREAM", "MemVerse", "issue 9"

SOURCES = {
    LATEX: "sample-base.tex of arXiv:2207.07285, in github.com/hiennguyen9874/llm-wiki at "
    "raw/2207.07285_X-CLIP/, commit c59c2e533f4f63eb178e8beab66cb1f7be7604dd",
    ABSTRACT: "abstract of arXiv:2207.07285 (R@1)",
    TAME: "comparison tables of TAME: Temporal-Aware Mixture-of-Experts for Text-Video Retrieval",
    VEDJE: "comparison tables of VEDJE: Video-Efficient Discriminative Joint Encoder (R@k)",
    DREAM: "comparison tables of DREAM: Improving Video-Text Retrieval Through Relevance-Based Augmentation",
    MEMVERSE: "comparison table of MemVerse: Multimodal Memory for Lifelong Learning Agents (R@k)",
    ISSUE_9: "github.com/xuguohai/X-CLIP issue 9 (R@1)",
}
"""What `PaperResult.confirmed_by` stands for."""


@dataclass(frozen=True)
class PaperResult:
    """One direction of one row of the paper. R@k in percent; None where the paper's table has no such column.

    Attributes:
        table: Its number.
        confirmed_by: Keys of SOURCES.
    """

    dataset: str
    backbone: Backbone
    direction: Direction
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float | None
    median_rank: float | None
    mean_rank: float
    table: int
    confirmed_by: tuple[str, ...]

    @property
    def is_confirmed(self) -> bool:
        """Whether the figures were read in a text; others must not be shown as the paper's."""
        return bool(self.confirmed_by)


def _brief(
    dataset: str, backbone: Backbone, direction: Direction, figures: tuple[float, float, float], *texts: str
) -> PaperResult:
    """A row of the tables 2 to 5, which give R@1, R@5 and the mean rank."""
    recall_at_1, recall_at_5, mean_rank = figures
    table = {"msvd": 2, "lsmdc": 3, "didemo": 4, "activitynet": 5}[dataset]
    return PaperResult(
        dataset,
        backbone,
        direction,
        recall_at_1,
        recall_at_5,
        None,
        None,
        mean_rank,
        table,
        (LATEX, *texts),
    )


_TO_VIDEO: Direction = "text to video"
_TO_TEXT: Direction = "video to text"
_B32: Backbone = "ViT-B/32"
_B16: Backbone = "ViT-B/16"
_MSRVTT = "msrvtt-9k"

PAPER_RESULTS = (
    PaperResult(_MSRVTT, _B32, _TO_VIDEO, 46.1, 73.0, 83.1, 2.0, 13.2, 1, (LATEX, TAME)),
    PaperResult(_MSRVTT, _B32, _TO_TEXT, 46.8, 73.3, 84.0, 2.0, 9.1, 1, (LATEX, TAME, DREAM)),
    PaperResult(_MSRVTT, _B16, _TO_VIDEO, 49.3, 75.8, 84.8, 2.0, 12.2, 1, (LATEX, ABSTRACT, VEDJE, MEMVERSE)),
    PaperResult(_MSRVTT, _B16, _TO_TEXT, 48.9, 76.8, 84.5, 2.0, 8.1, 1, (LATEX, VEDJE, MEMVERSE)),
    _brief("msvd", _B32, _TO_VIDEO, (47.1, 77.8, 9.5), TAME, DREAM),
    _brief("msvd", _B32, _TO_TEXT, (60.9, 87.8, 4.7), DREAM, ISSUE_9),
    _brief("msvd", _B16, _TO_VIDEO, (50.4, 80.6, 8.4), ABSTRACT, VEDJE),
    _brief("msvd", _B16, _TO_TEXT, (66.8, 90.4, 4.2), VEDJE),
    _brief("lsmdc", _B32, _TO_VIDEO, (23.3, 43.0, 56.0), TAME),
    _brief("lsmdc", _B32, _TO_TEXT, (22.5, 42.2, 50.7)),
    _brief("lsmdc", _B16, _TO_VIDEO, (26.1, 48.4, 46.7), ABSTRACT),
    _brief("lsmdc", _B16, _TO_TEXT, (26.9, 46.2, 41.9)),
    _brief("didemo", _B32, _TO_VIDEO, (45.2, 74.0, 14.6), TAME),
    _brief("didemo", _B32, _TO_TEXT, (43.1, 72.2, 10.9)),
    _brief("didemo", _B16, _TO_VIDEO, (47.8, 79.3, 12.6), ABSTRACT, VEDJE),
    _brief("didemo", _B16, _TO_TEXT, (47.8, 76.8, 10.5), VEDJE),
    _brief("activitynet", _B32, _TO_VIDEO, (44.3, 74.1, 7.9), TAME),
    _brief("activitynet", _B32, _TO_TEXT, (43.9, 73.9, 7.6), DREAM),
    _brief("activitynet", _B16, _TO_VIDEO, (46.2, 75.5, 6.8), ABSTRACT, VEDJE),
    _brief("activitynet", _B16, _TO_TEXT, (46.4, 75.9, 6.4), VEDJE),
)


def paper_results(dataset: str, backbone: Backbone | None = None) -> list[PaperResult]:
    """The paper's rows to print with ours: of one backbone, or of both where it is None.

    The paper trains on the 9k split of MSR-VTT; `msrvtt-7k` has the same test set and shows the same rows.
    Empty for a data set that the paper does not have.
    """
    name = _MSRVTT if dataset == "msrvtt-7k" else dataset
    return [row for row in PAPER_RESULTS if row.dataset == name and backbone in (None, row.backbone)]


def backbone_of(config: XClipConfig) -> Backbone | None:
    """Which of the paper's two backbones a model has, by the size of its vision tower; None for neither."""
    vision = config.clip["vision_cfg"]
    if (vision.get("width"), vision.get("layers")) != (768, 12) or config.image_size != 224:
        return None
    backbones: dict[object, Backbone] = {32: "ViT-B/32", 16: "ViT-B/16"}
    return backbones.get(vision.get("patch_size"))
