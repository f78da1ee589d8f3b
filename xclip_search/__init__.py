"""Text-to-video search with X-CLIP: `Index` in Python, `Client` for a server, the command `xclip-search`.

>>> from xclip_search import Index
>>> with Index.create("my-index", "demo") as index:
...     report = index.add_folder("videos")
...     answer = index.search("a red circle moves to the left", limit=5)
>>> report.num_added, answer.results[0].title
(1, 'clip')

Each name, and each sub-command, is imported when it is first used: importing the package loads nothing heavy.
It may import every other package; none imports it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
import typer.main

if TYPE_CHECKING:
    from indexer.index import Index as Index
    from indexer.search.searcher import Searcher as Searcher
    from model.xclip import XClip as XClip
    from xclip_search.client import AsyncClient as AsyncClient
    from xclip_search.client import Client as Client

_HOMES = {
    "AsyncClient": "xclip_search.client",
    "Client": "xclip_search.client",
    "Index": "indexer.index",
    "Searcher": "indexer.search.searcher",
    "XClip": "model.xclip",
}

__all__ = ["AsyncClient", "Client", "Index", "Searcher", "XClip", "main"]

COMMANDS = {
    "demo": "xclip_search.demo",
    "evaluate": "xclip_search.evaluate",
    "train": "xclip_search.train",
    "ablate": "xclip_search.ablate",
    "index": "xclip_search.index",
    "search": "xclip_search.index",
    "list": "xclip_search.videos",
    "delete": "xclip_search.videos",
    "info": "xclip_search.videos",
    "serve": "xclip_search.serve",
    "worker": "xclip_search.serve",
    "keys": "xclip_search.serve",
    "mcp": "xclip_search.serve",
    "verify": "xclip_search.maintenance",
    "rebuild": "xclip_search.maintenance",
    "reindex": "xclip_search.maintenance",
    "backup": "xclip_search.maintenance",
    "restore": "xclip_search.maintenance",
    "relocate": "xclip_search.library",
    "kept-out": "xclip_search.library",
    "export": "xclip_search.maintenance",
    "import": "xclip_search.maintenance",
    "models": "xclip_search.models",
    "convert": "xclip_search.models",
    "push": "xclip_search.models",
}
"""Which module's `app` holds which sub-command. Those modules import nothing heavy themselves."""


class _LazyGroup(typer.core.TyperGroup):
    """A group that imports the module of a command when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        command: Any = typer.main.get_command(importlib.import_module(COMMANDS[cmd_name]).app)
        command = command.commands[cmd_name] if hasattr(command, "commands") else command
        command.help = _unwrapped(command.help or "")
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and (close := get_close_matches(args[0], COMMANDS)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(close)}?")
        return super().resolve_command(ctx, args)


def _unwrapped(text: str) -> str:
    """Each paragraph in one line, which a terminal breaks as its width wants; examples stay as they are."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else paragraph.replace("\n", " ") for paragraph in paragraphs
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"xclip-search {version('xclip-search')}")
        raise typer.Exit


app = typer.Typer(
    cls=_LazyGroup,
    pretty_exceptions_enable=False,  # A traceback with all local values is no help, and may show a key.
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="To see it work:  xclip-search demo\n\n"
    "Your own videos:  xclip-search index VIDEOS --index INDEX --model SPEC,"
    "  then  xclip-search serve --index INDEX\n\n"
    "Each command explains itself:  xclip-search COMMAND --help",
)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Type a sentence, find the video and the moment in it."""


def main() -> None:
    """Entry point of the console command."""
    from model.quick_start import shorten_import
    from xclip_search.console import PrintableFormatter

    shorten_import()

    if logging.lastResort is not None:  # What is logged where nothing is set up, as `serve` does.
        logging.lastResort.setFormatter(PrintableFormatter())
    app(prog_name="xclip-search")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
