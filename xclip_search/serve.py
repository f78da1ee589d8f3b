"""`xclip-search serve` and `xclip-search worker`. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from service.settings import Environment, ServiceSettings

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})

WRONG_USE, FAILED = 2, 1
"""Exit statuses."""

IndexOption = Annotated[
    Path | None, typer.Option("--index", "-i", help="The index directory.", show_default="XCLIP_INDEX")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Model spec.", show_default="the model that made the index")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... or auto.", show_default="auto")
]
UploadLimitOption = Annotated[
    int | None, typer.Option("--upload-limit", help="Largest file in bytes.", show_default="2 GiB")
]
DecodeTimeoutOption = Annotated[
    float | None,
    typer.Option("--decode-timeout", help="Seconds that decoding one video may take.", show_default="300"),
]
GraceOption = Annotated[
    float | None,
    typer.Option("--grace", help="Seconds that a worker has to end its job at shutdown.", show_default="20"),
]
KeysFileOption = Annotated[
    Path | None,
    typer.Option("--keys-file", help="The file of keys.", show_default="keys.json in the index directory"),
]


@app.command(
    epilog="Examples:\n\n"
    "xclip-search serve --index INDEX\n\n"
    "xclip-search serve --index NEW --model demo --port 9000\n\n"
    "xclip-search keys add --index INDEX --name me --scope write;"
    " xclip-search serve --index INDEX --host 0.0.0.0"
)
def serve(
    index: IndexOption = None,
    model: ModelOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0: all.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any.", show_default="8000")] = None,
    device: DeviceOption = None,
    worker: Annotated[
        bool | None, typer.Option("--worker/--no-worker", help="Start a worker.", show_default="worker")
    ] = None,
    upload_limit: UploadLimitOption = None,
    allow_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that POST /videos may read from; may be given several times."),
    ] = None,
    decode_timeout: DecodeTimeoutOption = None,
    grace: GraceOption = None,
    threads: Annotated[int | None, typer.Option(help="Searches that run at once.", show_default="2")] = None,
    keys_file: KeysFileOption = None,
    allow_no_keys: Annotated[
        bool | None,
        typer.Option(
            "--allow-no-keys", help="Serve other machines although there is no key.", show_default="off"
        ),
    ] = None,
) -> None:
    """Serve search, uploads and the page over HTTP, and start a worker that reads uploads.

    An index that does not exist is made, empty, if --model says for which model.

    Other machines are served only where there are keys (xclip-search keys add), or with --allow-no-keys.

    SIGTERM or Ctrl-C ends it: requests under way are answered first. Every option is also an environment
    variable XCLIP_..., and there are more of those: docs/operations.md has all.
    """
    environment = read_environment(
        index=index,
        model=model,
        host=host,
        port=port,
        device=device,
        start_worker=worker,
        upload_limit_bytes=upload_limit,
        allowed_roots=tuple(allow_root) if allow_root else None,
        decode_timeout_seconds=decode_timeout,
        worker_grace_seconds=grace,
        num_search_threads=threads,
        keys_file=keys_file,
        allow_no_keys=allow_no_keys,
    )
    index_directory = _index_directory(environment)
    from service.server import run_server
    from service.settings import ServiceSettings

    settings = ServiceSettings.from_environment(environment, index_directory)
    _check_keys(settings, environment.host)
    raise typer.Exit(run_server(settings, environment.host, environment.port))


@app.command(
    epilog="Example, with the reading on a GPU of its own:\n\n"
    "xclip-search serve --index INDEX --no-worker\n\n"
    "xclip-search worker --index INDEX --device cuda:1"
)
def worker(
    index: IndexOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    upload_limit: UploadLimitOption = None,
    decode_timeout: DecodeTimeoutOption = None,
    grace: GraceOption = None,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
) -> None:
    """Read uploaded videos into the index: decode, encode, store.

    `serve` starts one itself; start more on the same machine to read several videos at once.
    SIGTERM ends a worker: its job gets the grace period, and then goes back to the queue.
    """
    environment = read_environment(
        index=index,
        model=model,
        device=device,
        upload_limit_bytes=upload_limit,
        decode_timeout_seconds=decode_timeout,
        worker_grace_seconds=grace,
    )
    index_directory = _index_directory(environment)
    from service.ingest.worker import run_worker
    from service.settings import WorkerSettings

    settings = WorkerSettings.from_environment(environment, index_directory, parent_pid=parent)
    raise typer.Exit(run_worker(settings))


def _check_keys(settings: ServiceSettings, host: str) -> None:
    """Refuse to open a door to others that anybody could walk through."""
    from service.auth.keys import KeysFileError, keys_path, read_keys
    from service.http.middleware import is_loopback

    path = keys_path(settings.index_directory, settings.keys_file)
    try:
        has_keys = bool(read_keys(path))
    except KeysFileError as error:
        refuse(str(error), FAILED)
    if has_keys or is_loopback(host):
        return
    danger = f"whoever reaches {host} could search, upload and delete, for there are no keys"
    if not settings.allow_no_keys:
        refuse(
            f"{danger}. Make one: xclip-search keys add --index {settings.index_directory} --name NAME "
            "--scope write; or say that this is meant: --allow-no-keys"
        )
    typer.secho(f"warning: {danger}", fg="yellow", err=True)


def read_environment(**overrides: object) -> Environment:
    """The settings; ends the command with a message where one is wrong."""
    from pydantic import ValidationError

    from service.settings import Environment

    try:
        return Environment.read(**overrides)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        refuse("wrong settings: " + "; ".join(problems))


def _index_directory(environment: Environment) -> Path:
    if environment.index is None:
        refuse("say where the index is: --index DIR, or the environment variable XCLIP_INDEX")
    directory = environment.index.expanduser().absolute()
    from indexer.store.sqlite.generations import index_exists

    if not index_exists(directory) and environment.model is None and environment.new_index_model is None:
        refuse(
            f"there is no index in {directory}. Make one with: xclip-search index VIDEOS --index {directory} "
            "--model SPEC; or start with an empty one by adding --model SPEC here (--model demo, for example)"
        )
    return directory


def refuse(message: str, status: int = WRONG_USE) -> NoReturn:
    """End the command: say why, and exit with `status`."""
    typer.secho(f"error: {message}", fg="red", err=True)
    sys.exit(status)
