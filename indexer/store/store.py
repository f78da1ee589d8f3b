"""What the rest of the project asks of a store, whichever database holds it, and how one is opened.

There are two: `indexer.store.sqlite` in a directory, and `indexer.store.postgres` for several machines. The
contracts are written once, at the methods of SQLite's `Catalog` and `JobQueue` that have the same names; the
tests hold both to them.
"""

# ruff: noqa: D102, the contracts stand at the methods of the SQLite store.

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexNotFoundError, IndexStorageError
from indexer.store.filters import Filter
from indexer.store.job import Admission, FailureReason, Job, JobState, NewJob
from indexer.store.postgres.address import PostgresAddress, is_postgres_address
from indexer.store.records import (
    AddOutcome,
    Change,
    Damage,
    IndexFacts,
    KeptOut,
    KnownFile,
    Matches,
    NewVideo,
    RefusedVideo,
    SegmentFeatures,
    SegmentInfo,
    SegmentSpans,
    Sort,
    StoreState,
    Successor,
    VideoRecord,
    WordMatches,
)
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.generations import index_exists
from indexer.store.sqlite.switching import DirectoryGenerations
from indexer.store.transcripts import Transcript, TranscriptFile
from indexer.store.video_rows import VideoChanges

if TYPE_CHECKING:
    from indexer.store.postgres import catalog as postgres_catalog
    from indexer.store.postgres import connections as postgres_connections
    from indexer.store.sqlite import connections, files, jobs, words

Transaction = TypeVar("Transaction")
"""Several changes as one, in the store's own way."""

JobTransaction = TypeVar("JobTransaction", contravariant=True)

SegmentIds = Sequence[int] | NDArray[np.int64]


