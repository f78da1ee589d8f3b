"""`xclip-search keys`: make, list and remove the keys of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xclip_search.console import explain_os_error
from xclip_search.serve import FAILED, WRONG_USE, IndexOption, KeysFileOption, read_environment, refuse

app = typer.Typer()
keys = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})

NameOption = Annotated[
    str,
    typer.Option("--name", "-n", help="What to call the key; shown in logs."),
]


@app.callback()
def _root() -> None: ...


@keys.callback()
def _describe() -> None:
    """Make, list and remove API keys.

    Where a server has keys, every request needs one. A running server knows of a change within a second.
    """


@keys.command(
    epilog="Example:\n\n"
    "KEY=$(xclip-search keys add --index INDEX --name me --scope read)\n\n"
    'curl -H "Authorization: Bearer $KEY" http://127.0.0.1:8000/videos'
)
def add(
    name: NameOption,
    scope: Annotated[str, typer.Option(help="read: search and look; write: also add, change, delete.")],
    index: IndexOption = None,
    keys_file: KeysFileOption = None,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is kept."""
    from pydantic import ValidationError

    from indexer.store.sqlite.generations import index_exists
    from service.auth.keys import KeyNameTakenError, KeysFileError, add_key

    if scope not in ("read", "write"):
        refuse("--scope is read or write")
    path = _path(index, keys_file)
    try:
        secret = add_key(path, name, "read" if scope == "read" else "write")
    except ValidationError:
        refuse("--name takes 1 to 64 letters, digits, dots, dashes and underscores")
    except KeyNameTakenError:
        refuse(f"there is a key named {name}; choose another name, or remove it first")
    except KeysFileError as error:
        refuse(str(error), FAILED)
    except OSError as error:
        refuse(explain_os_error(error, path), FAILED)
    typer.secho(f"This is the key {name}. Keep it now: it cannot be shown again.", err=True)
    if index is not None and keys_file is None and not index_exists(path.parent):
        typer.secho(f"note: there is no index in {path.parent} yet", fg="yellow", err=True)
    typer.echo(secret)


@keys.command("list")
def list_keys(index: IndexOption = None, keys_file: KeysFileOption = None) -> None:
    """List the keys: name, scope, when made. Never the keys themselves."""
    from service.auth.keys import KeysFileError, read_keys

    try:
        found = read_keys(_path(index, keys_file))
    except KeysFileError as error:
        refuse(str(error), FAILED)
    width = max((len(key.name) for key in found), default=0)
    for key in found:
        typer.echo(f"{key.name:<{width}}  {key.scope:<5}  {key.created_at:%Y-%m-%d %H:%M:%S} UTC")
    if not found:
        typer.secho("no keys", err=True)


@keys.command()
def remove(name: NameOption, index: IndexOption = None, keys_file: KeysFileOption = None) -> None:
    """Remove a key. Requests and sessions that use it are refused within a second."""
    from service.auth.keys import KeyNotFoundError, KeysFileError, remove_key

    path = _path(index, keys_file)
    try:
        remove_key(path, name)
    except KeyNotFoundError:
        refuse(f"there is no key named {name}", WRONG_USE)
    except KeysFileError as error:
        refuse(str(error), FAILED)
    except OSError as error:
        refuse(explain_os_error(error, path), FAILED)


app.add_typer(keys, name="keys")


def _path(index: Path | None, keys_file: Path | None) -> Path:
    from service.auth.keys import keys_path

    environment = read_environment(index=index, keys_file=keys_file)
    if environment.keys_file is None and environment.index is None:
        refuse("say where the index is: --index DIR, or the environment variable XCLIP_INDEX")
    return keys_path((environment.index or Path()).expanduser().absolute(), environment.keys_file)
