"""API keys: created, stored as hashes, looked up, removed.

A key is 256 random bits, so it cannot be guessed and a plain sha256 protects it: slow hashes (scrypt,
argon2) are for passwords, which people choose from few. The file holds no key, but its hashes sign
sessions (`service.auth.access`), and a line written to it is a key: only its owner may read or write it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

logger = logging.getLogger("xclip_search.service")

KEYS_FILE = "keys.json"
"""In the index directory, unless the settings name another file."""

KEY_PREFIX = "xcs_"
"""Begins every key, so that programs which look for leaked secrets can know it."""

POLL_SECONDS = 1.0
"""Pause between two checks of a running server whether the file has changed."""

Scope = Literal["read", "write"]


class KeysFileError(Exception):
    """The file of keys cannot be read, is none, or may be written to by others."""


class KeyNameTakenError(Exception):
    """There is a key of this name."""


class KeyNotFoundError(Exception):
    """There is no key of this name."""


class ApiKey(BaseModel):
    """A key without its secret. `write` allows all that `read` does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    scope: Scope
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created_at: datetime

    @property
    def client(self) -> str:
        """What identifies the client that uses this key, see `service.auth.access.CLIENT`."""
        return f"key {self.name}"

    def allows(self, scope: Scope) -> bool:
        """Whether this key may do what needs `scope`."""
        return scope == "read" or self.scope == "write"


class _KeysDocument(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[ApiKey] = []


def keys_path(index_directory: Path, keys_file: Path | None) -> Path:
    """Where the keys are: `keys_file`, or in the index directory."""
    return keys_file.expanduser().absolute() if keys_file is not None else index_directory / KEYS_FILE


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in a file; none where there is no file.

    Raises:
        KeysFileError: The file cannot be read or is no file of keys, or others may write to it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            mode = stat.S_IMODE(status.st_mode)
            text = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KeysFileError(f"the keys in {path} cannot be read: {error.strerror}") from error
    if mode & 0o022:
        raise KeysFileError(f"others may write to {path}; make it yours alone: chmod 600 {path}")
    if mode & 0o044 and status.st_uid == os.geteuid():  # A Secret of Kubernetes is root's, for a group.
        logger.warning("others may read %s; make it yours alone: chmod 600 %s", path, path)
    try:
        keys = _KeysDocument.model_validate_json(text).keys
    except ValidationError as error:
        raise KeysFileError(f"{path} is not a file of keys, or is damaged") from error
    if len({key.name for key in keys}) < len(keys):
        raise KeysFileError(f"{path} has two keys of one name")
    return keys


def add_key(path: Path, name: str, scope: Scope) -> str:
    """Create a key and add its hash to the file, which is made where there is none.

    Args:
        path: The file of keys.
        name: 1 to 64 of the characters A-Z a-z 0-9 . _ -
        scope: What the key allows.

    Returns:
        The key. It is not stored, and cannot be shown again.

    Raises:
        KeyNameTakenError: A key has this name.
        KeysFileError: As `read_keys`.
        pydantic.ValidationError: The name is not allowed.
    """
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(name=name, scope=scope, sha256=hash_key(secret), created_at=datetime.now(UTC))
    with _locked(path):
        keys = read_keys(path)
        if any(known.name == name for known in keys):
            raise KeyNameTakenError(name)
        _write_keys(path, [*keys, key])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Remove a key from the file; servers refuse it and its sessions within POLL_SECONDS.

    Raises:
        KeyNotFoundError: No key has this name.
        KeysFileError: As `read_keys`.
    """
    with _locked(path):
        keys = read_keys(path)
        rest = [key for key in keys if key.name != name]
        if len(rest) == len(keys):
            raise KeyNotFoundError(name)
        _write_keys(path, rest)


def hash_key(secret: str) -> str:
    """What is stored of a key: its sha256, 64 hex digits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time change the file, which is replaced, so the lock is a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_keys(path: Path, keys: Sequence[ApiKey]) -> None:
    text = _KeysDocument(keys=list(keys)).model_dump(mode="json")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 (a descriptor, not a path)
            json.dump(text, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
