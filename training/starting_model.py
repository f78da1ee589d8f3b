"""The model that training starts from: CLIP with new parts above it, or an X-CLIP to go on from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch

from model import XClip, XClipConfig
from model.errors import CheckpointError, ShapeError
from training.config import ModelChoices
from training.errors import ConfigError
from training.scorers import apply_scorer, find_scorer, prepare_model


@dataclass(frozen=True)
class StartingModel:
    """A model to train, which of its parameters the scorer leaves alone, and what a person should know."""

    model: XClip
    fixed_parameters: Collection[str]
    notes: Sequence[str] = ()


def starting_model(
    choices: ModelChoices, texts: Sequence[str], seed: int = 0, device: str = "auto"
) -> StartingModel:
    """Load `choices.start` and make of it a model of the sizes and the scorer that `choices` name.

    A start without temporal transformer and with identity matrices is plain CLIP: its towers are kept, and
    what is above them begins as in official training (`XClip.initialize_from_clip`): frame positions and
    temporal blocks as copies of the text tower's, AOSM as the identity. Where the text tower does not fit
    (another width than D, too few blocks), the temporal transformer begins at random, and a note says so.
    Any other start is a checkpoint whose sizes must be those of `choices`; all of its weights are kept.

    texts: captions of the training split, in which scorers that weigh words count them.
    seed: of random weights. Raises ConfigError, model.SpecError, model.CheckpointError.
    """
    loaded = XClip.load(choices.start, "cpu")
    plain = is_plain_clip(loaded)
    config = trained_config(choices, loaded.config, plain)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = XClip(config)
    notes = []
    if plain:
        model.clip.load_state_dict(loaded.clip.state_dict())
        try:
            model.initialize_from_clip()
        except ShapeError as error:
            # The matrices of AOSM are the identity already.
            notes.append(f"{error}: it begins at random")
    else:
        known = loaded.state_dict()
        weights = {name: known.get(name, tensor) for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)  # Word weights alone may be new, and are counted below.
    weighs_words = config.word_weighting != "uniform"
    fixed = prepare_model(choices.scorer, model, model.tokenize(texts) if weighs_words else None)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return StartingModel(model.to(torch.device(device)), fixed, tuple(notes))


def is_plain_clip(model: XClip) -> bool:
    """Whether a model is its towers and nothing else: no temporal transformer, all matrices the identity."""
    return model.temporal is None and all(
        torch.equal(matrix, torch.eye(len(matrix), device=matrix.device))
        for matrix in model.matrices.parameters()
    )


def trained_config(choices: ModelChoices, start: XClipConfig, plain: bool) -> XClipConfig:
    """What the config of the model to train is. plain: whether the start is plain CLIP.

    Raises ConfigError where sizes do not fit the start, or contradict the scorer.
    """
    scorer = find_scorer(choices.scorer)
    if scorer.temporal and not choices.temporal_layers:
        raise ConfigError(
            f"[model].temporal_layers: the scorer {scorer.name} has a temporal transformer, so not 0"
        )
    try:
        config = replace(
            start,
            num_words=choices.num_words,
            num_frames=choices.num_frames,
            temporal_layers=choices.temporal_layers,
            mask_padding=choices.mask_padding,
            temperature=choices.temperature,
            word_weighting="uniform",
            description=f"trained from {choices.start}",
        )
    except CheckpointError as error:
        raise ConfigError(f"[model]: {error}") from None
    config = apply_scorer(
        choices.scorer, config, score_names=choices.score_names, aggregation=choices.aggregation
    )
    for name in ("num_words", "num_frames", "temporal_layers") if not plain else ():
        if getattr(config, name) != getattr(start, name):
            raise ConfigError(
                f"[model].{name}: the checkpoint {choices.start} has {getattr(start, name)}, so"
                f" {getattr(config, name)} does not fit; only plain CLIP weights take any size"
            )
    return config