class Described(Protocol):
    """What an index is and holds, and where it lies on this machine.

    address: with which `open_store` opens it. index_directory: of files that belong to all generations and
    machines. directory: of what is derived from this one, on this machine.
    """

    address: str | Path

    facts: IndexFacts
    created_at: float
    generation: int
    index_directory: Path
    directory: Path

    @property
    def fingerprint(self) -> str: ...
    @property
    def model_spec(self) -> str: ...
    @property
    def embedding_dim(self) -> int: ...
    @property
    def num_frames(self) -> int: ...
    @property
    def sampling_json(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def num_videos(self) -> int: ...
    @property
    def num_segments(self) -> int: ...


class VideoStore(Protocol[Transaction]):
    """Records of videos: added whole or not at all, found by id, content, filter or page."""

    def transaction(self) -> AbstractContextManager[Transaction]: ...
    def add_video(self, video: NewVideo, transaction: Transaction | None = None) -> AddOutcome: ...
    def add_videos(
        self, videos: Sequence[NewVideo], transaction: Transaction | None = None
    ) -> list[AddOutcome | RefusedVideo]: ...
    def patch_video(
        self,
        video_id: str,
        patch: Mapping[str, Any],
        *,
        check: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> VideoRecord: ...
    def update_video(
        self, video_id: str, transaction: Transaction | None = None, **changes: Unpack[VideoChanges]
    ) -> VideoRecord: ...
    def delete_video(
        self, video_id: str, transaction: Transaction | None = None, *, keep_out: bool = False
    ) -> None: ...
    def get_video(self, video_id: str) -> VideoRecord: ...
    def get_videos(self, video_ids: Sequence[str]) -> dict[str, VideoRecord]: ...
    def list_videos(
        self,
        limit: int = 100,
        after: int | None = None,
        *,
        chosen: Filter | None = None,
        sort: Sort = "-added_at",
        after_recorded_at: float | None = None,
    ) -> list[VideoRecord]: ...
    def iterate_videos(self, block_size: int = 1_000) -> Iterator[list[VideoRecord]]: ...
    def find_by_sha256(
        self, content_sha256: str, transaction: Transaction | None = None
    ) -> VideoRecord | None: ...
    def find_by_uris(self, uris: Sequence[str]) -> dict[str, list[VideoRecord]]: ...
    def find_by_contents(self, content_sha256s: Sequence[str]) -> dict[str, VideoRecord]: ...
    def known_sizes(self, sizes_bytes: Sequence[int]) -> set[int]: ...
    def videos_below(self, folder_uri: str) -> Iterator[VideoRecord]: ...
    def totals(self) -> tuple[int, int]: ...
    def video_ids(self) -> list[str]: ...


class SegmentStore(Protocol):
    """Segments with their features, and the segments that a filter matches."""

    def segment_features(self, segment_ids: SegmentIds) -> SegmentFeatures: ...
    def video_features(self, segment_ids: SegmentIds) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
    def segment_infos(self, segment_ids: SegmentIds) -> dict[int, SegmentInfo]: ...
    def segments_and_videos(self, segment_ids: SegmentIds) -> dict[int, tuple[SegmentInfo, VideoRecord]]: ...
    def video_segments(self, video_id: str) -> list[SegmentInfo]: ...
    def segment_ids(self) -> NDArray[np.int64]: ...
    def owners_of_segments(
        self, segment_ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def iterate_features(self, block_size: int = 1024) -> Iterator[SegmentFeatures]: ...
    def iterate_video_features(
        self, block_size: int = 8192
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]: ...
    def matching(self, chosen: Filter, former: Matches | None = None) -> Matches: ...


class SearchedWords(Protocol):
    """Videos by the words of their titles, metadata and transcripts."""

    @property
    def transcripts(self) -> TranscriptsRead: ...
    def find_words(self, query: str) -> WordMatches: ...
    def passage_starts(self, matches: WordMatches) -> NDArray[np.float64]: ...
    def segments_of_videos(self, video_keys: SegmentIds) -> SegmentSpans: ...


class ChangeLog(Protocol):
    """What has changed, under numbers that any process can follow."""

    @property
    def sequence(self) -> int: ...
    def state(self, since: int | None = None, limit: int = 10_000) -> StoreState: ...
    def changes_since(self, sequence: int, limit: int = 10_000) -> list[Change]: ...
    def change_token(self, sequence: int) -> str | None: ...
    def forget_changes(self, before_sequence: int) -> None: ...


class Maintained(Protocol):
    """What maintenance asks: what the disk allows, a copy of one moment, and what is damaged."""

    def keep_reserve(self) -> None: ...
    def copy_to(self, target: Path) -> None: ...
    def check_records(self) -> None: ...
    def damages(self, on_progress: Callable[[int], None]) -> Iterator[Damage]: ...


class Generations(Protocol[JobTransaction]):
    """Which generation of the index is the current one."""

    @property
    def superseded_by(self) -> Successor | None: ...
    def generations(self) -> list[int]: ...
    def ids_in_other_generations(self, video_ids: Sequence[str]) -> set[str]: ...
    def carry_over(self, successor: Self, transaction: JobTransaction) -> int: ...
    def hand_over(self, successor: Self, transaction: JobTransaction) -> None: ...


class IndexGenerations(Protocol):
    """All generations of one index, for the process that makes, switches and removes them."""

    def locked(self) -> AbstractContextManager[None]: ...
    def numbers(self) -> list[int]: ...
    def successors(self) -> dict[int, Successor | None]: ...
    def open_current(self) -> Store[Any]: ...
    def open(self, number: int, *, although_superseded: bool = False) -> Store[Any]: ...
    def create(self, facts: IndexFacts, *, successor_of: int) -> Store[Any]: ...
    def remove(self, number: int) -> None: ...


class SearchedStore(Described, SegmentStore, SearchedWords, ChangeLog, Protocol):
    """What searches and the coarse index read.

    filter_limit_seconds: how long it may take to find what a filter matches. silence_limit_seconds: how long
    a database may be silent before IndexUnavailableError. is_available: false while it does not answer.
    stale_seconds: for how long that has been so, where segments and records can still be read as they were.
    needs_copies: whether searches shall go on then, from copies on this machine.
    """

    filter_limit_seconds: float
    silence_limit_seconds: float

    @property
    def is_read_only(self) -> bool: ...
    @property
    def is_available(self) -> bool: ...
    @property
    def stale_seconds(self) -> float | None: ...
    @property
    def needs_copies(self) -> bool: ...
    def must_keep_rows(self, sequence: int) -> bool: ...
    def keep_rows(self) -> None: ...


class Store(
    SearchedStore, VideoStore[Transaction], Generations[Transaction], Maintained, Protocol[Transaction]
):
    """The truth about an index. Safe to use from several threads; a context manager that closes it."""

    @property
    def jobs(self) -> Jobs[Transaction]: ...
    @property
    def files(self) -> Files[Transaction]: ...
    @property
    def kept_out(self) -> KeptOutContent[Transaction]: ...
    @property
    def transcripts(self) -> Transcripts[Transaction]: ...
    def snapshot(self) -> AbstractContextManager[Self]: ...
    def repair(self, transaction: Transaction) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Jobs(Protocol[JobTransaction]):
    """The job queue of a store: ingest requests, leased by workers of any process."""

    def admit(self, new: NewJob, *, max_queued: int) -> Admission: ...
    def get(self, job_id: str) -> Job: ...
    def list_jobs(
        self, limit: int = 100, *, state: JobState | None = None, after: int | None = None
    ) -> list[Job]: ...
    def cancel(self, job_id: str, reason: str = "cancelled") -> Job: ...
    def lease(self, worker_name: str, lease_seconds: float, *, unfetched: bool = False) -> Job | None: ...
    def heartbeat(self, job_id: str, lease_seconds: float, *, attempt: int | None = None) -> Job: ...
    def finish(
        self,
        job_id: str,
        video_id: str,
        *,
        attempt: int | None = None,
        transaction: JobTransaction | None = None,
    ) -> Job: ...
    def fail(
        self, job_id: str, reason: str, failure: FailureReason, *, attempt: int | None = None
    ) -> Job: ...
    def release(self, job_id: str, *, attempt: int | None = None) -> Job: ...
    def put_back_fetched(self, job_id: str, content_sha256: str, *, attempt: int | None = None) -> Job: ...
    def has_capacity(self, max_queued: int) -> bool: ...
    def counts(self) -> dict[JobState, int]: ...
    def failure_counts(self) -> dict[FailureReason, int]: ...
    def ended_sources(self, paths: Sequence[Path]) -> list[Path]: ...
    def forget_ended(self, before: float) -> int: ...
    def damaged(self) -> Iterator[int]: ...
    def forget_damaged(self, transaction: JobTransaction) -> None: ...


class Files(Protocol[JobTransaction]):
    """The files that were read, by their addresses."""

    def find(self, uris: Sequence[str]) -> dict[str, KnownFile]: ...
    def with_content(self, content_sha256s: Sequence[str]) -> list[KnownFile]: ...
    def below(self, folder_uri: str) -> Iterator[KnownFile]: ...
    def remember(self, files: Iterable[KnownFile], transaction: JobTransaction | None = None) -> None: ...
    def forget(self, uris: Sequence[str], transaction: JobTransaction | None = None) -> None: ...
    def damaged(self) -> Iterator[str]: ...
    def forget_damaged(self, transaction: JobTransaction) -> None: ...


class KeptOutContent(Protocol[JobTransaction]):
    """The content that was deleted on purpose and does not come in again until it is let in."""

    def add(self, kept_out: KeptOut, transaction: JobTransaction | None = None) -> None: ...
    def find(self, content_sha256s: Sequence[str]) -> dict[str, KeptOut]: ...
    def list_all(self) -> list[KeptOut]: ...
    def let_in(self, content_sha256: str) -> bool: ...
    def let_in_video(self, video_id: str) -> None: ...


class TranscriptsRead(Protocol):
    """Transcripts as searches read them."""

    def of_videos(self, video_ids: Sequence[str]) -> dict[str, list[Transcript]]: ...


class Transcripts(TranscriptsRead, Protocol[JobTransaction]):
    """The transcripts of the videos, by video and track."""

    def files_of_videos(self, video_ids: Sequence[str]) -> dict[str, dict[str, TranscriptFile | None]]: ...
    def put(
        self, video_id: str, transcript: Transcript, transaction: JobTransaction | None = None
    ) -> None: ...
    def delete(self, video_id: str, track: str, transaction: JobTransaction | None = None) -> None: ...


def open_store(address: str | Path, *, fingerprint: str | None = None) -> Store[Any]:
    """Open the store at an address.

    Args:
        address: the directory of an index, or `postgresql://user@host/database?schema=name`
            (`indexer.store.postgres.address`).
        fingerprint: the one that the index must have, or None for any.

    Raises:
        IndexNotFoundError: there is no index, or the address is of a kind that is not known.
        IndexDamagedError, IndexVersionError, FingerprintMismatchError: see `Catalog.open`.
        IndexStorageError: the database does not answer, or psycopg is not installed.

    Example:
        >>> open_store("mysql://db.example/videos")
        Traceback (most recent call last):
        ...
        indexer.errors.IndexNotFoundError: an index lies in a directory or at postgresql://, not at mysql://
    """
    if is_postgres_address(address):
        opened: Store[Any] = _postgres().PostgresCatalog.open(str(address), fingerprint=fingerprint)
        return opened
    return Catalog.open(_directory(address), fingerprint=fingerprint)


def open_store_for_searches(address: str | Path) -> Store[Any]:
    """`open_store`, for a process that searches: where the address says so (`stale_reads_seconds`), segments
    and records are read as they were, from copies on this machine, while the database does not answer."""
    store = open_store(address)
    if not is_postgres_address(address) or not PostgresAddress.parse(str(address)).stale_reads_seconds:
        return store
    try:
        stale: Store[Any] = _postgres("outage.stale_reads").StaleCatalog(store)
    except BaseException:
        store.close()
        raise
    return stale


def create_store(address: str | Path, facts: IndexFacts) -> Store[Any]:
    """Make an empty store at an address. Raises IndexExistsError, and what `open_store` raises."""
    if is_postgres_address(address):
        created: Store[Any] = _postgres().PostgresCatalog.create(str(address), facts)
        return created
    return Catalog.create(_directory(address), facts)


def open_or_create_store(address: str | Path, facts: IndexFacts) -> Store[Any]:
    """`open_store` with the fingerprint of `facts` where there is an index, else `create_store`; raises what
    they raise."""
    if is_postgres_address(address):
        opened: Store[Any] = _postgres().PostgresCatalog.open_or_create(str(address), facts)
        return opened
    return Catalog.open_or_create(_directory(address), facts)


def store_exists(address: str | Path) -> bool:
    """Whether there is an index at an address, without opening it. Raises IndexStorageError where a database
    does not answer."""
    if is_postgres_address(address):
        return bool(_postgres().index_exists(str(address)))
    return index_exists(_directory(address))


def generations_of(address: str | Path) -> IndexGenerations:
    """All generations of the index at an address. Raises IndexNotFoundError where it is none."""
    if is_postgres_address(address):
        of_schemas: IndexGenerations = _postgres("switching").SchemaGenerations(str(address))
        return of_schemas
    return DirectoryGenerations(_directory(address))


def _postgres(module: str = "catalog") -> ModuleType:
    """A module of the store in PostgreSQL, which needs an extra."""
    try:
        return importlib.import_module(f"indexer.store.postgres.{module}")
    except ModuleNotFoundError as error:
        if error.name not in ("psycopg", "psycopg_pool"):
            raise
        raise IndexStorageError(
            "an index in PostgreSQL needs psycopg: pip install 'xclip-search[postgres]'"
        ) from None


def _directory(address: str | Path) -> Path:
    scheme, separator, _ = str(address).partition("://")
    if separator and isinstance(address, str):
        raise IndexNotFoundError(f"an index lies in a directory or at postgresql://, not at {scheme}://")
    return Path(address)


if TYPE_CHECKING:  # Both are stores.

    def _is_postgres_store(
        catalog: postgres_catalog.PostgresCatalog,
    ) -> Store[postgres_connections.Transaction]:
        return catalog

    def _is_store(catalog: Catalog) -> Store[connections.Transaction]:
        return catalog

    def _is_jobs(queue: jobs.JobQueue) -> Jobs[connections.Transaction]:
        return queue

    def _is_files(table: files.FileTable) -> Files[connections.Transaction]:
        return table

    def _is_kept_out(table: files.KeptOutTable) -> KeptOutContent[connections.Transaction]:
        return table

    def _is_transcripts(table: words.TranscriptTable) -> Transcripts[connections.Transaction]:
        return table
