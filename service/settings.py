"""Settings of server and worker: arguments over environment over defaults.

Every field can be set by an environment variable, its name in capitals with the prefix `XCLIP_`:
`XCLIP_UPLOAD_LIMIT_BYTES=1000000`. Nothing else in the project reads the environment.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from indexer.errors import IndexNotFoundError
from indexer.features import Precision
from indexer.store.postgres.address import PostgresAddress, is_postgres_address
from model.runtimes import Runtime
from service.observability.logs import LogFormat, LogLevel

MIB = 1024 * 1024

OWN_PATHS = frozenset(
    {"search", "videos", "jobs", "healthz", "readyz", "stats", "metrics", "session", "page", "docs"}
)
"""First parts of the paths of our routes."""

_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)*")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def parse_prefix(text: str) -> str:
    """A path below which a proxy shows this server, as `/xclip`; empty where it is the root.

    Raises:
        ValueError: It is no such path.
    """
    prefix = "/" + text.strip().strip("/") if text.strip(" /") else ""
    if _PREFIX.fullmatch(prefix) is None:
        raise ValueError("a prefix is a path of letters, digits and . _ ~ - as /xclip")
    return prefix


RemoteMediaMode = Literal["proxy", "redirect", "off"]

CoarseKindChoice = Literal["auto", "exact", "ivf-sq", "ivf-pq", "hnsw"]
"""As `indexer.coarse.exact.KindChoice`, which cannot be had without loading FAISS."""


class _Environment(EnvSettingsSource):
    """The environment without what Kubernetes puts there for a Service named `xclip`."""

    def __call__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in super().__call__().items()
            if not (name == "port" and is_service_link(value))
        }


def is_service_link(value: object) -> bool:
    """Whether an XCLIP_PORT is that of Kubernetes, or of Docker's links: `tcp://10.0.0.1:80`."""
    return isinstance(value, str) and re.fullmatch(r"(?:tcp|udp|sctp)://\S+", value) is not None


