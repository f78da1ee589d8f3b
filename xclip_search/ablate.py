"""`xclip-search ablate`. Heavy imports happen inside the command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xclip_search.console import FAILED, DeviceOption, echo, errors_explained, make_app, progress_bars

if TYPE_CHECKING:
    from training.ablation.runner import RunOptions
    from training.ablation.variants import RunPlan

app = make_app()

STANDARD_SEEDS = 3
_SPEED_SECONDS = 900.0
"""A run ends with its evaluation, which counts no steps."""


@app.command()
def ablate(
    output: Annotated[Path, typer.Option(help="Corpus, starting point, records, tables and plot.")],
    tables: Annotated[
        str | None,
        typer.Option(
            help="Some of: scorers, scores, aggregations, temperatures, temporal.", show_default="all"
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Times that each variant is trained.", show_default="3")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Variants trained concurrently; each takes about 1.5 GB.")
    ] = 2,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Optimizer steps of a run, rounded up to whole epochs.", show_default="the recipe's"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A miniature of everything, in seconds; its figures mean nothing.")
    ] = False,
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="Only make the corpus, the starting point and the decoded frames."),
    ] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep every trained model in OUTPUT/runs.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train and evaluate variants of X-CLIP on the drawn corpus, next to the paper's own tables.

    An interrupted command resumes: finished runs are not repeated. docs/ablations.md has the method and
    the findings. Exit status: 0 all runs are done, 1 some failed (each is named), 2 wrong use, 130 stopped by
    Ctrl-C.
    """
    with errors_explained(f"the same command continues with {output}", failed=FAILED):
        from training.ablation.report import write_reports
        from training.ablation.runner import RunOptions, prepare_folder
        from training.ablation.settings import Folders, claim_folder, quick_settings, standard_settings
        from training.ablation.variants import distinct_variants, plan_runs, select_tables

        chosen = select_tables(None if tables is None else [one.strip() for one in tables.split(",")])
        settings = quick_settings() if quick else standard_settings()
        if steps is not None:
            settings = settings.with_steps(steps)
        claim_folder(output, settings)
        folders = Folders(output)
        num_processors = os.cpu_count() or 1
        with progress_bars() as on_progress:
            num_processes = 1 if quick else min(num_processors, max(2, jobs))
            prepare_folder(folders, settings, num_processes, on_progress)
        if prepare:
            echo(f"{folders.corpus} and {folders.start} are ready")
            return
        plans = plan_runs(distinct_variants(chosen), seeds or (1 if quick else STANDARD_SEEDS))
        options = RunOptions(settings, folders, max(1, num_processors // jobs), device, keep_models)
        failures = _run(plans, options, jobs)
        if written := write_reports(chosen, plans, settings, folders, failures):
            echo(", ".join(map(str, written)))
    if failures:
        for run, reason in failures.items():
            echo(f"failed: {run}: {reason}", err=True)
        raise typer.Exit(FAILED)


def _run(plans: tuple[RunPlan, ...], options: RunOptions, jobs: int) -> dict[str, str]:
    """Do what is not done; returns the reasons of runs that failed."""
    from training.ablation.runner import run_grid

    pending = [plan for plan in plans if not options.folders.record(plan.name).is_file()]
    num_steps = options.settings.num_steps
    failures: dict[str, str] = {}
    steps: dict[str, int] = {}
    num_ended = len(plans) - len(pending)
    with progress_bars(speed_seconds=_SPEED_SECONDS) as on_progress:

        def show() -> None:
            facts = f"{num_ended} of {len(plans)} runs done"
            if failures:
                facts += f", {len(failures)} failed"
            on_progress("steps", sum(steps.values()), len(pending) * num_steps, facts)

        def on_steps(plan: RunPlan, num_done: int) -> None:
            steps[plan.name] = num_done
            show()

        def on_end(plan: RunPlan, reason: str | None) -> None:
            nonlocal num_ended
            num_ended += 1
            steps[plan.name] = num_steps
            if reason is not None:
                failures[plan.name] = reason
            show()

        show()
        if pending:
            run_grid(pending, options, jobs, on_steps, on_end)
    return failures
