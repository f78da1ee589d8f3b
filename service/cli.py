"""`xclip-search serve` and `xclip-search worker`. Heavy imports happen inside the commands."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from service.settings import Environment

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
DecodeTimeoutOption = Annotated[
    float | None,
    typer.Option("--decode-timeout", help="Seconds that decoding one video may take.", show_default="300"),
]
GraceOption = Annotated[
    float | None,
    typer.Option("--grace", help="Seconds that a worker has to end its job at shutdown.", show_default="20"),
]


@app.command()
def serve(
    index: IndexOption = None,
    model: ModelOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any.", show_default="8000")] = None,
    device: DeviceOption = None,
    worker: Annotated[
        bool | None, typer.Option("--worker/--no-worker", help="Start a worker.", show_default="worker")
    ] = None,
    upload_limit: Annotated[
        int | None, typer.Option(help="Largest upload in bytes.", show_default="2 GiB")
    ] = None,
    allow_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that POST /videos may read from; may be given several times."),
    ] = None,
    decode_timeout: DecodeTimeoutOption = None,
    grace: GraceOption = None,
    threads: Annotated[int | None, typer.Option(help="Searches that run at once.", show_default="2")] = None,
) -> None:
    """Serve search, uploads and the page over HTTP.

    An index that does not exist is made, empty, if --model says for which model.

    Every option is also an environment variable XCLIP_...: see docs/http-api.md.
    """
    environment = _read_environment(
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
    )
    index_directory = _index_directory(environment)
    from service.settings import ServiceSettings

    if not is_loopback(environment.host):
        typer.secho(
            f"warning: listening on {environment.host}: whoever reaches this address can search, upload and "
            "delete. There are no keys; put a proxy that asks for them in front.",
            fg="yellow",
            err=True,
        )
    from service.server import run_server

    settings = ServiceSettings.from_environment(environment, index_directory)
    raise typer.Exit(run_server(settings, environment.host, environment.port))


@app.command()
def worker(
    index: IndexOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    decode_timeout: DecodeTimeoutOption = None,
    grace: GraceOption = None,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
) -> None:
    """Read uploaded videos into the index: decode, encode, store. `serve` starts one itself."""
    environment = _read_environment(
        index=index,
        model=model,
        device=device,
        decode_timeout_seconds=decode_timeout,
        worker_grace_seconds=grace,
    )
    index_directory = _index_directory(environment)
    from service.settings import WorkerSettings
    from service.worker import run_worker

    settings = WorkerSettings.from_environment(environment, index_directory, parent_pid=parent)
    raise typer.Exit(run_worker(settings))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_environment(**overrides: object) -> Environment:
    from pydantic import ValidationError

    from service.settings import Environment

    try:
        return Environment.read(**overrides)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        _refuse("wrong settings: " + "; ".join(problems))


def _index_directory(environment: Environment) -> Path:
    if environment.index is None:
        _refuse("say where the index is: --index DIR, or the environment variable XCLIP_INDEX")
    directory = environment.index.expanduser().absolute()
    from service.loading import index_exists

    if not index_exists(directory) and environment.model is None:
        _refuse(
            f"there is no index in {directory}. Make one with: xclip-search index VIDEOS --index {directory} "
            "--model SPEC; or start with an empty one by adding --model SPEC here (--model demo, for example)"
        )
    return directory


def _refuse(message: str) -> NoReturn:
    typer.secho(message, fg="red", err=True)
    sys.exit(WRONG_USE)
