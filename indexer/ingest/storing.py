"""Encodes the files of a plan and stores them: each video in one transaction, with all that belongs to it.

`encode_and_store` is what a run on this machine and an actor of a cluster (`indexer.ingest.cluster`) both do;
what became of each file is small enough to be sent from one machine to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from indexer.errors import (
    DuplicateIdError,
    InvalidRecordError,
    KeptOutError,
    MediaError,
    NotAVideoError,
    TranscriptError,
    TruncatedMediaError,
    UnsupportedMediaError,
    VideoNotFoundError,
)
from indexer.ingest.library import FoundFile
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import Encoded, IndexEvent, VideoEncoder, fields_of_source, find_in
from indexer.ingest.planning import KEPT_OUT, Action, Found
from indexer.ingest.remote_files import UNKNOWN_VERSION, RemoteFile
from indexer.ingest.transcript_files import read_transcript
from indexer.ingest.video_files import place_of, title_of_file
from indexer.media.decode_messages import HashedFile
from indexer.store.records import KnownFile, NewVideo, VideoRecord
from indexer.store.store import Store
from indexer.store.text import nfc
from indexer.store.transcripts import Transcript

LASTING_FAILURES: Final = (NotAVideoError, UnsupportedMediaError, TruncatedMediaError)
"""Failures that lie in the content itself: the same bytes are not read again by the same version. Time,
memory and limits may be other ones next time."""

IsSettled = Callable[[FoundFile], bool]
"""Whether a file is whole, and no one writes to it any more."""


@dataclass(frozen=True)
class TranscriptsOfFile:
    """The transcripts of a video that are to be stored.

    Attributes:
        read: from their files.
        num_waiting: files that are still being written.
        notes: sentences about those that cannot be read.
    """

    read: Sequence[Transcript] = ()
    num_waiting: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class StoredFile:
    """What became of a file that was encoded.

    Attributes:
        event: as the caller is told.
        num_segments: of the video that it became; 0 for none.
        num_replaced: videos that gave way to it.
        transcripts: that came with it, without their lines: `num_transcripts` counts them.
        num_transcripts: that were stored.
        decode_seconds, encode_seconds: spent by all children together, and in the model, since the file
            before it.
    """

    event: IndexEvent
    num_segments: int = 0
    num_replaced: int = 0
    transcripts: TranscriptsOfFile = TranscriptsOfFile()
    num_transcripts: int = 0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0


def encode_and_store(
    catalog: Store[Any],
    encoder: VideoEncoder,
    actions: Iterable[Action | None],
    is_settled: IsSettled = lambda file: True,
) -> Iterator[StoredFile]:
    """Encode the files of `actions` and store each as soon as it is done, in about their order.

    Args:
        catalog: where the videos go.
        encoder: decodes and encodes; may be used again.
        actions: of the kind `encode`, read as they are needed; None says that there is no further one yet.
        is_settled: of the files of transcripts.

    Raises:
        IndexerError, OSError, RuntimeError: what concerns the index as a whole.
    """
    storing = _Storing(catalog, is_settled)
    decoded, encoded_seconds = encoder.decode_seconds, encoder.encode_seconds
    for source, encoded in encoder.encode(storing.sources(actions), storing.find_known):
        stored = storing.store(source, encoded)
        yield replace(
            stored,
            decode_seconds=encoder.decode_seconds - decoded,
            encode_seconds=encoder.encode_seconds - encoded_seconds,
        )
        decoded, encoded_seconds = encoder.decode_seconds, encoder.encode_seconds


def read_transcripts(action: Action, is_settled: IsSettled) -> TranscriptsOfFile:
    """The transcripts that are to be stored; what cannot be read is noted, and changes nothing."""
    read, notes, num_waiting = [], [], 0
    for track, file in action.transcripts:
        if not is_settled(file):
            num_waiting += 1
            continue
        try:
            read.append(read_transcript(track, file))
        except TranscriptError as error:
            notes.append(f"the transcript {file.path} is left out: {error}")
    return TranscriptsOfFile(read, num_waiting, notes)


class _Storing:
    """Stores what is encoded, each video with what it replaces and what is known of its file in one
    transaction."""

    def __init__(self, catalog: Store[Any], is_settled: IsSettled) -> None:
        self._catalog = catalog
        self._is_settled = is_settled
        self._actions: dict[str, Action] = {}
        self._hashed: dict[str, HashedFile] = {}
        self._find = find_in(catalog)
        self._num_replaced = 0
        self._transcripts = TranscriptsOfFile()

    def sources(self, actions: Iterable[Action | None]) -> Iterator[VideoSource | None]:
        """The files, and which action each belongs to is noted."""
        for action in actions:
            if action is None:
                yield None
                continue
            self._actions[str(action.file.source.path)] = action
            yield action.file.source

    def find_known(self, source: VideoSource, hashed: HashedFile) -> VideoRecord | None:
        """Look content up before it is decoded, and note its hash."""
        self._hashed[str(source.path)] = hashed
        return self._find(source, hashed)

    def store(self, source: VideoSource, encoded: Encoded) -> StoredFile:
        """Put what became of a file into the catalog."""
        self._num_replaced, self._transcripts = 0, TranscriptsOfFile()
        event = self._store(source, encoded)
        is_added = event.outcome == "added" and isinstance(encoded, NewVideo)
        num_read = len(self._transcripts.read)
        return StoredFile(
            event,
            len(encoded.segments) if is_added and isinstance(encoded, NewVideo) else 0,
            self._num_replaced,
            replace(self._transcripts, read=()),
            num_read,
        )

    def _store(self, source: VideoSource, encoded: Encoded) -> IndexEvent:
        action = self._actions.pop(str(source.path))
        hashed = self._hashed.pop(str(source.path), None)
        file = None if hashed is None else with_hash(action.file, hashed)
        try:
            return self._stored(action, file, encoded)
        except KeptOutError:
            with self._catalog.transaction() as transaction:
                self._give_way(action, transaction)
                self._remember(file, transaction)
            return IndexEvent(source, "left out", None, KEPT_OUT)
        except (MediaError, DuplicateIdError, InvalidRecordError, VideoNotFoundError) as error:
            if file is not None and isinstance(error, LASTING_FAILURES):
                self._remember(replace(file, failure=str(error)))
            return IndexEvent(source, "failed", None, str(error))

    def _stored(self, action: Action, file: Found | None, encoded: Encoded) -> IndexEvent:
        source = action.file.source
        if isinstance(encoded, MediaError | KeptOutError):
            raise encoded
        if isinstance(encoded, NewVideo):
            self._transcripts = read_transcripts(action, self._is_settled)
            with self._catalog.transaction() as transaction:
                self._give_way(action, transaction)
                fields = {**fields_of_source(source, encoded), **_fields_of_former(action)}
                fields["transcripts"] = self._transcripts.read
                outcome = self._catalog.add_video(replace(encoded, **fields), transaction)
                self._remember(file, transaction)
            if outcome.created:
                partly = f"only {encoded.fraction_read:.0%} could be read" if encoded.partial else None
                return IndexEvent(source, "added", outcome.video_id, partly)
        else:
            outcome = encoded
            with self._catalog.transaction() as transaction:
                self._give_way(action, transaction)
                self._remember(file, transaction)
        # Another file of this run, or another process, has added the same content.
        video = self._catalog.get_video(outcome.video_id)
        is_here = video.uri in action.file.addresses
        return IndexEvent(
            source, "unchanged" if is_here else "duplicate", video.id, None if is_here else video.uri
        )

    def _give_way(self, action: Action, transaction: Any) -> None:
        self._num_replaced += give_way(self._catalog, action.replaces, transaction)

    def _remember(self, file: Found | None, transaction: Any = None) -> None:
        known = None if file is None else known_file(file)
        if known is not None:
            self._catalog.files.remember([known], transaction)


def give_way(catalog: Store[Any], videos: Sequence[VideoRecord], transaction: Any) -> int:
    """Delete videos, unless they changed since planning; returns how many were deleted."""
    now = catalog.get_videos([video.id for video in videos]) if videos else {}
    num_deleted = 0
    for video in videos:
        there = now.get(video.id)
        if there is not None and (there.content_sha256, there.uri) == (video.content_sha256, video.uri):
            catalog.delete_video(video.id, transaction)
            num_deleted += 1
    return num_deleted


def _fields_of_former(action: Action) -> dict[str, Any]:
    """Title and metadata of the replaced video, where the caller gives none."""
    if len(action.replaces) != 1:
        return {}
    former, source = action.replaces[0], action.file.source
    fields: dict[str, Any] = {}
    place = place_of(former.uri)
    if source.title is None and former.title and (place is None or former.title != nfc(title_of_file(place))):
        fields["title"] = former.title
    if not source.metadata:
        fields["metadata"] = former.metadata
    return fields


def with_hash(file: Found, hashed: HashedFile) -> Found:
    """The file as it was when it was hashed; one at an address, as it was listed."""
    if isinstance(file.source.path, RemoteFile):
        return replace(file, content_sha256=hashed.content_sha256)
    _, _, size_bytes, modified_ns = hashed.stamp
    return replace(file, size_bytes=size_bytes, modified_ns=modified_ns, content_sha256=hashed.content_sha256)


def known_file(file: Found) -> KnownFile | None:
    """What is remembered of a file; None where its content is not known, or it could not be told again."""
    if file.content_sha256 is None or file.modified_ns == UNKNOWN_VERSION:
        return None
    made_by = None if file.failure is None else xclip_version()
    return KnownFile(file.uri, file.size_bytes, file.modified_ns, file.content_sha256, file.failure, made_by)


@cache
def xclip_version() -> str:
    """Of this program; another one tries again what this one could not read."""
    return version("xclip-search")