class IndexSettings(BaseSettings):
    """Where the index is: what every command of the service reads.

    Raises:
        pydantic.ValidationError: A value is out of its range; names the field.
    """

    model_config = SettingsConfigDict(env_prefix="XCLIP_", extra="forbid", env_ignore_empty=True, frozen=True)

    index: str | Path | None = Field(
        default=None,
        description="The index: a directory, or postgresql://user@host/database?schema=name.",
    )

    media: Path | None = Field(
        default=None, description="Beside an index in a database: the folder of uploads and keys, shared."
    )
    cache: Path | None = Field(
        default=None, description="Beside an index in a database: this machine's folder of what is derived."
    )

    replica: str | None = Field(
        default=None,
        description="Beside an index in a database: a hot standby that features are read from, an address.",
    )

    @field_validator("replica")
    @classmethod
    def _check_replica(cls, value: str | None) -> str | None:
        try:
            PostgresAddress.parse("postgresql:///").completed(replica=value)
        except IndexNotFoundError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("index", mode="before")
    @classmethod
    def _read_address(cls, value: object) -> object:
        """A directory as a path, an address of a database as a text that is one."""
        if not isinstance(value, str) or not is_postgres_address(value):
            return value if value is None else Path(str(value))
        try:
            PostgresAddress.parse(value)
        except IndexNotFoundError as error:
            raise ValueError(str(error)) from None
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments over environment; pydantic-settings calls it."""
        return init_settings, _Environment(settings_cls)

    @property
    def index_address(self) -> Path | str:
        """The index: an absolute path, or the address of a database. Raises ValueError where none was
        named."""
        if self.index is None:
            raise ValueError("the settings name no index")
        if isinstance(self.index, Path):
            return self.index.expanduser().absolute()
        return PostgresAddress.parse(self.index).completed(self.media, self.cache, self.replica).text

    @property
    def index_directory(self) -> Path:
        """Where uploads, media and keys are: the directory of the index, or beside a database the folder
        that is shared."""
        address = self.index_address
        return address if isinstance(address, Path) else PostgresAddress.parse(address).media_directory


class KeysSettings(IndexSettings):
    """What the commands of keys read."""

    keys_file: Path | None = Field(
        default=None, description="File of the API keys; keys.json in the index directory where unset."
    )


class WorkerSettings(IndexSettings):
    """What a worker reads: a setting of the server alone, however wrong, does not end it."""

    model: str | None = Field(default=None, description="Model spec; the index's own where unset.")
    new_index_model: str | None = Field(
        default=None, description="Model for a new index; an existing one keeps its own."
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")
    runtime: Runtime = Field(
        default="auto",
        description="What computes the towers on a processor: torch, openvino, openvino-bf16 or auto.",
    )
    upload_limit_bytes: int = Field(default=2048 * MIB, ge=1, description="Largest file taken.")
    decode_timeout_seconds: float = Field(default=300.0, gt=0, description="Longest decoding of one video.")
    max_video_seconds: float = Field(default=6 * 3600.0, gt=0, description="Longest video taken.")
    worker_grace_seconds: float = Field(default=20.0, ge=0, description="Time a worker has to end its job.")
    worker_niceness: int = Field(
        default=10, ge=0, le=19, description="By how much a worker yields to searches: 0 not at all, 19 most."
    )
    poll_seconds: float = Field(
        default=0.2, gt=0, description="Pause of a worker between two polls of an empty queue."
    )
    lease_seconds: float = Field(
        default=60.0, gt=0, description="A job goes to another worker after this time without a heartbeat."
    )
    parent_pid: int | None = Field(
        default=None, description="A worker ends with this process, which started it; set by serve."
    )
    url_ingest: bool = Field(
        default=False, description="Whether POST /videos fetches videos from http:// and https:// addresses."
    )
    url_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts and networks beyond the public internet to fetch from, separated by commas.",
    )
    url_ports: Annotated[tuple[int, ...], NoDecode] = Field(
        default=(80, 443), description="Ports to fetch from, separated by commas."
    )
    url_timeout_seconds: float = Field(default=1800.0, gt=0, description="Longest download of one video.")
    url_idle_seconds: float = Field(
        default=20.0, gt=0, description="A download that receives less than 16 KiB in this time is aborted."
    )
    num_url_downloads: int = Field(default=2, ge=1, le=64, description="Videos fetched concurrently.")
    log_format: LogFormat = Field(
        default="auto", description="json, text, or auto: text on a terminal, else JSON."
    )
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error.")

    @field_validator("url_allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return _split_names(value)

    @field_validator("url_allowed_hosts")
    @classmethod
    def _check_url_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from service.ingest.web.policy import AllowedHosts

        AllowedHosts.parse(value)
        return value

    @field_validator("url_ports", mode="before")
    @classmethod
    def _split_ports(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    @field_validator("url_ports")
    @classmethod
    def _check_ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or not all(1 <= port <= 65535 for port in value):
            raise ValueError("ports are from 1 to 65535")
        return value


class Settings(WorkerSettings, KeysSettings):
    """What the server reads, its own worker's included. Sizes in bytes, times in seconds.

    Raises:
        pydantic.ValidationError: A value is out of its range; names the field.

    >>> Settings(index=Path("/data/index"), num_search_threads=4).port
    8000
    """

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on.")
    start_worker: bool = Field(default=True, description="Whether serve starts a worker process.")
    warm_up: bool = Field(default=True, description="Whether one search runs before the server is ready.")
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Folders that POST /videos may read a uri from, separated as in PATH."
    )
    body_limit_bytes: int = Field(default=64 * 1024, ge=1024, description="Largest JSON body taken.")
    query_media_limit_bytes: int = Field(
        default=64 * MIB, ge=1, description="Largest picture or clip that is searched with."
    )
    num_search_threads: int = Field(default=2, ge=1, le=256, description="Searches that run concurrently.")
    max_waiting_searches: int = Field(default=64, ge=0, description="Searches that may wait, then 503.")
    filter_limit_seconds: float = Field(
        default=5.0, gt=0, description="Longest time to find what a filter matches, then 422."
    )
    wait_limit_seconds: float = Field(default=60.0, ge=0, le=3600, description="Longest wait of ?wait=true.")
    max_queued_jobs: int = Field(default=1_000, ge=1, description="Jobs that may wait, then 503.")
    thumbnail_cache_bytes: int = Field(default=32 * MIB, ge=0, description="Memory kept for thumbnails.")
    preview_cache_bytes: int = Field(default=64 * MIB, ge=0, description="Memory kept for previews.")
    remote_media: RemoteMediaMode = Field(
        default="proxy",
        description="Files of videos indexed from addresses: streamed through the server (proxy), "
        "by redirect to a signed address (redirect), or not served (off).",
    )
    remote_media_cache_bytes: int = Field(
        default=4096 * MIB,
        ge=0,
        description="Disk (TMPDIR) for copies of such files, for thumbnails and previews.",
    )
    coarse_kind: CoarseKindChoice = Field(
        default="auto",
        description="Kind of the coarse index; auto: exact up to 50,000 segments, then ivf-sq.",
    )
    feature_memory_bytes: int = Field(
        default=1024 * MIB,
        ge=0,
        description="With the model on a GPU, its memory for features that the full score reads.",
    )
    feature_file: bool | Precision = Field(
        default=True,
        description="Whether searches keep features in a file beside the catalog, 14.4 kB a segment; int8:"
        " with frames in 8 bits, 8.3 kB; float16: in 16 again; true: as it is.",
    )
    stale_reads_seconds: float = Field(
        default=0.0,
        ge=0,
        description="For how long searches are answered from the index as it was while its database does not"
        " answer; 0: not at all.",
    )
    allow_no_keys: bool = Field(
        default=False, description="Whether other machines may be served without API keys."
    )
    session_seconds: float = Field(
        default=12 * 3600.0, ge=60, le=30 * 24 * 3600, description="How long a browser stays logged in."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Names accepted in the Host header, separated by commas."
    )
    trusted_proxies: str = Field(
        default="127.0.0.1",
        description="Addresses or networks whose X-Forwarded-For, -Proto, -Prefix and -Host count, "
        "separated by commas.",
    )
    root_path: str = Field(
        default="",
        description="Path below which a proxy exposes this server, as /xclip, whether or not it strips it.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins whose pages may use the API with a key, as https://app.example.org, "
        "separated by commas.",
    )
    max_connections: int = Field(default=1_000, ge=8, description="Concurrent connections, then 503.")
    body_timeout_seconds: float = Field(
        default=20.0, gt=0, description="Longest pause while a body arrives, then 408."
    )
    min_upload_bytes_per_second: int = Field(
        default=4096, ge=1, description="Bodies that arrive more slowly in the long run are refused, 408."
    )
    request_timeout_seconds: float = Field(
        default=30.0, gt=0, description="Longest time to an answer, then 504; uploads have no such limit."
    )
    keep_alive_seconds: int = Field(default=75, gt=0, description="How long an idle connection stays open.")
    drain_delay_seconds: float = Field(
        default=0.0, ge=0, description="At shutdown: from not ready to no new connections."
    )
    drain_timeout_seconds: int = Field(
        default=30, ge=0, description="At shutdown: time for requests in progress to be answered."
    )
    tracing: bool = Field(
        default=False, description="Whether traces are sent by OpenTelemetry, which reads OTEL_ variables."
    )

    @property
    def searched_address(self) -> Path | str:
        """`index_address`, and for how long searches go on without its database."""
        address = self.index_address
        if isinstance(address, Path):
            return address
        seconds = self.stale_reads_seconds or PostgresAddress.parse(address).stale_reads_seconds
        return replace(PostgresAddress.parse(address), stale_reads_seconds=seconds).text

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_allowed_hosts(cls, value: Any) -> Any:
        return _split_names(value)

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        prefix = parse_prefix(value)
        if prefix and prefix.split("/")[1] in OWN_PATHS:
            raise ValueError(f"{prefix} begins like a path of this server; choose another prefix")
        return prefix

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip().rstrip("/").lower() for part in value.split(",") if part.strip())

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if _ORIGIN.fullmatch(origin) is None:
                raise ValueError(
                    f"{origin} is not an origin: scheme, name and port, as https://app.example.org:8443"
                )
        return value

    @field_validator("allowed_roots", mode="before")
    @classmethod
    def _split_roots(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value

    @field_validator("allowed_roots")
    @classmethod
    def _resolve_roots(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in value:
            if not root.expanduser().is_dir():
                raise ValueError(f"{root} is not a folder")
        return tuple(root.expanduser().resolve() for root in value)


def _split_names(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip().lower() for part in value.split(",") if part.strip())
    return value
