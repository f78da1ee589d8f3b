"""What the commands of this room share: options, exit statuses, and errors as one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

DAMAGED, WRONG_USE, SOME_FAILED, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses; 0 where all is well."""

GOES_ON = "what is in stays in, and the same command goes on from there"
"""What becomes of the work where adding videos ends early."""

IndexOption = Annotated[
    Path, typer.Option("--index", "-i", envvar="XCLIP_INDEX", help="The index directory.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def wrong_use_explained() -> Iterator[None]:
    """Errors that a person can do something about, as one line and an exit status."""
    from indexer.errors import BackupDamagedError, IndexDamagedError, IndexerError
    from model.errors import ModelError

    try:
        yield
    except (IndexDamagedError, BackupDamagedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(DAMAGED) from None
    except (IndexerError, ModelError, ValueError) as error:
        stop(str(error))
    except OSError as error:
        stop(explain(error))
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def trouble_explained(consequence: str) -> Iterator[None]:
    """A disk that refuses and an interruption as one line, with what became of the work."""
    from indexer.errors import IndexStorageError

    try:
        yield
    except OSError as error:
        stop(f"{explain(error)}; {consequence}")
    except IndexStorageError as error:
        stop(f"{error}; {consequence}")
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {consequence}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def explain(error: OSError, place: object = "the disk") -> str:
    """The error in few words. place: what it is about where the error does not say."""
    return f"{error.filename or place}: {error.strerror or error}"


def stored_spec(spec: str) -> str:
    """A model spec as an index keeps it: a path whole, so that it is found again from any folder."""
    is_named = spec == "demo" or spec.startswith(("openclip:", "hf-hub:"))
    path = Path(spec).expanduser()
    return str(path.resolve()) if not is_named and path.exists() else spec


def require_report_file(report: Path | None) -> None:
    """End the command before it begins where its report could not be written."""
    if report is None:
        return
    if report.is_dir():
        stop(f"{report} is a folder: name a file for the report, such as {report / 'report.json'}")
    if not report.absolute().parent.is_dir():
        stop(f"there is no folder for the report {report}")


def write_report(report: Path | None, content: Any) -> None:
    """What --report asks for. What was done stays done where this fails."""
    if report is None:
        return
    try:
        report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        stop(f"the report {report} cannot be written: {error.strerror or error}; all else is done")


def stop(message: str) -> NoReturn:
    """Say what is wrong with the command and leave."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(WRONG_USE)
