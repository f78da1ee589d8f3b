"""Settings: command line over environment over defaults, read once, then passed on as frozen dataclasses.

Every field of `Environment` can be set by an environment variable, its name in capitals with the prefix
`XCLIP_`: `XCLIP_UPLOAD_LIMIT_BYTES=1000000`. Nothing else in the project reads the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1024 * 1024

CoarseKindChoice = Literal["auto", "exact", "ivf-sq", "ivf-pq", "hnsw"]
"""As `indexer.coarse_vectors.KindChoice`, which cannot be had without loading FAISS."""


class Environment(BaseSettings):
    """What can be set from outside, with its range. Sizes in bytes, times in seconds."""

    model_config = SettingsConfigDict(env_prefix="XCLIP_", extra="ignore", env_ignore_empty=True)

    index: Path | None = Field(default=None, description="The index directory.")
    model: str | None = Field(default=None, description="Model spec; the index's own where unset.")
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, ...; auto: a GPU where there is one.")
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on.")
    start_worker: bool = Field(default=True, description="Whether serve starts a worker process.")
    warm_up: bool = Field(default=True, description="Whether one search runs before the server is ready.")
    allowed_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="Folders that POST /videos may read a uri from, separated as in PATH."
    )
    upload_limit_bytes: int = Field(default=2048 * MIB, ge=1, description="Largest file taken.")
    body_limit_bytes: int = Field(default=64 * 1024, ge=1024, description="Largest JSON body taken.")
    num_search_threads: int = Field(default=2, ge=1, le=256, description="Searches that run at once.")
    max_waiting_searches: int = Field(default=64, ge=0, description="Searches that may wait, then 503.")
    wait_limit_seconds: float = Field(default=60.0, ge=0, le=3600, description="Longest wait of ?wait=true.")
    max_queued_jobs: int = Field(default=1_000, ge=1, description="Jobs that may wait, then 503.")
    idempotency_seconds: float = Field(
        default=24 * 3600.0,
        ge=24 * 3600,
        le=30 * 24 * 3600,
        description="How long an Idempotency-Key is remembered.",
    )
    thumbnail_cache_bytes: int = Field(default=32 * MIB, ge=0, description="Memory kept for thumbnails.")
    preview_cache_bytes: int = Field(default=64 * MIB, ge=0, description="Memory kept for previews.")
    coarse_kind: CoarseKindChoice = Field(
        default="auto",
        description="Kind of the coarse index; auto: exact up to 50,000 segments, then ivf-sq.",
    )
    feature_memory_bytes: int = Field(
        default=1024 * MIB, ge=0, description="Memory for features that the full score reads; 0: none."
    )
    decode_timeout_seconds: float = Field(default=300.0, gt=0, description="Longest decoding of one video.")
    worker_grace_seconds: float = Field(default=20.0, ge=0, description="Time a worker has to end its job.")

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

    @classmethod
    def read(cls, **overrides: Any) -> Self:
        """The environment with `overrides` on top; an override that is None counts as not given.

        Raises pydantic.ValidationError, naming the field, where a value is out of its range.
        """
        return cls(**{name: value for name, value in overrides.items() if value is not None})


@dataclass(frozen=True)
class ServiceSettings:
    """What `create_app` needs to know."""

    index_directory: Path
    model_spec: str | None = None
    device: str = "auto"
    start_worker: bool = True
    warm_up: bool = True
    allowed_roots: tuple[Path, ...] = ()
    upload_limit_bytes: int = 2048 * MIB
    body_limit_bytes: int = 64 * 1024
    num_search_threads: int = 2
    max_waiting_searches: int = 64
    wait_limit_seconds: float = 60.0
    max_queued_jobs: int = 1_000
    idempotency_seconds: float = 24 * 3600.0
    thumbnail_cache_bytes: int = 32 * MIB
    preview_cache_bytes: int = 64 * MIB
    coarse_kind: CoarseKindChoice = "auto"
    feature_memory_bytes: int = 1024 * MIB
    decode_timeout_seconds: float = 300.0
    worker_grace_seconds: float = 20.0

    @classmethod
    def from_environment(cls, environment: Environment, index_directory: Path) -> Self:
        """The part of `environment` that concerns the service."""
        return cls(index_directory, environment.model, **_shared(cls, environment))


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker needs to know.

    poll_seconds: pause between two looks at an empty queue.
    lease_seconds: a job whose worker is silent for so long goes to another.
    parent_pid: end when the process that started this one is no longer this one; None: run on.
    """

    index_directory: Path
    model_spec: str | None = None
    device: str = "auto"
    decode_timeout_seconds: float = 300.0
    worker_grace_seconds: float = 20.0
    poll_seconds: float = 0.2
    lease_seconds: float = 60.0
    parent_pid: int | None = None

    @classmethod
    def from_environment(
        cls, environment: Environment, index_directory: Path, *, parent_pid: int | None = None
    ) -> Self:
        """The part of `environment` that concerns a worker."""
        return cls(index_directory, environment.model, **_shared(cls, environment), parent_pid=parent_pid)


def _shared(cls: type[Any], environment: Environment) -> dict[str, Any]:
    names = {field.name for field in fields(cls)} & set(Environment.model_fields)
    return {name: getattr(environment, name) for name in names}
