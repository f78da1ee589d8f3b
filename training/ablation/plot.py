"""`ablations.png`: one row of panels a table, our two held-out sets and the paper's figures side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from training.ablation.summary import Record, summarize
from training.ablation.variants import FULL, Table
from training.errors import RunError

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
