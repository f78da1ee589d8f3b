"""X-CLIP and the baselines it is compared with, each as a configuration of the same network.

A scorer says which config fields it sets and which weights it leaves alone. All else, training, evaluation,
saving, loading and serving, is the same code for all of them. Some weigh words by their frequency in the
captions of the training set (`inverse_document_frequencies`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.config import XClipConfig
from model.errors import CheckpointError
from model.score_names import SCORE_NAMES
from training.errors import ConfigError

if TYPE_CHECKING:
    from model.xclip import XClip


def inverse_document_frequencies(
    input_ids: Tensor, vocabulary_size: int, real: Tensor | None = None
) -> Tensor:
    """log((1 + T) / (1 + captions that hold the token)) of every token, float32 [vocabulary_size].

    A caption is a document (Spärck Jones 1972). Start and end, which every caption holds, weigh 0, so only
    words are left; a token that no caption holds weighs most. The added ones, as in scikit-learn's
    `TfidfTransformer(smooth_idf=True)`, keep that finite.

    Args:
        input_ids: int64 [T, W], captions as the model's tokenizer gives them.
        vocabulary_size: One more than the highest id.
        real: bool [T, W], false for padding, which does not count; by default, as CLIP's tokenizer has it,
            what stands after the first end token, the highest id.

    Raises:
        ValueError: There are no captions, or an id lies outside the vocabulary.
    """
    if not len(input_ids):
        raise ValueError("no captions to count words in")
    if int(input_ids.min()) < 0 or int(input_ids.max()) >= vocabulary_size:
        raise ValueError(f"token ids must be within 0..{vocabulary_size - 1}")
    if real is None:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        real = positions <= input_ids.argmax(dim=1, keepdim=True)  # [T, W]
    captions = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)
    once_a_caption = torch.unique(captions[real] * vocabulary_size + input_ids[real])
    num_captions = torch.bincount(once_a_caption % vocabulary_size, minlength=vocabulary_size)
    holding = 1 + num_captions.double()
    # A tensor over a tensor: a number over one is times its reciprocal, which may miss 1 by a rounding error.
    return torch.log(torch.full_like(holding, 1 + len(input_ids)) / holding).float()


OFFICIAL_TEMPORAL_LAYERS = 4
"""`--cross_num_hidden_layers` of CLIP4Clip and X-CLIP (main_task_retrieval.py, main_xclip.py)."""


@dataclass(frozen=True)
class Scorer:
    """One way to score.

    Attributes:
        name: What configs call it.
        description: One line.
        source: Paper, and code where there is some.
        changes: The fields of `XClipConfig` that it sets, on top of the paper's for those of scoring.
        temporal: Whether it has a temporal transformer; None leaves that to the config.
        identity: Matrices that stay the identity, because the method has no such matrix.
        needs_training: False for one that is evaluated with CLIP's own weights; all its parameters stay
            fixed.
    """

    name: str
    description: str
    source: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    temporal: bool | None = None
    identity: tuple[str, ...] = ()
    needs_training: bool = True


_CLIP4CLIP = "Luo et al., CLIP4Clip, arXiv:2104.08860, github.com/ArrowLuo/CLIP4Clip"

SCORERS: Mapping[str, Scorer] = MappingProxyType(
    {
        scorer.name: scorer
        for scorer in (
            Scorer(
                "xclip",
                "mean of the four scores, aggregated by attention (AOSM)",
                "Ma et al., X-CLIP, arXiv:2207.07285, github.com/xuguohai/X-CLIP",
            ),
            Scorer(
                "clip",
                "CLIP without training: sentence with the mean of the frames",
                "Portillo-Quintero et al., arXiv:2102.12443, `CLIP-straight` in X-CLIP's tables; also the"
                f" starting point of {_CLIP4CLIP}",
                {"score_names": ("video_sentence",)},
                temporal=False,
                identity=("global_matrix",),
                needs_training=False,
            ),
            Scorer(
                "clip4clip-meanP",
                "sentence with the mean of the frames, trained",
                f"{_CLIP4CLIP}, `sim_header` meanP",
                {"score_names": ("video_sentence",)},
                temporal=False,
                identity=("global_matrix",),
            ),
            Scorer(
                "clip4clip-seqTransf",
                "sentence with the mean of the frames after a temporal transformer, trained",
                f"{_CLIP4CLIP}, `sim_header` seqTransf",
                {"score_names": ("video_sentence",)},
                temporal=True,
                identity=("global_matrix",),
            ),
            Scorer(
                "filip",
                "token-wise maximum: each word with its best frame and each frame with its best word",
                "Yao et al., FILIP, arXiv:2111.07783, its cross-modal late interaction",
                {"score_names": ("frame_word",), "aggregation": "mean-max", "mask_padding": True},
                temporal=False,
                identity=("local_matrix",),
            ),
            Scorer(
                "taco",
                "sentence with video, and each word with its best frame, rare words counting more",
                "Yang et al., TACo, arXiv:2108.09980, section 3.3, equations 3 and 4",
                {
                    "score_names": ("video_sentence", "frame_word"),
                    "aggregation": "mean-max",
                    "word_weighting": "inverse-document-frequency",
                    "frame_word_sides": "words",
                    "mask_padding": True,
                },
                identity=("global_matrix", "local_matrix"),
            ),
        )
    }
)

_OF_THE_PAPER: Mapping[str, Any] = MappingProxyType(
    {
        "score_names": SCORE_NAMES,
        "aggregation": "attention",
        "word_weighting": "uniform",
        "frame_word_sides": "both",
    }
)


def find_scorer(name: str) -> Scorer:
    """The scorer of that name.

    Raises:
        ConfigError: There is none; the message lists all.
    """
    if name not in SCORERS:
        raise ConfigError(f"unknown scorer {name!r}; there are {', '.join(SCORERS)}")
    return SCORERS[name]


def apply_scorer(
    name: str, config: XClipConfig, overrides: Mapping[str, Any] = MappingProxyType({})
) -> XClipConfig:
    """`config` with the choices of scorer `name`, and over those the overrides.

    What neither sets stays as `config` has it: sizes, towers, padding, temperature, temporal layers. A scorer
    with a temporal transformer gives a config without one the official four layers, or as many as the text
    tower has if that is fewer.

    Args:
        name: In SCORERS.
        config: What to change.
        overrides: Values of fields of `XClipConfig`; None for the scorer's.

    Raises:
        ConfigError: An unknown scorer or choices that make no model.

    >>> apply_scorer("filip", XClipConfig.tiny(), {"mask_padding": False}).aggregation
    'mean-max'
    """
    scorer = find_scorer(name)
    changes = {**_OF_THE_PAPER, **scorer.changes}
    if scorer.temporal is False:
        changes["temporal_layers"] = 0
    elif scorer.temporal and not config.temporal_layers:
        num_text_layers = int(config.clip["text_cfg"].get("layers", OFFICIAL_TEMPORAL_LAYERS))
        changes["temporal_layers"] = min(OFFICIAL_TEMPORAL_LAYERS, num_text_layers)
    changes |= {field: value for field, value in overrides.items() if value is not None}
    changes["score_names"] = _in_order(changes["score_names"])
    try:
        return replace(config, **changes)
    except CheckpointError as error:
        raise ConfigError(f"scorer {scorer.name}: {error}") from None


def _in_order(score_names: Sequence[str]) -> tuple[str, ...]:
    """The names in the paper's order: the same scores make the same config, hence the same fingerprint."""
    if len(set(score_names)) != len(score_names):
        raise ConfigError(f"a score is named twice in {list(score_names)}")
    if unknown := sorted(set(score_names) - set(SCORE_NAMES)):
        raise ConfigError(f"unknown scores {unknown}; there are {', '.join(SCORE_NAMES)}")
    return tuple(name for name in SCORE_NAMES if name in score_names)


