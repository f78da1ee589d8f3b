"""From runs to `results.json`, `tables.md` and `ablations.png`: our tables, each next to the paper's own.

Every figure is a mean with its sample standard deviation over seeds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.ablation.corpus import HELD_OUT_SETS, CorpusRecipe
from training.ablation.paper_tables import PaperFigures, PaperTable
from training.ablation.settings import AblationSettings, Folders, replace_text
from training.ablation.variants import FULL, RunPlan, Table, read_records
from training.errors import RunError
from training.evaluation.metrics import DIRECTIONS, FIGURES

METRICS = tuple(name for name in FIGURES if name != "median_rank")

Record = Mapping[str, Any]
"""The result of one variant with one seed, as `training.ablation.runner` writes it."""


@dataclass(frozen=True)
class Spread:
    """Mean of `num_seeds` values.

    Attributes:
        std: Their sample standard deviation, None for one value.
    """

    mean: float
    std: float | None
    num_seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n - 1) of at least one value."""
    return Spread(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
    )


@dataclass(frozen=True)
class SummaryRow:
    """A variant on one held-out set.

    Attributes:
        figures: Direction, then metric; empty where no run of it is there.
    """

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


def write_reports(
    tables: Sequence[Table],
    plans: Sequence[RunPlan],
    settings: AblationSettings,
    folders: Folders,
    failures: Mapping[str, str],
) -> list[Path]:
    """Write the results of all runs that are done as JSON, Markdown and a plot; nothing where none is done.

    Args:
        failures: Run and its reason.

    Returns:
        The files.
    """
    records = read_records(plans, folders)
    if not records:
        return []
    names = list(HELD_OUT_SETS)
    files = [folders.output / name for name in ("tables.md", "results.json", "ablations.png")]
    facts = {
        "settings": settings.as_json(),
        "tables": [summary_as_json(table, names, records) for table in tables],
        "runs": records,
    }
    write_tables(files[0], tables, described_sets(settings.corpus), records, failures, preface(settings))
    replace_text(files[1], json.dumps(facts, indent=2) + "\n")
    draw_plot(files[2], tables, names, records)
    return files


def write_tables(
    path: Path,
    tables: Sequence[Table],
    held_out_sets: Mapping[str, str],
    records: Sequence[Record],
    failures: Mapping[str, str],
    preface: str,
) -> None:
    """Write the Markdown page.

    Args:
        held_out_sets: Name and description.
        failures: Run and its reason, listed where there are any.
    """
    parts = [f"# Ablations on the drawn corpus\n\n{preface}"]
    if failures:
        parts.append(
            "## Runs that failed\n\n" + "\n".join(f"- `{run}`: {why}" for run, why in failures.items())
        )
    for table in tables:
        parts.append(f"## {table.title}")
        for name, description in held_out_sets.items():
            rows = summarize(table, name, records)
            parts.append(f"Drawn corpus, {description}:\n\n{_our_table(rows, table.paper)}")
        parts.append(_paper_table(table.paper))
    replace_text(path, "\n\n".join(parts) + "\n")


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


def described_sets(corpus: CorpusRecipe) -> dict[str, str]:
    """The held-out sets, each with its description."""
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
            _shown(row.figures[direction][metric]) if row.figures else _NOTHING
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


def _shown(value: Spread) -> str:
    return f"{value.mean:.1f}" if value.std is None else f"{value.mean:.1f} ± {value.std:.1f}"


def _paper_table(paper: PaperTable) -> str:
    lines = [
        _line("row", *(f"T2V {one}" for one in _HEADINGS), *(f"V2T {one}" for one in _HEADINGS)),
        _line("---", *["---:"] * 8),
    ]
    lines += [
        _line(row.label, *_paper_cells(row.text_to_video), *_paper_cells(row.video_to_text))
        for row in paper.rows.values()
    ]
    text = f"The paper's {paper.title}:\n\n" + "\n".join(lines) + f"\n\nRead in the {paper.source}."
    return f"{text} {paper.note}" if paper.note else text


def _paper_cells(figures: PaperFigures) -> list[str]:
    values = (figures.recall_at_1, figures.recall_at_5, figures.recall_at_10, figures.mean_rank)
    return [_NOTHING if value is None else f"{value:.1f}" for value in values]


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


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
                {row: one.mean for row, one in enumerate(shown) if one is not None},
                {row: one.std or 0.0 for row, one in enumerate(shown) if one is not None},
                [_OURS_FULL if row.variant == FULL else _OURS for row in rows],
            )
            panel.set_title(f"{table.title}\ndrawn corpus, {name}", fontsize=9)
        paper = {
            row: table.paper.rows[variant.name].text_to_video.recall_at_1
            for row, (variant, _) in enumerate(table.rows)
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
    stds: Mapping[int, float],
    colours: Sequence[str],
) -> None:
    """Horizontal bars from zero, the first label on top; a row without a value stays empty."""
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    positions = list(values)
    panel.barh(
        positions,
        [values[position] for position in positions],
        xerr=[stds.get(position, 0.0) for position in positions] if stds else None,
        color=[colours[position] for position in positions],
        error_kw={"elinewidth": 1, "capsize": 2},
    )
    panel.set_yticks(range(len(labels)), labels, fontsize=8)
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.tick_params(axis="x", labelsize=8)
    panel.grid(axis="x", linewidth=0.4, alpha=0.6)
    panel.set_axisbelow(True)
    highest = max((values[position] + stds.get(position, 0.0) for position in positions), default=100.0)
    panel.set_xlim(0.0, max(1.0, 1.2 * highest))
    for position in positions:
        panel.annotate(
            f"{values[position]:.1f}",
            (values[position] + stds.get(position, 0.0), position),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
