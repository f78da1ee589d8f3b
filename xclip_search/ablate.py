"""`xclip-search ablate`. Heavy imports happen inside the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

    from training.ablation.settings import AblationSettings, Folders
    from training.ablation.variants import RunPlan, Table

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130
"""Exit statuses; 0 where every run is done."""

STANDARD_SEEDS = 3


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
    jobs: Annotated[int, typer.Option(min=1, help="Variants trained at once; each takes about 1.5 GB.")] = 2,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Optimizer steps of a run, rounded up to whole epochs.", show_default="the recipe's"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A miniature of everything, in seconds; its figures say nothing.")
    ] = False,
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="Only make the corpus, the starting point and the decoded frames."),
    ] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Leave every trained model in OUTPUT/runs.")
    ] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")
    ] = "auto",
) -> None:
    """Train and judge what X-CLIP is made of on the drawn corpus, beside the paper's own tables.

    Called again, it goes on where it was: runs that are done are not done again. docs/ablations.md tells how
    it is done and what was found. Exit status: 0 all runs are done, 1 some failed (each is named), 2 wrong
    use, 130 stopped by Ctrl-C.
    """
    with _errors_explained(output):
        from training.ablation.settings import Folders, claim_folder, quick_settings, standard_settings
        from training.ablation.variants import select_tables

        chosen = select_tables(None if tables is None else [one.strip() for one in tables.split(",")])
        settings = quick_settings() if quick else standard_settings()
        if steps is not None:
            settings = settings.with_steps(steps)
        claim_folder(output, settings)
        folders = Folders(output)
        num_processors = os.cpu_count() or 1
        _prepare(folders, settings, min(num_processors, max(2, jobs)) if not quick else 1)
        if prepare:
            typer.echo(f"{folders.corpus} and {folders.start} are ready")
            return
        failures = _run(
            chosen,
            settings,
            folders,
            num_seeds=seeds or (1 if quick else STANDARD_SEEDS),
            jobs=jobs,
            num_threads=max(1, num_processors // jobs),
            device=device,
            keep_models=keep_models,
        )
    if failures:
        _stop("\n".join(f"failed: {run}: {reason}" for run, reason in failures.items()), FAILED)


def _prepare(folders: Folders, settings: AblationSettings, num_processes: int) -> None:
    from training.ablation.runner import prepare_folder

    with _progress() as progress:
        tasks = {}

        def show(what: str, num_done: int, num_all: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=num_all)
            progress.update(tasks[what], completed=num_done)

        prepare_folder(folders, settings, num_processes, show)


def _run(
    tables: tuple[Table, ...],
    settings: AblationSettings,
    folders: Folders,
    *,
    num_seeds: int,
    jobs: int,
    num_threads: int,
    device: str,
    keep_models: bool,
) -> dict[str, str]:
    """Do what is not done, then write the tables and the plot; returns the reasons of runs that failed."""
    from training.ablation.runner import WorkerOptions, run_grid
    from training.ablation.variants import distinct_variants, plan_runs

    plans = plan_runs(distinct_variants(tables), num_seeds)
    waiting = [plan for plan in plans if not folders.record(plan.name).is_file()]
    failures: dict[str, str] = {}
    with _progress() as progress:
        task = progress.add_task("", total=len(waiting) * settings.num_steps)
        steps: dict[str, int] = {}
        num_ended = 0

        def show() -> None:
            described = f"{len(plans) - len(waiting) + num_ended} of {len(plans)} runs"
            if failures:
                described += f", {len(failures)} failed"
            progress.update(task, completed=sum(steps.values()), description=described)

        def on_steps(plan: RunPlan, num_done: int) -> None:
            steps[plan.name] = num_done
            show()

        def on_end(plan: RunPlan, reason: str | None) -> None:
            nonlocal num_ended
            num_ended += 1
            steps[plan.name] = settings.num_steps
            if reason is not None:
                failures[plan.name] = reason
                progress.console.print(f"failed: {plan.name}: {reason}", markup=False)
            show()

        show()
        if waiting:
            options = WorkerOptions(settings, folders, num_threads, device, keep_models)
            run_grid(waiting, options, jobs, on_steps, on_end)
    _report(tables, settings, folders, plans, failures)
    return failures


def _report(
    tables: tuple[Table, ...],
    settings: AblationSettings,
    folders: Folders,
    plans: tuple[RunPlan, ...],
    failures: dict[str, str],
) -> None:
    from training.ablation.corpus import HELD_OUT_SETS
    from training.ablation.report import draw_plot, preface, told_sets, write_results, write_tables
    from training.ablation.variants import read_records

    records = read_records(plans, folders)
    if not records:
        return
    output, names = folders.output, list(HELD_OUT_SETS)
    write_results(output / "results.json", tables, names, records, settings.as_json())
    write_tables(
        output / "tables.md", tables, told_sets(settings.corpus), records, failures, preface(settings)
    )
    draw_plot(output / "ablations.png", tables, names, records)
    typer.echo(f"{output / 'tables.md'}, {output / 'results.json'}, {output / 'ablations.png'}")


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        speed_estimate_period=900.0,  # A run ends with its evaluation, which counts no steps.
    )


@contextmanager
def _errors_explained(output: Path) -> Iterator[None]:
    from model.errors import ModelError
    from training.errors import ConfigError, TrainingError

    try:
        yield
    except KeyboardInterrupt:
        _stop(f"stopped; the same command goes on with {output}", INTERRUPTED)
    except ConfigError as error:
        _stop(f"error: {error}", WRONG_USE)
    except (TrainingError, ModelError) as error:
        _stop(f"error: {error}", FAILED)
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _stop(f"error: {told}", FAILED)


def _stop(message: str, status: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(status)
