"""`results.json` and `tables.md`: our tables, each beside the paper's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.ablation.corpus import CorpusRecipe
from training.ablation.paper_tables import PaperFigures, PaperTable
from training.ablation.settings import AblationSettings
from training.ablation.summary import (
    DIRECTIONS,
    METRICS,
    Record,
    Spread,
    SummaryRow,
    summarize,
    summary_as_json,
)
from training.ablation.variants import Table

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
