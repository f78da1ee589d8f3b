"""What the commands of this room share: options, exit statuses, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

DAMAGED, WRONG_USE, SOME_FAILED, INTERRUPTED = 1, 2, 3, 130
"""Exit statuses; 0 where all is well."""

IndexOption = Annotated[Path, typer.Option("--index", "-i", help="The index directory.")]
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
    except PermissionError as error:
        stop(f"{error.filename}: {error.strerror}")


def stored_spec(spec: str) -> str:
    """A model spec as an index keeps it: a path whole, so that it is found again from any folder."""
    is_named = spec == "demo" or spec.startswith(("openclip:", "hf-hub:"))
    path = Path(spec).expanduser()
    return str(path.resolve()) if not is_named and path.exists() else spec


def stop(message: str) -> NoReturn:
    """Say what is wrong with the command and leave."""
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(WRONG_USE)
