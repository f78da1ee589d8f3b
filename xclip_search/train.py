"""`xclip-search train`. Heavy imports happen inside the command."""

from __future__ import annotations

import json
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from training.config import TrainingConfig
    from training.loop.run_directory import Existing
    from xclip_search.train_display import TrainingDisplay

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

FAILED, WRONG_USE = 1, 2
"""Exit statuses; 0 where all is well; 130 and 143 after Ctrl-C and SIGTERM."""


@app.command()
def train(
    config: Annotated[
        str | None,
        typer.Argument(help="A TOML file, or the name of a config that ships with us (--list)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The run directory.", show_default="runs/ and the config's name"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the data set; sets data.directory.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of its videos; sets data.videos.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change one value; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; CONFIG may be left out.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the run that is there.")] = False,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: GPUs where there are any.")
    ] = "auto",
    list_configs: Annotated[bool, typer.Option("--list", help="List the configs that ship with us.")] = False,
) -> None:
    """Train a model: one config, one run directory, checkpoints that can be resumed.

    Several processes: torchrun --nproc-per-node N -m xclip_search train CONFIG --output DIR. The batch size
    of the config is that of all processes together. docs/training.md tells the rest.
    Exit status: 0 done, 1 failed, 2 wrong use, 130 or 143 stopped by Ctrl-C or SIGTERM.
    """
    if list_configs:
        _list_configs()
        return
    chosen = _find(config, output, data, videos, changes or [], resume, overwrite)
    directory = output or Path("runs") / Path(config or "").name.removesuffix(".toml")
    with _explained(directory) as show:
        from training.loop.trainer import train as run

        existing: Existing = "resume" if resume else "overwrite" if overwrite else "refuse"
        result = run(chosen, directory, existing=existing, device=device, on_event=show)
        show.finish(result)


def _find(
    config: str | None,
    output: Path | None,
    data: Path | None,
    videos: Path | None,
    changes: list[str],
    resume: bool,
    overwrite: bool,
) -> TrainingConfig:
    from training.config import find_config
    from training.errors import ConfigError

    if resume and overwrite:
        _stop("error: --resume keeps a run and --overwrite removes it: choose one", WRONG_USE)
    if config is None:
        if not resume or output is None:
            _stop(
                "error: which config? A TOML file or a name of --list; or --resume with --output", WRONG_USE
            )
        config = str(output / "config.toml")
    for field, folder in (("directory", data), ("videos", videos)):
        if folder is not None:
            changes = [*changes, f"data.{field}={json.dumps(str(folder))}"]
    try:
        return find_config(config, changes)
    except ConfigError as error:
        _stop(f"error: {error}", WRONG_USE)


@contextmanager
def _explained(directory: Path) -> Iterator[TrainingDisplay]:
    """Show progress; turn what this project refuses into one message and an exit status."""
    from rich.console import Console
    from torch import distributed

    from model.errors import ModelError, SpecError
    from training.errors import ConfigError, TrainingError
    from training.loop.stopping import TrainingStoppedError
    from xclip_search.train_display import TrainingDisplay

    speaks = distributed.get_node_local_rank(fallback_rank=0) == 0
    command = ["xclip-search", "train", "--output", str(directory), "--resume"]
    go_on = f"go on with: {shlex.join(command)}"
    try:
        with TrainingDisplay(Console(quiet=not speaks)) as show, warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: show.note(str(message))
            yield show
    except TrainingStoppedError as stopped:
        _stop(f"{stopped}\n{go_on}", 128 + stopped.signal_number, speaks)
    except KeyboardInterrupt:
        _stop(f"stopped at once\n{go_on}", 130, speaks)
    except (ConfigError, SpecError) as error:
        _stop(f"error: {error}", WRONG_USE, speaks)
    except (TrainingError, ModelError) as error:
        _stop(f"error: {error}", FAILED, speaks)
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _stop(f"error: {told}", FAILED, speaks)


def _stop(message: str, status: int, speaks: bool = True) -> NoReturn:
    if speaks:
        typer.echo(message, err=True)
    raise typer.Exit(status)


def _list_configs() -> None:
    from rich.console import Console
    from rich.table import Table

    from training.config import find_config, shipped_configs

    table = Table(box=None, pad_edge=False)
    for title in ("config", "starts from", "words", "frames", "epochs", "batch size"):
        table.add_column(
            title, justify="left" if title in ("config", "starts from") else "right", no_wrap=True
        )
    for name in shipped_configs():
        config = find_config(name)
        numbers = (
            config.model.num_words,
            config.model.num_frames,
            config.training.epochs,
            config.training.batch_size,
        )
        table.add_row(name, config.model.start, *map(str, numbers))
    Console(width=120).print(table)
