"""Addresses of indexes in PostgreSQL: what they say, what is refused, and that no password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.errors import IndexNotFoundError, IndexStorageError
from indexer.store.postgres.address import PostgresAddress, is_postgres_address
from indexer.store.postgres.connections import escaped, unescaped
from indexer.store.store import open_store, store_exists


@pytest.mark.parametrize(
    ("text", "conninfo", "schema"),
    [
        ("postgresql://anna@db/videos?schema=films", "postgresql://anna@db/videos", "films"),
        ("postgres://db:5433/videos", "postgresql://db:5433/videos", "xclip"),
        (
            "postgresql://a,b/videos?schema=x&target_session_attrs=read-write",
            "postgresql://a,b/videos?target_session_attrs=read-write",
            "x",
        ),
        (
            "postgresql:///videos?host=/run/pg&schema=x1",
            "postgresql:///videos?host=%2Frun%2Fpg",
            "x1",
        ),
        ("postgresql://?service=videos", "postgresql:///?service=videos", "xclip"),
    ],
)
def test_an_address_is_one_of_libpq_and_a_schema(text: str, conninfo: str, schema: str) -> None:
    address = PostgresAddress.parse(text)
    assert (address.conninfo, address.schema) == (conninfo, schema)
    assert PostgresAddress.parse(address.text) == address, "the one form of it is an address too"
    assert address.schema_of(1) == schema and address.schema_of(2) == f"{schema}_g2"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://anna:secret@db/videos",
        "postgresql://db/videos?password=secret",
        "postgresql://db/videos?schema=secret;drop",
        "postgresql://db/videos?schema=pg_secret",
        "postgresql://db/videos?schema=a&schema=secret",
        "postgresql://db/videos?options=-csecret",
    ],
)
def test_what_is_refused_is_not_repeated(text: str) -> None:
    with pytest.raises(IndexNotFoundError) as caught:
        open_store(text)
    assert "secret" not in str(caught.value)


def test_a_directory_is_not_taken_for_a_database() -> None:
    assert is_postgres_address("postgresql://db/videos") and is_postgres_address("postgres:///videos")
    for other in ("postgresql", "./postgresql:/x", Path("postgresql://db/videos"), "https://db/videos"):
        assert not is_postgres_address(other)


def test_the_folders_of_an_index_are_its_own(tmp_path: Path) -> None:
    one, other = (
        PostgresAddress.parse(f"postgresql://db/videos?schema={name}&cache={tmp_path}") for name in ("a", "b")
    )
    assert one.cache_directory(1).is_relative_to(tmp_path)
    assert len({one.cache_directory(1), one.cache_directory(2), other.cache_directory(1)}) == 3
    assert one.media_directory != other.media_directory
    named = one.completed(tmp_path / "media", tmp_path / "other")
    assert named.media_directory == tmp_path / "media", "which all its machines share"
    assert named.cache_directory(1) == one.cache_directory(1), "the address itself counts before"
    assert PostgresAddress.parse(named.text) == named and str(tmp_path) not in named.name


def test_a_database_that_is_not_there_is_an_error_at_once_and_no_missing_index(tmp_path: Path) -> None:
    address = f"postgresql://anna@/videos?host={tmp_path}"
    for call in (open_store, store_exists):
        with pytest.raises(IndexStorageError, match="does not answer"):
            call(address)


@pytest.mark.parametrize("text", ["", "a", "\0", "\x01", "a\0\x01\x02\0\0\x01\x01z", "\x01\x02"])
def test_any_text_comes_back_and_keeps_its_place(text: str) -> None:
    assert unescaped(escaped(text)) == text and "\0" not in escaped(text)
    for other in ("", "\0", "\x01", "\x02", "a", "a\0", "a\x01", "\x01\0", "\0\x01"):
        assert (escaped(text) < escaped(other)) == (text < other)
