"""`results.json` and `tables.md`: our tables, each beside the paper's own.

Runs to rows: mean and sample standard deviation over seeds, for every table, set and direction.

`ablations.png`: one row of panels a table, our two held-out sets and the paper's figures side by side.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.ablation.corpus import CorpusRecipe
from training.ablation.paper_tables import PaperFigures, PaperTable
from training.ablation.settings import AblationSettings
from training.ablation.variants import FULL, Table
from training.errors import RunError

METRICS = ("recall_at_1", "recall_at_5", "recall_at_10", "mean_rank")
DIRECTIONS = ("text_to_video", "video_to_text")

Record = Mapping[str, Any]
"""What one variant with one seed left behind, as `training.ablation.runner` writes it."""


@dataclass(frozen=True)
class Spread:
    """mean of `num_seeds` values; deviation: their sample standard deviation, None for one value."""

    mean: float
    deviation: float | None
    num_seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n - 1) of at least one value."""
    return Spread(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
    )


@dataclass(frozen=True)
class SummaryRow:
    """A variant on one held-out set. figures: direction, then metric; empty where no run of it is there."""

    variant: str
    label: str
    num_seeds: int
    figures: Mapping[str, Mapping[str, Spread]]


def summarize(table: Table, held_out_set: str, records: Sequence[Record]) -> tuple[SummaryRow, ...]:
    """The rows of a table for one of the held-out sets, from all runs' records."""
    rows = []
    for variant, label in table.rows:
        results = [one["sets"][held_out_set] for one in records if one["variant"] == variant.name]
        figures = {
            direction: {
                metric: spread([float(result[direction][metric]) for result in results]) for metric in METRICS
            }
            for direction in (DIRECTIONS if results else ())
        }
        rows.append(SummaryRow(variant.name, label, len(results), figures))
    return tuple(rows)


def summary_as_json(table: Table, held_out_sets: Sequence[str], records: Sequence[Record]) -> dict[str, Any]:
    """A table as plain values: ours for each held-out set, and the paper's."""
    return {
        "name": table.name,
        "title": table.title,
        "sets": {name: [asdict(row) for row in summarize(table, name, records)] for name in held_out_sets},
        "paper": {
            "title": table.paper.title,
            "source": table.paper.source,
            "note": table.paper.note,
            "rows": {name: asdict(row) for name, row in table.paper.rows.items()},
        },
    }


_HEADINGS = ("R@1", "R@5", "R@10", "MnR")
_NOTHING = "-"


def write_results(
    path: Path,
    tables: Sequence[Table],
    held_out_sets: Sequence[str],
    records: Sequence[Record],
    settings: Any,
) -> None:
    """Write everything as JSON: settings, tables with their spreads, the paper's figures, and each run."""
    facts = {
        "settings": settings,
        "tables": [summary_as_json(table, held_out_sets, records) for table in tables],
        "runs": list(records),
    }
    _replace(path, json.dumps(facts, indent=2) + "\n")


def write_tables(
    path: Path,
    tables: Sequence[Table],
    held_out_sets: Mapping[str, str],
    records: Sequence[Record],
    failures: Mapping[str, str],
    preface: str,
) -> None:
    """Write the Markdown page.

    held_out_sets: name and what is said of it. failures: run and its reason, listed where there are any.
    """
    parts = [f"# Ablations on the drawn corpus\n\n{preface}"]
    if failures:
        parts.append(
            "## Runs that failed\n\n" + "\n".join(f"- `{run}`: {why}" for run, why in failures.items())
        )
    for table in tables:
        parts.append(f"## {table.title}")
        for name, told in held_out_sets.items():
            rows = summarize(table, name, records)
            parts.append(f"Drawn corpus, {told}:\n\n{_our_table(rows, table.paper)}")
        parts.append(_paper_table(table.paper))
    _replace(path, "\n\n".join(parts) + "\n")


def preface(settings: AblationSettings) -> str:
    """What a reader of the tables must know of how they were made."""
    corpus, training = settings.corpus, settings.config.training
    return (
        f"Each variant was trained for {settings.num_steps} steps of {training.batch_size} pairs on"
        f" {corpus.num_groups * corpus.group_size} drawn clips, all from the same towers, vision frozen;"
        " nothing was chosen by these figures. R@k in percent, MnR the mean rank from 1; T2V text to video,"
        " V2T video to text; mean ± sample standard deviation over seeds, which change the order of the"
        " training pairs. VS is video_sentence, VW video_word, SF sentence_frame, FW frame_word. The paper's"
        " figures are on MSR-VTT: compare the order of rows, not the values."
    )


def told_sets(corpus: CorpusRecipe) -> dict[str, str]:
    """The held-out sets and what is said of each."""
    return {
        "random": f"{corpus.num_held_out} held-out clips at random",
        "sibling-hard": f"{corpus.num_held_out} held-out clips in groups that differ in one thing only",
    }


