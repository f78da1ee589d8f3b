"""`xclip-search serve`, `worker`, `mcp` and `keys`. Heavy imports happen inside the commands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from model.runtimes import Runtime
from xclip_search.console import (
    FAILED,
    INDEX_HELP,
    MaxHoursOption,
    echo,
    errors_explained,
    explain_os_error,
    index_address,
    make_app,
    stop,
)
from xclip_search.videos import KeyOption, ServerOption

if TYPE_CHECKING:
    from service.settings import IndexSettings, Settings, WorkerSettings

Read = TypeVar("Read", bound="IndexSettings")

app = make_app()
keys = make_app()
app.add_typer(keys, name="keys")

NO_INDEX = "say where the index is: --index DIR, or the environment variable XCLIP_INDEX"

IndexOption = Annotated[
    str | None, typer.Option("--index", "-i", help=INDEX_HELP, show_default="XCLIP_INDEX")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="Model spec.", show_default="the model that made the index")
]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... or auto.", show_default="auto")
]
RuntimeOption = Annotated[
    Runtime | None,
    typer.Option(
        help="What computes the towers on a processor: torch, openvino, openvino-bf16 or auto.",
        show_default="auto",
    ),
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
NameOption = Annotated[
    str,
    typer.Option("--name", "-n", help="What to call the key; shown in logs."),
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
    runtime: RuntimeOption = None,
    worker: Annotated[
        bool | None, typer.Option("--worker/--no-worker", help="Start a worker.", show_default="worker")
    ] = None,
    upload_limit: UploadLimitOption = None,
    allow_root: Annotated[
        list[Path] | None,
        typer.Option(help="A folder that POST /videos may read from; may be given several times."),
    ] = None,
    decode_timeout: DecodeTimeoutOption = None,
    max_hours: MaxHoursOption = None,
    grace: GraceOption = None,
    threads: Annotated[
        int | None, typer.Option(help="Searches that run concurrently.", show_default="2")
    ] = None,
    keys_file: KeysFileOption = None,
    allow_no_keys: Annotated[
        bool | None,
        typer.Option(
            "--allow-no-keys", help="Serve other machines even without API keys.", show_default="off"
        ),
    ] = None,
) -> None:
    """Serve search, uploads and the page over HTTP, and start a worker that reads uploads.

    If there is no index, an empty one is created for the model that --model names.

    Other machines are served only if there are API keys (xclip-search keys add), or with --allow-no-keys.

    SIGTERM or Ctrl-C stops it: requests in progress are answered first. Every option is also an environment
    variable XCLIP_..., and there are more of those: docs/operations.md has all.
    """
    # Before PyTorch and FAISS are loaded: behind an operator their threads spin for another one, by default
    # long enough to hold up what a search does next on that processor.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from service.settings import Settings

    settings = _read_settings(
        Settings,
        index=index,
        model=model,
        host=host,
        port=port,
        device=device,
        runtime=runtime,
        start_worker=worker,
        upload_limit_bytes=upload_limit,
        allowed_roots=tuple(allow_root) if allow_root else None,
        decode_timeout_seconds=decode_timeout,
        max_video_seconds=None if max_hours is None else 3600 * max_hours,
        worker_grace_seconds=grace,
        num_search_threads=threads,
        keys_file=keys_file,
        allow_no_keys=allow_no_keys,
    )
    _require_index_or_model(settings)
    _check_keys(settings)
    from service.server import run_server

    raise typer.Exit(run_server(settings))


@app.command(
    epilog="Example, with a worker on a second GPU:\n\n"
    "xclip-search serve --index INDEX --no-worker\n\n"
    "xclip-search worker --index INDEX --device cuda:1"
)
def worker(
    index: IndexOption = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    upload_limit: UploadLimitOption = None,
    decode_timeout: DecodeTimeoutOption = None,
    max_hours: MaxHoursOption = None,
    grace: GraceOption = None,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
) -> None:
    """Read uploaded videos into the index: decode, encode, store.

    `serve` starts one itself; start more on the same machine to read several videos concurrently.
    SIGTERM stops a worker: its job gets the grace period, and then goes back to the queue.
    """
    from service.settings import WorkerSettings

    settings = _read_settings(
        WorkerSettings,
        index=index,
        model=model,
        device=device,
        runtime=runtime,
        upload_limit_bytes=upload_limit,
        decode_timeout_seconds=decode_timeout,
        max_video_seconds=None if max_hours is None else 3600 * max_hours,
        worker_grace_seconds=grace,
        parent_pid=parent,
    )
    _require_index_or_model(settings)
    from service.ingest.worker_process import run_worker

    raise typer.Exit(run_worker(settings))


@app.command("mcp")
def serve_tools(
    server: ServerOption = None,
    key: KeyOption = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder whose files the assistant may add; may be repeated. None: it cannot add any.",
            exists=True,
            file_okay=False,
            resolve_path=True,
        ),
    ] = None,
) -> None:
    """Give an assistant the searches of a server, over the Model Context Protocol.

    It speaks on standard input and output: an assistant starts this program itself, and its settings name
    the command and the address of the server.

    Examples:

      xclip-search mcp --server http://127.0.0.1:8000

      xclip-search mcp --server https://videos.example.org --folder ~/Videos
    """
    try:
        import mcp  # noqa: F401
    except ImportError:
        stop("the command mcp needs the MCP SDK: pip install 'xclip-search[mcp]'")
    from xclip_search.client import DEFAULT_SERVER, AsyncClient
    from xclip_search.mcp_server import make_server

    client = AsyncClient(server or DEFAULT_SERVER, key=key)
    make_server(client, folders=folder or ()).run("stdio")


def _check_keys(settings: Settings) -> None:
    """Refuse to serve others where they would need no key, unless that is meant."""
    from service.auth.keys import KeysFileError, keys_path, read_keys
    from service.http.middleware import is_loopback

    try:
        has_keys = bool(read_keys(keys_path(settings.index_directory, settings.keys_file)))
    except KeysFileError as error:
        stop(str(error), FAILED)
    if has_keys or is_loopback(settings.host):
        return
    danger = f"any client of {settings.host} could search, upload and delete, since there are no API keys"
    if not settings.allow_no_keys:
        command = ["xclip-search", "keys", "add", "--index", str(settings.index_address)]
        command += ["--keys-file", str(settings.keys_file)] if settings.keys_file else []
        command += ["--name", "NAME", "--scope", "write"]
        stop(f"{danger}. Make one: {shlex.join(command)}; or confirm that this is intended: --allow-no-keys")
    echo(f"warning: {danger}", err=True, color="yellow")


def _read_settings(kind: type[Read], **options: object) -> Read:
    """The environment with the options on top that were given; ends the command where a value is wrong.

    kind: what the command reads; what others read may be wrong.
    """
    from pydantic import ValidationError

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return kind(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, item['loc']))}: {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        stop("wrong settings: " + "; ".join(problems))


def _require_index_or_model(settings: WorkerSettings) -> None:
    """End the command where there is no index, and no model to make one with."""
    from indexer.store.store import store_exists

    if settings.index is None:
        stop(NO_INDEX)
    address = settings.index_address
    with errors_explained(failed=FAILED):
        is_there = store_exists(address)
    if not is_there and settings.model is None and settings.new_index_model is None:
        stop(
            f"there is no index in {address}. Make one with: xclip-search index VIDEOS --index "
            f"{shlex.quote(str(address))} --model SPEC; or start with an empty one by adding --model SPEC "
            "here (--model demo, for example)"
        )


@keys.callback()
def _describe() -> None:
    """Create, list and remove API keys.

    Where a server has keys, every request needs one. A running server notices a change within a second.
    """


@keys.command(
    epilog="Example:\n\n"
    "KEY=$(xclip-search keys add --index INDEX --name me --scope read)\n\n"
    'curl -H "Authorization: Bearer $KEY" http://127.0.0.1:8000/videos'
)
def add(
    name: NameOption,
    scope: Annotated[str, typer.Option(help="read: search and view; write: also add, change, delete.")],
    index: IndexOption = None,
    keys_file: KeysFileOption = None,
) -> None:
    """Create a key and print it. It is shown only once: only its hash is stored."""
    from pydantic import ValidationError

    from indexer.store.store import store_exists
    from service.auth.keys import KeyNameTakenError, KeysFileError, add_key

    if scope not in ("read", "write"):
        stop("--scope is read or write")
    path = _keys_path(index, keys_file)
    try:
        secret = add_key(path, name, "read" if scope == "read" else "write")
    except ValidationError:
        stop("--name takes 1 to 64 letters, digits, dots, dashes and underscores")
    except KeyNameTakenError:
        stop(f"there is a key named {name}; choose another name, or remove it first")
    except KeysFileError as error:
        stop(str(error), FAILED)
    except OSError as error:
        stop(explain_os_error(error, path), FAILED)
    echo(f"This is the key {name}. Keep it now: it cannot be shown again.", err=True)
    if index is not None and keys_file is None:
        with errors_explained(failed=FAILED):
            is_there = store_exists(index_address(index))
        if not is_there:
            echo(f"note: there is no index in {index} yet", err=True, color="yellow")
    echo(secret)


@keys.command("list")
def list_keys(index: IndexOption = None, keys_file: KeysFileOption = None) -> None:
    """List the keys: name, scope, creation time. The keys themselves are not stored."""
    from service.auth.keys import KeysFileError, read_keys

    try:
        found = read_keys(_keys_path(index, keys_file))
    except KeysFileError as error:
        stop(str(error), FAILED)
    width = max((len(key.name) for key in found), default=0)
    for key in found:
        echo(f"{key.name:<{width}}  {key.scope:<5}  {key.created_at:%Y-%m-%d %H:%M:%S} UTC")
    if not found:
        echo("no keys", err=True)


@keys.command()
def remove(name: NameOption, index: IndexOption = None, keys_file: KeysFileOption = None) -> None:
    """Remove a key. Requests and sessions that use it are refused within a second."""
    from service.auth.keys import KeyNotFoundError, KeysFileError, remove_key

    path = _keys_path(index, keys_file)
    try:
        remove_key(path, name)
    except KeyNotFoundError:
        stop(f"there is no key named {name}")
    except KeysFileError as error:
        stop(str(error), FAILED)
    except OSError as error:
        stop(explain_os_error(error, path), FAILED)


def _keys_path(index: str | None, keys_file: Path | None) -> Path:
    from service.auth.keys import keys_path
    from service.settings import KeysSettings

    settings = _read_settings(KeysSettings, index=index, keys_file=keys_file)
    if settings.keys_file is None and settings.index is None:
        stop(NO_INDEX)
    return settings.keys_file or keys_path(settings.index_directory, None)
