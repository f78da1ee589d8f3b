"""Where an index in PostgreSQL lies: its database and schema, and the folders of this machine beside it.

    postgresql://user@host/database?schema=name&media=/shared/folder&cache=/local/folder

It is libpq's address with more parameters. `schema` names the index; several indexes may lie in one
database. `media` is the folder of uploaded videos and keys, which all machines of the index share, and
`cache` that of what is derived, on this machine: coarse snapshots and feature files; `replica` the address of
a hot standby that features are read from, `stale_reads_seconds` for how long searches go on without the
database. Other parameters
(`sslmode`, `service`, `target_session_attrs`, several hosts) are libpq's. It holds no password, so that it
can be shown, logged and given to another process: that comes from a password file (`PGPASSFILE`, ~/.pgpass),
a service file or `PGPASSWORD`.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from indexer.errors import IndexNotFoundError
from indexer.store.records import FIRST_GENERATION

SCHEMES: Final = ("postgresql", "postgres")
DEFAULT_SCHEMA: Final = "xclip"

_OURS: Final = ("schema", "media", "cache", "replica", "stale_reads_seconds")
_SCHEMA: Final = re.compile(r"[a-z_][a-z0-9_]{0,49}")
_OF_A_GENERATION: Final = re.compile(r"_g[0-9]+$")


@dataclass(frozen=True)
class PostgresAddress:
    """A parsed address.

    Attributes:
        conninfo: what libpq is given.
        schema: of the index's first generation.
        media, cache: folders; None for some below the user's cache.
        replica: what libpq is given to read features elsewhere; None where they are read where all else is.
        stale_reads_seconds: for how long searches are answered from copies on this machine while the database
            does not answer.
    """

    conninfo: str
    schema: str
    media: Path | None = None
    cache: Path | None = None
    replica: str | None = None
    stale_reads_seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> PostgresAddress:
        """The address that a text says.

        Raises:
            IndexNotFoundError: it is none, or holds a password, which the message does not repeat.

        Example:
            >>> PostgresAddress.parse("postgresql://anna@db.example/videos?schema=films").schema
            'films'
            >>> PostgresAddress.parse("postgresql://anna:secret@db.example/videos")
            Traceback (most recent call last):
            ...
            indexer.errors.IndexNotFoundError: an address with a password is refused, for it is shown in logs\
 and lists of processes: put the password into a file that PGPASSFILE names, or into a service file
        """
        parts = urlsplit(text)
        parameters = parse_qsl(parts.query, keep_blank_values=True)
        ours = {name: value for name, value in parameters if name in _OURS}
        names = [name for name, _ in parameters]
        if parts.password is not None or {"password", "sslpassword"} & set(names):
            raise IndexNotFoundError(
                "an address with a password is refused, for it is shown in logs and lists of processes: put"
                " the password into a file that PGPASSFILE names, or into a service file"
            )
        if any(names.count(name) > 1 for name in _OURS) or "options" in names:
            raise IndexNotFoundError("an address names one schema and one folder each, and no options")
        schema = ours.get("schema", DEFAULT_SCHEMA)
        if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_") or _OF_A_GENERATION.search(schema):
            raise IndexNotFoundError(
                "a schema is named by 1 to 50 lower-case letters, digits and _, does not begin with a digit"
                " or pg_, and does not end in _g and digits, as the schemas of later generations do"
            )
        others = [(name, value) for name, value in parameters if name not in _OURS]
        base = f"postgresql://{parts.netloc}{parts.path or '/'}"
        conninfo = f"{base}?{urlencode(others)}" if others else base
        media, cache = (_folder(ours.get(name)) for name in ("media", "cache"))
        stale_reads_seconds = _seconds(ours.get("stale_reads_seconds", "0"))
        return cls(conninfo, schema, media, cache, _replica(ours.get("replica")), stale_reads_seconds)

    def completed(
        self, media: Path | None = None, cache: Path | None = None, replica: str | None = None
    ) -> PostgresAddress:
        """The same index with these folders and this replica, where they are given and the address itself
        names none. Raises IndexNotFoundError where the replica is no address."""
        return replace(
            self,
            media=self.media or (media and media.expanduser().absolute()),
            cache=self.cache or (cache and cache.expanduser().absolute()),
            replica=self.replica or _replica(replica),
        )

    @property
    def of_replica(self) -> PostgresAddress | None:
        """The same index at the replica, where there is one."""
        return None if self.replica is None else replace(self, conninfo=self.replica, replica=None)

    @property
    def name(self) -> str:
        """What the index is called in messages: its database and schema."""
        return self._with(schema=self.schema)

    @property
    def text(self) -> str:
        """The whole address, in one form."""
        others: dict[str, object] = {"media": self.media, "cache": self.cache, "replica": self.replica}
        others["stale_reads_seconds"] = self.stale_reads_seconds
        return self._with(schema=self.schema, **{name: str(value) for name, value in others.items() if value})

    def _with(self, **parameters: str) -> str:
        return f"{self.conninfo}{'&' if '?' in self.conninfo else '?'}{urlencode(parameters)}"

    def schema_of(self, generation: int) -> str:
        """The schema of a generation of the index."""
        return self.schema if generation == FIRST_GENERATION else f"{self.schema}_g{generation}"

    @property
    def media_directory(self) -> Path:
        """The folder of uploaded videos and keys."""
        return self.media or self._own_cache / "shared"

    def cache_directory(self, generation: int) -> Path:
        """The folder of what is derived from a generation, on this machine."""
        return self._own_cache / str(generation)

    @property
    def backup_advice(self) -> str:
        """How the index is backed up, restored and moved: by PostgreSQL's own commands, and by ours."""
        return (
            f"PostgreSQL makes its own backups of one moment: pg_dump --format=custom --schema={self.schema}"
            f" --schema='{self.schema}_g[0-9]*' --file=FILE '{self.conninfo}', and back:"
            f" pg_restore --dbname='{self.conninfo}' FILE; for going"
            " back to any moment it archives its log (pg_basebackup). The commands export and import move an"
            " index to another store"
        )

    @property
    def _own_cache(self) -> Path:
        """A folder of the index alone: several may have the same `cache`."""
        digest = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return (self.cache or Path.home() / ".cache" / "xclip-search") / f"{self.schema}-{digest}"


def _replica(text: str | None) -> str | None:
    """What libpq is given, of the address of a replica."""
    if not text:
        return None
    if not is_postgres_address(text):
        raise IndexNotFoundError("a replica is named by an address, as postgresql://user@host/database")
    return PostgresAddress.parse(text).conninfo


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise IndexNotFoundError("stale_reads_seconds is a number of seconds from 0 on")
    return seconds


def _folder(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None


def is_postgres_address(address: str | Path) -> bool:
    """Whether this names a database, not a directory."""
    return isinstance(address, str) and address.split("://", 1)[0] in SCHEMES and "://" in address