def _our_table(rows: Sequence[SummaryRow], paper: PaperTable) -> str:
    lines = [
        _line(
            "variant",
            "seeds",
            *(f"T2V {one}" for one in _HEADINGS),
            *(f"V2T {one}" for one in _HEADINGS),
            "paper T2V R@1",
            "paper V2T R@1",
        ),
        _line("---", *["---:"] * 11),
    ]
    for row in rows:
        ours = [
            _told(row.figures[direction][metric]) if row.figures else _NOTHING
            for direction in DIRECTIONS
            for metric in METRICS
        ]
        theirs = paper.rows.get(row.variant)
        lines.append(
            _line(
                row.label,
                str(row.num_seeds),
                *ours,
                f"{theirs.text_to_video.recall_at_1:.1f}" if theirs else _NOTHING,
                f"{theirs.video_to_text.recall_at_1:.1f}" if theirs else _NOTHING,
            )
        )
    return "\n".join(lines)


def _told(value: Spread) -> str:
    return f"{value.mean:.1f}" if value.deviation is None else f"{value.mean:.1f} ± {value.deviation:.1f}"


def _paper_table(paper: PaperTable) -> str:
    lines = [
        _line("row", *(f"T2V {one}" for one in _HEADINGS), *(f"V2T {one}" for one in _HEADINGS)),
        _line("---", *["---:"] * 8),
    ]
    lines += [
        _line(row.label, *_paper_cells(row.text_to_video), *_paper_cells(row.video_to_text))
        for row in paper.rows.values()
    ]
    told = f"The paper's {paper.title}:\n\n" + "\n".join(lines) + f"\n\nRead in the {paper.source}."
    return f"{told} {paper.note}" if paper.note else told


def _paper_cells(figures: PaperFigures) -> list[str]:
    values = (figures.recall_at_1, figures.recall_at_5, figures.recall_at_10, figures.mean_rank)
    return [_NOTHING if value is None else f"{value:.1f}" for value in values]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _replace(path: Path, text: str) -> None:
    """The file appears under its name only when it is complete."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


_OURS, _OURS_FULL = "#9bb8d3", "#2f6ca3"
_PAPER, _PAPER_FULL = "#d9c39a", "#a87b1e"
_TITLE = (
    "Text to video, R@1 in percent\n"
    "bars: means over seeds; whiskers: one sample standard deviation each way; dark: the full model"
)
_BAR_INCHES, _PANEL_INCHES, _PANEL_WIDTH_INCHES = 0.25, 0.95, 4.1


def draw_plot(
    path: Path,
    tables: Sequence[Table],
    held_out_sets: Sequence[str],
    records: Sequence[Record],
) -> None:
    """Draw R@1 of text to video: bars are means over seeds, whiskers a sample standard deviation each way.

    The full model is darker. Figures of the paper are on MSR-VTT: compare the order of rows, not the heights.

    Raises:
        RunError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("plots need matplotlib: `make install` brings it, or pip install matplotlib") from None

    heights = [_PANEL_INCHES + _BAR_INCHES * len(table.rows) for table in tables]
    figure = Figure(
        figsize=(2.2 + _PANEL_WIDTH_INCHES * (len(held_out_sets) + 1), 0.8 + sum(heights)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    figure.suptitle(_TITLE, fontsize=11)
    panels = figure.subplots(
        len(tables), len(held_out_sets) + 1, squeeze=False, sharey="row", height_ratios=heights
    )
    for table, row_of_panels in zip(tables, panels, strict=True):
        labels = [label for _, label in table.rows]
        for name, panel in zip(held_out_sets, row_of_panels, strict=False):
            rows = summarize(table, name, records)
            shown = [row.figures["text_to_video"]["recall_at_1"] if row.figures else None for row in rows]
            _bars(
                panel,
                labels,
                {place: one.mean for place, one in enumerate(shown) if one is not None},
                {place: one.deviation or 0.0 for place, one in enumerate(shown) if one is not None},
                [_OURS_FULL if row.variant == FULL else _OURS for row in rows],
            )
            panel.set_title(f"{table.title}\ndrawn corpus, {name}", fontsize=9)
        paper = {
            place: table.paper.rows[variant.name].text_to_video.recall_at_1
            for place, (variant, _) in enumerate(table.rows)
            if variant.name in table.paper.rows
        }
        colours = [_PAPER_FULL if variant.name == FULL else _PAPER for variant in table.variants]
        _bars(row_of_panels[-1], labels, paper, {}, colours)
        row_of_panels[-1].set_title(f"the paper, {table.paper.title.split(',')[0]}\nMSR-VTT", fontsize=9)
    figure.savefig(path, dpi=110, format="png")


def _bars(
    panel: object,
    labels: Sequence[str],
    values: Mapping[int, float],
    deviations: Mapping[int, float],
    colours: Sequence[str],
) -> None:
    """Horizontal bars from zero, the first label on top; a place without a value stays empty."""
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    places = list(values)
    panel.barh(
        places,
        [values[place] for place in places],
        xerr=[deviations.get(place, 0.0) for place in places] if deviations else None,
        color=[colours[place] for place in places],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    panel.set_yticks(range(len(labels)), labels, fontsize=8)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(axis="x", linewidth=0.4, alpha=0.6)
    panel.set_axisbelow(True)
    highest = max((values[place] + deviations.get(place, 0.0) for place in places), default=100.0)
    panel.set_xlim(0.0, max(1.0, 1.2 * highest))
    for place in places:
        panel.annotate(
            f"{values[place]:.1f}",
            (values[place] + deviations.get(place, 0.0), place),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
