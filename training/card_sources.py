"""What a model card says, gathered from a run directory, a model directory and evaluation reports.

The shapes of `summary.json` (`training.run_summary`), `metrics.jsonl` (`training.trainer`) and of evaluation
reports (`training.evaluation.report`) are known here and nowhere else in what is published.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model import XClip
from training.errors import EvaluationError, RunError
from training.model_card import Direction, Figures, ModelCard, TrainingFacts

_FIGURES = ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank")
_DIRECTIONS: dict[Direction, str] = {"text to video": "text_to_video", "video to text": "video_to_text"}
_OF_THE_MACHINE = {"data.directory", "data.videos", "data.cache", "data.num_workers"}


def is_run(directory: Path) -> bool:
    """Whether a directory is of a training run, not of a model."""
    return (directory / "config.toml").is_file() and not (directory / "config.json").is_file()


def model_directory(directory: Path) -> Path:
    """Where the model lies: a run's best one, or the directory itself. Raises RunError without one."""
    if not is_run(directory):
        return directory
    if not (directory / "best").is_dir():
        raise RunError(f"{directory} is a training run without a best model yet")
    return directory / "best"


def card_text(
    directory: Path,
    model: XClip,
    repository: str,
    *,
    license: str | None = None,
    evaluations: Sequence[Path] = (),
) -> str:
    """The README.md to publish: the one in `directory` or beside the model, else one written by `make_card`.

    Raises RunError where there is one already and `license` or `evaluations` ask for another.
    """
    for folder in (directory, model_directory(directory)):
        path = folder / "README.md"
        if path.is_file():
            if license or evaluations:
                raise RunError(
                    f"{path} is published as it is: change it there, or remove it for a card made anew"
                )
            return path.read_text(encoding="utf-8")
    card = make_card(directory, model, repository, license=license or "other", evaluations=evaluations)
    return card.to_markdown()


def make_card(
    directory: Path,
    model: XClip,
    repository: str,
    *,
    license: str = "other",
    evaluations: Iterable[Path] = (),
) -> ModelCard:
    """The card of a model and, where `directory` is of its run, of the run.

    model: loaded from `model_directory(directory)`. evaluations: JSON reports of `xclip-search evaluate`.
    Raises RunError and EvaluationError where a file is not as it should be, or is of another model.
    """
    training, figures = read_run(directory, model.fingerprint) if is_run(directory) else (None, [])
    # A report says more than the run's own validation of the same split.
    known = {one.key: one for one in figures}
    for path in evaluations:
        for one in read_evaluation(path, model.fingerprint):
            chose = one.key in known and known[one.key].chose_the_epoch
            known[one.key] = Figures(**{**vars(one), "chose_the_epoch": chose})
    return ModelCard(
        repository,
        model.config,
        sum(parameter.numel() for parameter in model.parameters()),
        model.fingerprint,
        license,
        training,
        tuple(known.values()),
    )


def read_run(directory: Path, fingerprint: str) -> tuple[TrainingFacts, list[Figures]]:
    """What a run directory says of its best model.

    fingerprint: of that model. Raises RunError where the run is not done, damaged, or of another model.
    """
    path = directory / "summary.json"
    if not path.is_file():
        raise RunError(
            f"{directory} has no summary.json: the run is not done; push its best/ for a short card"
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["best"]["fingerprint"] != fingerprint:
            raise RunError(
                f"{path} is of another model than the one in best/, so its figures are not this one's"
            )
        config = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
        return _training_facts(summary, config), _validation_figures(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{directory} is not a training run that can be read: {error!r}") from None


def _training_facts(summary: Mapping[str, Any], config: Mapping[str, Any]) -> TrainingFacts:
    train, best = summary["train"], summary["best"]
    settings = {
        f"{section}.{name}": _without_folders(value)
        for section, values in config.items()
        for name, value in values.items()
        if section != "log" and f"{section}.{name}" not in _OF_THE_MACHINE
    }
    facts = {
        "steps": f"{summary['num_steps']:,}",
        "time": f"{summary['wall_seconds'] / 3600:.2f} hours",
        "processes": f"{summary['num_processes']} on {summary['device']}",
    }
    if train["num_missing_clips"]:
        facts["clips left out, their video missing"] = f"{train['num_missing_clips']:,}"
    return TrainingFacts(
        start=_without_folders(config["model"]["start"]),
        dataset=train["dataset"],
        split=train["split"],
        num_pairs=train["num_pairs"],
        num_clips=train["num_clips"],
        num_epochs=config["training"]["epochs"],
        best_epoch=best["epoch"],
        chosen_by=best["by"],
        settings=settings,
        facts=facts,
        versions=summary["versions"],
    )


def _validation_figures(summary: Mapping[str, Any]) -> list[Figures]:
    found = summary["best"]["validation"]
    if found is None:
        return []
    split = summary["validation"]
    return [
        Figures(
            split["dataset"],
            split["split"],
            direction,
            **{name: found[key][name] for name in _FIGURES},
            num_queries=found[key]["num_queries"],
            num_items=found["num_clips"],
            chose_the_epoch=True,
        )
        for direction, key in _DIRECTIONS.items()
    ]


def read_evaluation(path: Path, fingerprint: str) -> list[Figures]:
    """The exhaustive rows of a report that `xclip-search evaluate` wrote as JSON.

    fingerprint: of the model that the report must be of. Raises EvaluationError.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["model"]["fingerprint"] != fingerprint:
            raise EvaluationError(f"{path} is an evaluation of another model")
        found = [
            Figures(
                report["dataset"],
                report["split"],
                row["direction"],
                **{name: row["metrics"][name] for name in (*_FIGURES, "num_queries", "num_items")},
            )
            for row in report["rows"]
            if row["kind"] == "exhaustive"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(f"{path} is not a report of xclip-search evaluate: {error!r}") from None
    if not found:
        raise EvaluationError(f"{path} holds no row in which every pair was scored")
    return found


def _without_folders(value: object) -> str:
    """A setting as text. Of a path on somebody's machine the name alone is anyone's business."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if isinstance(value, bool):
        return text.lower()
    if re.match(r"[/\\~.]|[A-Za-z]:[/\\]", text):
        name = re.split(r"[/\\]", text.rstrip("/\\"))[-1]
        return f"{name} (a local path)"
    return text
