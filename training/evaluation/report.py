"""An evaluation as a table for the terminal and as JSON for programs."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model import XClip
from training.data.frames import FrameRecipe
from training.datasets.split import Split
from training.evaluation.evaluation import Evaluation, Row
from training.evaluation.metrics import RankStatistics
from training.evaluation.paper_results import (
    SOURCES,
    Backbone,
    PaperResult,
    backbone_of,
    paper_results,
)

FORMAT = "xclip-search-evaluation/1"

_PACKAGES = ("xclip-search", "torch", "open_clip_torch", "numpy", "av", "decord", "pillow")


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation with all that its figures depend on.

    Attributes:
        warnings: Of the preparation, such as clips left out.
        backbone: None for neither of the paper's.
    """

    evaluation: Evaluation
    split: Split
    model_spec: str
    model_fingerprint: str
    model_config: Mapping[str, Any]
    recipe: FrameRecipe
    backbone: Backbone | None
    device: str
    warnings: tuple[str, ...] = ()

    @property
    def paper(self) -> list[PaperResult]:
        """The paper's rows for this data set: of the model's backbone, or of both where it has neither.

        None for another split than the test.
        """
        return paper_results(self.split.dataset, self.backbone) if self.split.name == "test" else []


def make_report(
    evaluation: Evaluation,
    split: Split,
    model: XClip,
    model_spec: str,
    recipe: FrameRecipe,
    warnings: Sequence[str] = (),
) -> EvaluationReport:
    """Gather what the report says of a model."""
    return EvaluationReport(
        evaluation,
        split,
        model_spec,
        model.fingerprint,
        json.loads(model.config.to_json()),
        recipe,
        backbone_of(model.config),
        str(model.device),
        tuple(warnings),
    )


def to_json(report: EvaluationReport) -> str:
    """The report as JSON; docs/evaluation.md says what each field means."""
    split, recipe = report.split, asdict(report.recipe)
    resizing = recipe.pop("resizing")
    values = {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "dataset": split.dataset,
        "split": split.name,
        "protocol": "several texts a clip" if split.has_several_texts_per_clip else "one text a clip",
        "num_texts": len(split.texts),
        "num_clips": len(split.clips),
        "num_pairs_scored": len(split.texts) * len(split.clips),
        "missing_clips": list(split.missing),
        "model": {
            "spec": report.model_spec,
            "fingerprint": report.model_fingerprint,
            "backbone": report.backbone,
            "config": report.model_config,
        },
        "frames": {**recipe, **resizing},
        "rows": [_row_to_dict(row) for row in report.evaluation.rows],
        "paper": [asdict(row) for row in report.paper],
        "paper_sources": {
            key: text for key, text in SOURCES.items() if any(key in row.confirmed_by for row in report.paper)
        },
        "warnings": [*report.warnings, *report.evaluation.warnings],
        "seconds": {stage: round(value, 3) for stage, value in report.evaluation.seconds.items()},
        "device": report.device,
        "software": {"python": platform.python_version(), **dict(_versions())},
    }
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def print_report(report: EvaluationReport, console: Console) -> None:
    """The table with the paper's rows below ours, then what must be known of it."""
    split = report.split
    left_out = f", {len(split.missing)} left out" if split.missing else ""
    console.print(
        f"[bold]{escape(str(split))}[/]: {len(split.texts)} texts, {len(split.clips)} clips"
        f"{left_out}; {escape(report.model_spec)} ({report.model_fingerprint[:12]})",
        highlight=False,
    )
    for direction in ("text to video", "video to text"):
        console.print(_table(report, direction))
    for text in (*report.warnings, *report.evaluation.warnings):
        console.print(f"[yellow]warning: {escape(text)}", highlight=False)
    for text in _notes(report):
        console.print(f"[dim]{escape(text)}", highlight=False)


def _table(report: EvaluationReport, direction: str) -> Table:
    table = Table(title=direction, title_justify="left", title_style="bold")
    table.add_column("ranking", overflow="fold")
    for name in ("R@1", "R@5", "R@10", "median", "mean rank"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.evaluation.rows:
        if row.direction != direction:
            continue
        label = row.label if row.servable else f"{row.label} *"
        table.add_row(escape(label), *_figures(row.metrics))
        if row.metrics.num_tied_queries:  # Ties leave the order open: both extremes are shown.
            table.add_row("  if ties rank first", *_figures(row.metrics.optimistic), style="yellow")
            table.add_row("  if ties rank last", *_figures(row.metrics.pessimistic), style="yellow")
    paper = [row for row in report.paper if row.direction == direction]
    if paper:
        table.add_section()
    for one in paper:
        mark = "" if one.is_confirmed else " (not confirmed)"
        table.add_row(
            f"paper, {one.backbone}, its table {one.table}{mark}",
            *(
                _figure(value)
                for value in (
                    one.recall_at_1,
                    one.recall_at_5,
                    one.recall_at_10,
                    one.median_rank,
                    one.mean_rank,
                )
            ),
            style="cyan",
        )
    return table


def _figures(statistics: RankStatistics) -> tuple[str, ...]:
    return tuple(
        _figure(value)
        for value in (
            statistics.recall_at_1,
            statistics.recall_at_5,
            statistics.recall_at_10,
            statistics.median_rank,
            statistics.mean_rank,
        )
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _notes(report: EvaluationReport) -> Iterator[str]:
    recipe = report.recipe
    rule = "the official rule" if recipe.rule == "official" else "time"
    rate = f"{recipe.slice_mode} of {recipe.frames_per_second:g} a second"
    yield f"up to {recipe.num_frames} frames a clip, {rate}, by {rule}"
    found = [
        f"{row.parameters['candidate_recall']:.1f} % of {row.parameters['num_candidates']}"
        for row in report.evaluation.rows
        if row.kind == "two-stage"
    ]
    if found:
        yield f"texts whose own clip is among their candidates: {', '.join(found)}"
    labels: dict[str, list[str]] = {}
    for row in report.evaluation.rows:
        if row.note and row.label not in labels.setdefault(row.note, []):
            labels[row.note].append(row.label)
    for note, ours in labels.items():
        yield f"{' and '.join(ours)}: {note}"
    if any(not row.servable for row in report.evaluation.rows):
        yield "* not servable: it uses test queries other than the one that is ranked"
    if report.paper and report.split.dataset == "msrvtt-7k":
        yield "the paper's MSR-VTT model is trained on the 9k split; the test set is the same"
    if report.paper and report.backbone is None:
        yield "this model has neither of the paper's backbones; both are shown"


def _row_to_dict(row: Row) -> dict[str, Any]:
    return {**asdict(row), "parameters": dict(row.parameters)}


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
