"""What the commands share: options, exit statuses, errors as one line, progress bars."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, Protocol

import typer

from indexer.store.postgres.address import PostgresAddress, is_postgres_address
from model.runtimes import Runtime

FAILED = DAMAGED = 1
WRONG_USE, SOME_FAILED, INTERRUPTED = 2, 3, 130
"""Exit statuses; 0 where all is well."""

_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"  # Unicode: Cc, Bidi_Control.
)

RESUMES = "what is indexed is kept, and the same command resumes"
"""What becomes of the work where adding videos ends early."""

INDEX_HELP = "The index: a directory, or postgresql://user@host/database?schema=name."
IndexOption = Annotated[str, typer.Option("--index", "-i", envvar="XCLIP_INDEX", help=INDEX_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ReportOption = Annotated[Path | None, typer.Option(help="Write what was done to this JSON file.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that decode.", show_default="by the number of processors"),
]
BatchSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Segments encoded together.", show_default="8, on a GPU 32")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")]
RuntimeOption = Annotated[
    Runtime,
    typer.Option(envvar="XCLIP_RUNTIME", help="What computes the towers on a processor; auto: the fastest."),
]
DecodeTimeoutOption = Annotated[float, typer.Option(min=1, help="Seconds that decoding one file may take.")]
MaxHoursOption = Annotated[
    float | None, typer.Option("--max-hours", help="Longest video taken, in hours.", show_default="6")
]


def index_address(index: str) -> str | Path:
    """Where an index lies: the path of a directory, or the address of a database with what XCLIP_MEDIA,
    XCLIP_CACHE and XCLIP_REPLICA name."""
    if not is_postgres_address(index):
        return Path(index)
    media, cache, replica = (os.environ.get(f"XCLIP_{name}") for name in ("MEDIA", "CACHE", "REPLICA"))
    address = PostgresAddress.parse(index)
    return address.completed(Path(media) if media else None, Path(cache) if cache else None, replica).text


def index_directory(index: str, instead: str) -> Path:
    """The directory of an index; ends the command where it lies in a database.

    instead: what is to be done there, a sentence.
    """
    if is_postgres_address(index):
        stop(f"this is for an index in a directory. {instead}")
    return Path(index)


def make_app() -> typer.Typer:
    """An empty command group, as each module of commands has one."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # A traceback with all local values is no help, and may show a key.
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def printable(text: str, *, keep_lines: bool = False) -> str:
    r"""`text` as a terminal may be given it: whatever would steer it, or hide what it says, is escaped.

    That are control characters (a title may hold a sequence that clears the screen), those that turn the
    direction of writing, separators of lines, and bytes of a file's name that are not UTF-8.

    keep_lines: leave line feeds as they are, in a text of ours that has several lines.

    Example:
        >>> printable("a\x1b[2Jb\nc"), printable("\u202egpj.exe"), printable("caf\udce9")
        ('a\\x1b[2Jb\\nc', '\\u202egpj.exe', 'caf\\xe9')
    """

    def escaped(found: re.Match[str]) -> str:
        character = found[0]
        if keep_lines and character == "\n":
            return character
        if "\udc80" <= character <= "\udcff":  # How Python names a byte that it could not decode.
            return f"\\x{ord(character) - 0xDC00:02x}"
        return character.encode("unicode_escape", "surrogatepass").decode()

    return _UNPRINTABLE.sub(escaped, text)


def echo(message: str, *, err: bool = False, keep_lines: bool = False, color: str | None = None) -> None:
    """Print a line, see `printable`; every command prints by this, `print_json` or a table of such texts."""
    typer.secho(printable(message, keep_lines=keep_lines), err=err, fg=color)