def fixed_parameters(name: str, model: XClip) -> frozenset[str]:
    """Which of `model.named_parameters()` do not learn under scorer `name`.

    Matrices that stay the identity, parameters that the total does not depend on (their gradient is None),
    and all where the scorer needs no training.

    Raises:
        ConfigError: An unknown scorer.
    """
    scorer = find_scorer(name)
    if not scorer.needs_training:
        return frozenset(parameter for parameter, _ in model.named_parameters())
    config = model.config
    learning = model.matrices.matrices_in_use() - set(scorer.identity)
    fixed = {
        f"matrices.{matrix}" for matrix, _ in model.matrices.named_parameters() if matrix not in learning
    }
    if model.temporal is not None and not {"video_sentence", "video_word"} & set(config.score_names):
        fixed |= {f"temporal.{parameter}" for parameter, _ in model.temporal.named_parameters()}
    return frozenset(fixed)


@torch.no_grad()
def prepare_model(name: str, model: XClip, input_ids: Tensor | None = None) -> frozenset[str]:
    """Ready `model`, of a config that `apply_scorer` made, for scorer `name`; returns `fixed_parameters`.

    Sets the matrices that stay the identity to it, whatever the model started from, and stores the word
    weights where the config has such. Parameters are not marked as fixed: hand what this returns to whatever
    trains.

    Args:
        input_ids: int64 [T, W], all captions to learn from; needed for those weights alone.

    Raises:
        ConfigError: An unknown scorer, or captions are needed and not given.
    """
    for matrix_name in find_scorer(name).identity:
        matrix: Tensor = getattr(model.matrices, matrix_name)
        matrix.copy_(torch.eye(len(matrix), device=matrix.device))
    if model.config.word_weighting != "uniform":
        if input_ids is None or not len(input_ids):
            raise ConfigError(f"scorer {name} weighs words by their frequency: it needs captions to count in")
        real = model.tokenizer.mask(input_ids)
        model.set_word_weights(inverse_document_frequencies(input_ids, model.vocabulary_size, real))
    return fixed_parameters(name, model)