def print_json(value: Any) -> None:
    """Print a JSON value, in which `printable` escapes what JSON lets pass, in JSON's own way."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(
        _UNPRINTABLE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)
    )


def stop(message: str, status: int = WRONG_USE, *, keep_lines: bool = False) -> NoReturn:
    """End the command with a message on standard error; it is one line, unless it is to keep its lines."""
    echo(f"error: {message}", err=True, keep_lines=keep_lines)
    raise typer.Exit(status)


class PrintableFormatter(logging.Formatter):
    """What is logged while a command runs, with nothing that steers the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The message; a traceback keeps its lines."""
        return printable(super().format(record), keep_lines=True)


@contextmanager
def errors_explained(consequence: str = "", *, failed: int = WRONG_USE) -> Iterator[None]:
    """Turn errors that the user can do something about into one line and an exit status.

    Args:
        consequence: What became of the work, said where the disk refused or the user interrupted.
        failed: Exit status where the command was right and the work failed.
    """
    after = f"; {consequence}" if consequence else ""
    try:
        yield
    except KeyboardInterrupt:
        echo(f"interrupted{after}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except typer.Exit:
        raise
    except Exception as error:
        explained = explain_error(error, failed)
        if explained is None:
            raise
        message, status = explained
        # Of a data set that is not there, a drawing of its folders is shown.
        keep_lines = type(error).__name__ == "DatasetError"
        stop(message + (after if _is_of_the_disk(error) else ""), status, keep_lines=keep_lines)


def explain_error(error: Exception, failed: int = WRONG_USE) -> tuple[str, int] | None:
    """The line that explains an error, and the exit status; None for a bug, whose traceback is shown.

    A plain ValueError counts as wrong use where all failures do (`failed` is WRONG_USE), else as a bug.
    """
    if isinstance(error, OSError):
        return explain_os_error(error), failed
    from indexer.errors import BackupDamagedError, IndexDamagedError, IndexerError
    from model.errors import ModelError, SpecError
    from training.errors import ConfigError, TrainingError

    if isinstance(error, IndexDamagedError | BackupDamagedError):
        return str(error), DAMAGED
    if isinstance(error, SpecError | ConfigError):
        return str(error), WRONG_USE
    if isinstance(error, IndexerError | ModelError | TrainingError):
        return str(error), failed
    if isinstance(error, ValueError) and failed == WRONG_USE:
        return str(error), failed
    return None


def explain_os_error(error: OSError, place: object = "the disk") -> str:
    """An error of the system in a few words. place: what it is about where the error does not say."""
    return f"{error.filename or place}: {error.strerror}" if error.strerror else str(error)


def _is_of_the_disk(error: Exception) -> bool:
    from indexer.errors import IndexStorageError

    return isinstance(error, OSError | IndexStorageError)


class OnProgress(Protocol):
    """The callback that moves progress bars."""

    def __call__(self, stage: str, num_done: int, num_total: int | None, facts: str = "", /) -> None:
        """Show that num_done of num_total of a stage are done. facts: what else to show."""


@contextmanager
def progress_bars(*, speed_seconds: float = 30.0) -> Iterator[OnProgress]:
    """Bars on the terminal, one for each stage, gone at the end; nothing where there is no terminal.

    speed_seconds: how far back the speed is taken that the time left is computed from.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=speed_seconds,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(stage: str, num_done: int, num_total: int | None, facts: str = "", /) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=num_total, facts=facts)
            bars.update(tasks[stage], completed=num_done, total=num_total, facts=facts)

        yield on_progress


@contextmanager
def video_progress(stage: str) -> Iterator[Callable[[int, bool], None]]:
    """A bar with videos/s, failures and time left.

    Gives `count(num_total, has_failed)`, to be called after each video with how many there are in all.
    """
    started = time.monotonic()
    num_done = num_failed = 0
    with progress_bars() as on_progress:

        def count(num_total: int, has_failed: bool) -> None:
            nonlocal num_done, num_failed
            num_done += 1
            num_failed += has_failed
            rate = num_done / max(1e-6, time.monotonic() - started)
            on_progress(stage, num_done, num_total, f"{rate:.1f} videos/s {num_failed} failed")

        yield count


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
