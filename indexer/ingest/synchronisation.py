"""Brings an index in line with a library of files: finds them, reads what is new, and accounts for every one.

    find -> known by address, size and time? -> hash what may be known -> plan -> apply -> encode what is new
                                                                                  -> missing, and pruned

What is planned is in `indexer.ingest.planning`. A file is hashed before the plan only where a video of its
size exists, so that moves are distinguished from new videos without reading a new library twice.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

from indexer.errors import (
    FetchError,
    InvalidRecordError,
    MediaError,
    TranscriptNotFoundError,
    VideoNotFoundError,
)
from indexer.ingest.library import FoundFile, Listing, absolute, find_files, look_at
from indexer.ingest.local_copies import LocalCopies
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import (
    IndexEvent,
    IndexingPipeline,
    Outcome,
    default_num_workers,
    problem_of,
)
from indexer.ingest.planning import (
    Action,
    Found,
    Knowledge,
    is_unchanged,
    missing_videos,
    plain_addresses,
    plan,
)
from indexer.ingest.remote_files import RemoteFile, describe_all, is_remote
from indexer.ingest.storing import (
    StoredFile,
    TranscriptsOfFile,
    encode_and_store,
    give_way,
    known_file,
    read_transcripts,
    with_hash,
    xclip_version,
)
from indexer.ingest.transcript_files import (
    find_transcripts,
    is_transcript,
    name_tracks,
    transcripts_beside,
)
from indexer.ingest.video_files import local_path
from indexer.media.decode_messages import HashedFile
from indexer.media.decode_pool import DecodePool
from indexer.store.records import KnownFile, VideoRecord
from indexer.store.store import Store
from indexer.store.transcripts import Transcript

PRUNE_DELAY_SECONDS: Final = 60.0
"""While files are still being written, what is missing may be on its way to another place."""

NO_SUCH_FILE: Final = "there is no such file"
_ACTIONS_AT_ONCE: Final = 500
"""In one transaction: few enough that other writers wait for milliseconds."""

_COUNTED: Final = ("added", "moved", "updated", "duplicate", "unchanged", "failed")


@dataclass(frozen=True)
class SyncOptions:
    """How an index is brought in line with files.

    Attributes:
        exclude: patterns in the style of .gitignore of files and folders to leave out.
        prune: whether the videos of missing files are deleted.
        dry_run: whether all is said and nothing done.
        rehash: whether all files are read, also those whose size and time are known.
        num_workers: children that read; None for as many as there are for encoding.
        read_timeout_seconds: the longest that reading one file for its hash may take.
    """

    exclude: Sequence[str] = ()
    prune: bool = False
    dry_run: bool = False
    rehash: bool = False
    num_workers: int | None = None
    read_timeout_seconds: float = 300.0


@dataclass
class SyncReport:
    """What became of every file.

    `num_files` is the sum of added, moved, updated, duplicate, unchanged, failed, left out and waiting.

    Attributes:
        num_files: that were seen.
        num_added: content that is new in the index.
        num_moved: known content whose video takes this path over, because its own is gone.
        num_updated: known content in its place whose title, metadata, uri or transcripts changed.
        num_duplicate: content whose video lives under another path.
        num_unchanged: known content in its place.
        num_failed: could not become videos; `failures` says why.
        num_left_out: not videos, excluded or kept out; `left_out` counts them by ending or reason.
        num_waiting: still being written, for a later run; only where a caller asks for that.
        num_partial: of the added, those that are truncated or damaged; `partial` says how much was read.
        num_replaced: videos that gave way to other content at their path.
        num_missing: videos below the folders whose files are gone.
        num_pruned: of the missing, those that were deleted.
        num_transcripts: files of transcripts that were read; they are none of `num_files`.
        num_segments: of the added; None where that is not known.
        seconds: of the run.
        decode_seconds: spent by all children together.
        encode_seconds: spent in the model.
        failures: (path, reason).
        partial: (path, what was read).
        moved: (path, the address before).
        updated: paths.
        duplicates: (path, where its video lives).
        missing: (id, address) of the videos.
        left_out: number of files by ending, such as `.jpg`, or reason.
        folders_left_out: (folder, reason) of those that were not entered, or could not be read.
        notes: sentences for the user.
        dry_run: whether nothing was done.
    """

    num_files: int = 0
    num_added: int = 0
    num_moved: int = 0
    num_updated: int = 0
    num_duplicate: int = 0
    num_unchanged: int = 0
    num_failed: int = 0
    num_left_out: int = 0
    num_waiting: int = 0
    num_partial: int = 0
    num_replaced: int = 0
    num_missing: int = 0
    num_pruned: int = 0
    num_transcripts: int = 0
    num_segments: int | None = 0
    seconds: float = 0.0
    decode_seconds: float | None = 0.0
    encode_seconds: float | None = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)
    partial: list[tuple[str, str]] = field(default_factory=list)
    moved: list[tuple[str, str]] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    folders_left_out: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dry_run: bool = False

    def count(self, path: str, outcome: Outcome, reason: str | None = None) -> None:
        """Account for one file."""
        self.num_files += 1
        if outcome == "left out":
            self.num_left_out += 1
            self.left_out[reason or ""] += 1
            return
        setattr(self, f"num_{outcome}", getattr(self, f"num_{outcome}") + 1)
        if outcome == "failed":
            self.failures.append((path, reason or ""))
        elif outcome == "moved":
            self.moved.append((path, reason or ""))
        elif outcome == "updated":
            self.updated.append(path)
        elif outcome == "duplicate":
            self.duplicates.append((path, reason or ""))
        elif outcome == "added" and reason is not None:
            self.num_partial += 1
            self.partial.append((path, reason))

    def count_listing(self, listing: Listing) -> None:
        """Account for what the walk left out."""
        for reason, number in listing.left_out.items():
            self.left_out[reason] += number
            self.num_left_out += number
            self.num_files += number
        self.folders_left_out += listing.folders_left_out
        for folder, reason in listing.unread:
            self.folders_left_out.append((folder, reason))
            self.notes.append(f"the folder {folder} could not be read, its files are not counted: {reason}")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        pairs = {
            "failures": ("path", "reason"),
            "partial": ("path", "reason"),
            "moved": ("path", "from"),
            "duplicates": ("path", "of"),
            "missing": ("id", "uri"),
            "folders_left_out": ("path", "reason"),
        }
        listed = {
            name: [dict(zip(keys, values, strict=True)) for values in getattr(self, name)]
            for name, keys in pairs.items()
        }
        return {**vars(self), **listed, "left_out": dict(self.left_out.most_common())}


@dataclass
class Progress:
    """Callbacks of a run.

    Attributes:
        on_reading: called with how many files were hashed and how many are to be.
        on_total: called with the number of files that are planned, before the first event.
        on_event: called once for each of them.
        on_actors: called with how many actors of a cluster work and how many there are to be.
        is_settled: whether a file is whole, and no one writes to it any more.
    """

    on_reading: Callable[[int, int], None] = lambda num_done, num_total: None
    on_total: Callable[[int], None] = lambda num_files: None
    on_event: Callable[[IndexEvent], None] = lambda event: None
    on_actors: Callable[[int, int], None] = lambda num_started, num_actors: None
    is_settled: Callable[[FoundFile], bool] = lambda file: True


EncodeActions = Callable[[Store[Any], Sequence[Action]], Generator[StoredFile]]
"""(catalog, actions of the kind `encode`) -> what became of each file, stored already."""


class Synchronisation:
    """Brings one index in line with files.

    Args:
        catalog: of the index; None for a dry run where there is none yet.
        make_pipeline: gives what encodes into the catalog; called only where something is to be encoded.
        options: how.
        progress: callbacks.
        encode_actions: encodes and stores in its place, on other machines for instance.
    """

    def __init__(
        self,
        catalog: Store[Any] | None,
        make_pipeline: Callable[[], IndexingPipeline],
        options: SyncOptions = SyncOptions(),
        progress: Progress | None = None,
        encode_actions: EncodeActions | None = None,
    ) -> None:
        if catalog is None and not options.dry_run:
            raise ValueError("without a catalog there can only be a dry run")
        self._catalog = catalog
        self._make_pipeline = make_pipeline
        self._encode_actions = encode_actions or self._encode_here
        self._options = options
        self._progress = progress or Progress()
        self._report = SyncReport(dry_run=options.dry_run)
        self._waiting: set[str] = set()
        self._known: dict[str, KnownFile] = {}
        self._described: dict[str, RemoteFile | FetchError] = {}

    def run(self, paths: Iterable[str | Path], sources: Iterable[VideoSource] = ()) -> SyncReport:
        """Look at files and folders, and at `sources`, files that the caller says something of.

        A file that fails is reported, never raised.

        Raises:
            FileNotFoundError: a path does not exist; the message names it.
            IndexerError, OSError, RuntimeError: what concerns the index as a whole: a full disk, a damaged
                catalog, a GPU without memory.
        """
        started = time.perf_counter()
        listing = self._list(paths)
        found = self._read(self._identify(listing, sources))
        below = self._videos_below(listing.folders)
        is_there = cache(lambda uri: _is_there(uri, listing))
        found += self._elsewhere(found, below, is_there)
        actions = plan(found, self._knowledge(found, is_there))
        self._progress.on_total(len(actions))
        self._apply([action for action in actions if action.kind != "encode"])
        self._encode([action for action in actions if action.kind == "encode"])
        # Encoding may have taken hours: looked for once more.
        is_there_now = cache(lambda uri: _is_there(uri, listing))
        gone = missing_videos(below, actions, is_there_now)
        self._account_for_missing([video for video in gone if video.uri not in self._waiting], listing)
        self._forget_gone_files(listing.folders, {file.uri for file in found}, is_there)
        self._report.seconds = time.perf_counter() - started
        return self._report

    # Finding

    def _list(self, paths: Iterable[str | Path]) -> Listing:
        paths = list(paths)
        try:
            listing = find_files(paths, self._options.exclude)
        except FileNotFoundError as error:
            here = [path for path in paths if not is_remote(path)]
            absent = [absolute(path) for path in here if not os.path.exists(path)]  # noqa: PTH110
            num_below = len(self._videos_below(absent))
            if not num_below:
                raise
            raise FileNotFoundError(
                f"{error}, and the index has {num_below} videos there, which are kept: mount its disk,"
                " give the new folder with `relocate`, or `delete` them"
            ) from None
        self._report.count_listing(listing)
        for address, reason in listing.failures:
            self._finish(VideoSource(RemoteFile(address)), "failed", reason=reason)
        return listing

    def _identify(self, listing: Listing, sources: Iterable[VideoSource]) -> list[tuple[Found, bool]]:
        """The videos among the files, and whether their content is still to be read."""
        beside = [file for file in listing.files if is_transcript(file.path) and not file.is_named]
        files: dict[str, tuple[FoundFile, VideoSource]] = {
            file.uri: (file, _source_of(file))
            for file in listing.files
            if file.is_named or not is_transcript(file.path)
        }
        sources = list(sources)
        places = [place for source in sources for place in (source.path, *(source.transcript_files or ()))]
        self._described = describe_all(place.uri for place in places if isinstance(place, RemoteFile))
        for source in sources:
            if (problem := problem_of(source)) is not None:
                self._finish(source, "failed", reason=problem)
                continue
            try:
                file = self._look_for(source.path)
            except FetchError as error:
                self._finish(source, "failed", reason=error.reason)
                continue
            except OSError as error:
                is_absent = isinstance(error, FileNotFoundError | NotADirectoryError)
                self._finish(source, "failed", reason=NO_SUCH_FILE if is_absent else str(error.strerror))
                continue
            # Before what was found in folders: the caller gives a title, id or metadata.
            files[file.uri] = (file, _source_of(file, source))
        if self._catalog is not None:
            self._known = self._catalog.files.find(list(files))
        found = [
            one for uri, (file, source) in files.items() if (one := self._identify_one(uri, file, source))
        ]
        named = [file.path for file, source in files.values() if file.is_named]
        return self._with_transcripts(found, beside, named)

    def _look_for(self, place: Path | RemoteFile) -> FoundFile:
        """A file that the caller names, as it is now. Raises OSError, FetchError."""
        if isinstance(place, RemoteFile):
            described = self._described[place.uri]
            if isinstance(described, FetchError):
                raise described
            return FoundFile.at(described, is_named=True)
        path = absolute(place)
        status = os.stat(path)  # noqa: PTH116
        return FoundFile(path, status.st_size, status.st_mtime_ns, is_named=True)

    def _with_transcripts(
        self, found: Sequence[tuple[Found, bool]], walked: Sequence[FoundFile], named: Sequence[str]
    ) -> list[tuple[Found, bool]]:
        """The videos with the files of their transcripts.

        Args:
            found: the videos, each as it comes.
            walked: files of transcripts in the folders.
            named: files that the caller named: what lies beside them was not walked. Beside those at
                addresses nothing is looked for, and what is known stays.
        """
        here = [path for path in named if not is_remote(path)]
        unknown = set(named).difference(here)
        files = {file.path: file for file in (*walked, *transcripts_beside(here))}
        tracks = find_transcripts((str(one.source.path) for one, _ in found), files.values())
        for one, _ in found:
            if one.source.transcript_files is not None:
                there = map(self._named_transcript, one.source.transcript_files)
                path = str(one.source.path)
                tracks[path] = name_tracks(path, [file for file in there if file is not None])
                unknown.discard(path)
        used = {file.path for of_one in tracks.values() for _, file in of_one}
        for file in walked:
            if file.path not in used:
                self._report.count(file.path, "left out", Path(file.path).suffix.lower())
        return [
            (replace(one, transcripts=tracks.get(path, None if path in unknown else ())), is_unread)
            for one, is_unread in found
            for path in [str(one.source.path)]
        ]

    def _named_transcript(self, place: Path | RemoteFile) -> FoundFile | None:
        try:
            return replace(self._look_for(place), is_named=False)
        except FetchError as error:
            reason = error.reason
        except OSError:
            reason = NO_SUCH_FILE
        self._report.notes.append(f"the transcript {place} is left out: {reason}")
        return None

    def _identify_one(self, uri: str, file: FoundFile, source: VideoSource) -> tuple[Found, bool] | None:
        known = self._known.get(uri)
        found = Found(uri, file.size_bytes, file.modified_ns, source)
        is_known = not self._options.rehash and is_unchanged(file.size_bytes, file.modified_ns, known)
        if is_known and known is not None and known.version in (None, xclip_version()):
            return replace(found, content_sha256=known.content_sha256, failure=known.failure), False
        look = look_at(file)
        if look.left_out is not None:
            self._report.count(file.path, "left out", look.left_out)
            return None
        if not self._progress.is_settled(file):
            self._report.num_files += 1
            self._report.num_waiting += 1
            self._waiting.add(uri)
            return None
        return replace(found, failure=look.failure), look.failure is None

    def _read(self, files: list[tuple[Found, bool]]) -> list[Found]:
        """Hash those whose content may be known; all, where that is asked for."""
        if self._catalog is None:
            return [file for file, _ in files]
        sizes = self._catalog.known_sizes(list({file.size_bytes for file, is_unread in files if is_unread}))
        if self._options.dry_run:  # Else a second file of the same content is noticed when it is encoded.
            num_of_size = Counter(file.size_bytes for file, _ in files)
            sizes |= {size_bytes for size_bytes, number in num_of_size.items() if number > 1}
        to_read = [
            number
            for number, (file, is_unread) in enumerate(files)
            if is_unread and (self._options.rehash or self._may_be_known(file, sizes))
        ]
        found = [file for file, _ in files]
        for number, answer in self._hashed({number: found[number].source.path for number in to_read}):
            if isinstance(answer, MediaError):
                found[number] = replace(found[number], failure=str(answer))
            else:
                found[number] = with_hash(found[number], answer)
        return found

    def _may_be_known(self, file: Found, sizes: Set[int]) -> bool:
        """Whether a file may hold the content of a video, as far as its size says."""
        place = file.source.path
        if isinstance(place, RemoteFile) and self._options.dry_run:
            return False  # Saying what would be done is no reason to fetch it.
        return file.size_bytes in sizes or (isinstance(place, RemoteFile) and place.size_bytes is None)

    def _hashed(self, places: dict[int, Path | RemoteFile]) -> Iterator[tuple[int, HashedFile | MediaError]]:
        if not places:
            return
        num_workers = self._options.num_workers or default_num_workers()
        with (
            DecodePool(num_workers, self._options.read_timeout_seconds) as pool,
            LocalCopies(2 * num_workers) as copies,
        ):
            waiting, under_way = list(reversed(places.items())), dict[Future[HashedFile], int]()
            num_done = 0
            while waiting or under_way:
                while waiting and len(under_way) < 2 * num_workers:
                    number, place = waiting.pop()
                    if isinstance(place, RemoteFile):
                        hashing = copies.submit_use(place, lambda path: pool.submit_hash(path).result())
                    else:
                        hashing = pool.submit_hash(place)
                    under_way[hashing] = number
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    number = under_way.pop(future)
                    try:
                        yield number, future.result()
                    except MediaError as error:
                        yield number, error
                    num_done += 1
                    self._progress.on_reading(num_done, len(places))

    def _videos_below(self, folders: Iterable[str]) -> list[VideoRecord]:
        if self._catalog is None:
            return []
        below = {}
        for folder in folders:
            for address in _addresses_of_folder(folder):
                below.update({video.id: video for video in self._catalog.videos_below(address)})
        return list(below.values())

    def _elsewhere(
        self, found: Sequence[Found], below: Sequence[VideoRecord], is_there: Callable[[str], bool | None]
    ) -> list[Found]:
        """Files beyond the found ones that hold the content of videos which have lost their own files."""
        if self._catalog is None:
            return []
        contents = {file.content_sha256 for file in found}
        addresses = {file.uri: file.content_sha256 for file in found}
        at = self._catalog.find_by_uris(list(addresses))
        lost = {video.content_sha256 for videos in at.values() for video in videos} - contents
        lost |= {
            video.content_sha256
            for video in below
            if video.uri and video.uri not in addresses and is_there(video.uri) is False
        } - contents
        elsewhere = []
        for file in self._catalog.files.with_content(sorted(lost)):
            path = local_path(file.uri)
            if file.uri not in addresses and file.failure is None and path and _holds(path, file):
                there = Found(
                    file.uri, file.size_bytes, file.modified_ns, VideoSource(path), file.content_sha256
                )
                tracks = find_transcripts([str(path)], transcripts_beside([str(path)]))
                elsewhere.append(replace(there, transcripts=tracks.get(str(path), ())))
                self._known[file.uri] = file
        return elsewhere

    def _knowledge(self, found: Sequence[Found], is_there: Callable[[str], bool | None]) -> Knowledge:
        if self._catalog is None:
            return Knowledge()
        contents = sorted({file.content_sha256 for file in found if file.content_sha256 is not None})
        videos = self._catalog.find_by_contents(contents)
        addresses = {address for file in found for address in file.addresses}
        at: dict[str, list[VideoRecord]] = {}
        by_address = self._catalog.find_by_uris(sorted(addresses))
        for file in found:
            there = [
                video
                for address in (file.uri, *plain_addresses(file.source.path))
                for video in by_address.get(address, ())
            ]
            if there:
                at[file.uri] = there
        beyond = [video for video in videos.values() if video.uri is not None and video.uri not in addresses]
        rows = self._catalog.files.find([video.uri for video in beyond if video.uri is not None])
        living = {
            video.uri for video in beyond if video.uri and _still_holds(video, rows.get(video.uri), is_there)
        }
        gone = {
            video.uri
            for video in beyond
            if video.uri and is_remote(video.uri) and is_there(video.uri) is False
        }
        unknown = [content for content in contents if content not in videos]
        tracks = self._catalog.transcripts.files_of_videos([video.id for video in videos.values()])
        return Knowledge(videos, at, self._catalog.kept_out.find(unknown).keys(), living, gone, tracks)

    # Doing

    def _apply(self, actions: Sequence[Action]) -> None:
        """Do what needs no reading, many actions in a transaction, and account for each."""
        for first in range(0, len(actions), _ACTIONS_AT_ONCE):
            some = [self._read_transcripts(action) for action in actions[first : first + _ACTIONS_AT_ONCE]]
            if self._catalog is not None and not self._options.dry_run:
                self._store(self._catalog, some)
            for action, _ in some:
                assert action.kind != "encode"
                self._report.num_replaced += len(action.replaces)
                video_id = None if action.video is None else action.video.id
                self._finish(action.file.source, action.kind, video_id, action.reason)

    def _read_transcripts(self, action: Action) -> tuple[Action, Sequence[Transcript]]:
        """The transcripts that are to be stored; where none is, the action may be to do nothing."""
        transcripts = read_transcripts(action, self._progress.is_settled)
        self._count_transcripts(transcripts, len(transcripts.read))
        said = action.changes.keys() - {"missing_since"}
        if action.kind == "updated" and not (said or transcripts.read or action.tracks_gone):
            action = replace(action, kind="unchanged")
        return action, transcripts.read

    def _count_transcripts(self, transcripts: TranscriptsOfFile, num_read: int) -> None:
        self._report.num_transcripts += num_read
        self._report.num_files += transcripts.num_waiting
        self._report.num_waiting += transcripts.num_waiting
        self._report.notes += transcripts.notes

    def _store(self, catalog: Store[Any], some: Sequence[tuple[Action, Sequence[Transcript]]]) -> None:
        actions = [action for action, _ in some]
        read = [action.file for action in actions if action.file.failure is None]
        files = [file for one in read if (file := known_file(one)) and self._known.get(one.uri) != file]
        if not files and not any(
            action.changes or action.replaces or action.tracks_gone or transcripts
            for action, transcripts in some
        ):
            return
        with catalog.transaction() as transaction:
            for action, transcripts in some:
                give_way(catalog, action.replaces, transaction)
                if action.video is not None:
                    _store_transcripts(catalog, action, transcripts, transaction)
                if action.changes and action.video is not None:
                    with contextlib.suppress(VideoNotFoundError):  # Deleted just now.
                        catalog.update_video(action.video.id, transaction, **action.changes)
            catalog.files.remember(files, transaction)

    def _encode(self, actions: Sequence[Action]) -> None:
        if not actions:
            return
        if self._options.dry_run or self._catalog is None:
            homes: dict[str, Found] = {}
            for action in actions:
                self._report.num_replaced += len(action.replaces)
                home = homes.setdefault(action.file.content_sha256 or action.file.uri, action.file)
                is_first = home is action.file
                self._finish(
                    action.file.source,
                    "added" if is_first else "duplicate",
                    reason=None if is_first else home.address,
                )
            return
        report = self._report
        report.decode_seconds = report.encode_seconds = 0.0
        # Closed at once where a callback raises, as ctrl-C does: decoders and actors do not go on.
        with contextlib.closing(self._encode_actions(self._catalog, actions)) as all_stored:
            for stored in all_stored:
                event = stored.event
                report.num_segments = (report.num_segments or 0) + stored.num_segments
                report.num_replaced += stored.num_replaced
                report.decode_seconds += stored.decode_seconds
                report.encode_seconds += stored.encode_seconds
                self._count_transcripts(stored.transcripts, stored.num_transcripts)
                self._finish(event.source, event.outcome, event.video_id, event.reason)

    def _encode_here(self, catalog: Store[Any], actions: Sequence[Action]) -> Generator[StoredFile]:
        with self._make_pipeline().encoder() as encoder:
            yield from encode_and_store(catalog, encoder, actions, self._progress.is_settled)

    def _finish(
        self, source: VideoSource, outcome: Outcome, video_id: str | None = None, reason: str | None = None
    ) -> None:
        self._report.count(str(source.path), outcome, reason)
        self._progress.on_event(IndexEvent(source, outcome, video_id, reason))

    # What is gone

    def _account_for_missing(self, gone: Sequence[VideoRecord], listing: Listing) -> None:
        report, catalog = self._report, self._catalog
        report.num_missing = len(gone)
        report.missing = [(video.id, video.uri or "") for video in gone]
        kept: set[str] = set()
        for folder in listing.empty:
            here = {video.id for video in gone if _is_below(video.uri, [folder])}
            if here:
                kept |= here
                report.notes.append(
                    f"{folder} is empty: is its disk mounted? The {len(here)} videos that the index has there"
                    " are kept"
                )
        if catalog is None:
            return
        now = time.time()
        surely = [video for video in gone if video.id not in kept]
        if self._options.prune:
            to_prune = [video for video in surely if not self._waiting or _is_long_gone(video, now)]
            report.num_pruned = len(to_prune)
        else:
            to_prune = []
        if self._options.dry_run:
            return
        pruned = {video.id for video in to_prune}
        to_mark = [video for video in surely if video.missing_since is None and video.id not in pruned]
        for first in range(0, max(len(to_prune), len(to_mark)), _ACTIONS_AT_ONCE):
            with catalog.transaction() as transaction:
                give_way(catalog, to_prune[first : first + _ACTIONS_AT_ONCE], transaction)
                for video in to_mark[first : first + _ACTIONS_AT_ONCE]:
                    with contextlib.suppress(VideoNotFoundError):
                        catalog.update_video(video.id, transaction, missing_since=now)

    def _forget_gone_files(
        self, folders: Iterable[str], found: set[str], is_there: Callable[[str], bool | None]
    ) -> None:
        """Forget duplicates that are gone. What is known of a missing video's file stays: it may return."""
        if self._catalog is None or self._options.dry_run:
            return
        table = self._catalog.files
        gone = [
            file
            for folder in folders
            for file in table.below(_addresses_of_folder(folder)[0])
            if file.uri not in found and is_there(file.uri) is False
        ]
        homes = self._catalog.find_by_contents([file.content_sha256 for file in gone])
        table.forget(
            [
                file.uri
                for file in gone
                if file.content_sha256 not in homes or homes[file.content_sha256].uri != file.uri
            ]
        )


def _store_transcripts(
    catalog: Store[Any], action: Action, transcripts: Sequence[Transcript], transaction: Any
) -> None:
    """Bring the transcripts of a known video in line with their files; what fails changes nothing."""
    assert action.video is not None
    for track in action.tracks_gone:
        with contextlib.suppress(VideoNotFoundError, TranscriptNotFoundError):
            catalog.transcripts.delete(action.video.id, track, transaction)
    for transcript in transcripts:
        with contextlib.suppress(VideoNotFoundError, InvalidRecordError):  # Deleted just now; too many.
            catalog.transcripts.put(action.video.id, transcript, transaction)


def _source_of(file: FoundFile, source: VideoSource | None = None) -> VideoSource:
    """What the caller says of a file, or nothing. Only files of this machine are the operator's own."""
    said = source or VideoSource(file.place)
    return replace(said, path=file.place, trusted=said.trusted and file.remote is None)


def _addresses_of_folder(folder: str) -> tuple[str, ...]:
    """The addresses that a folder may have, without a slash at their ends."""
    if is_remote(folder):
        return (folder,)
    return Path(folder).as_uri().removesuffix("/"), *plain_addresses(Path(folder))


def _is_there(uri: str, listing: Listing) -> bool | None:
    """Whether the file at an address exists; None where that cannot be known, as below a folder that cannot
    be read."""
    if is_remote(uri):
        return listing.has(uri)
    path = local_path(uri)
    if path is None or _is_below(uri, [folder for folder, _ in listing.unread]):
        return None
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return None
    return True


def _is_below(uri: str | None, folders: Sequence[str]) -> bool:
    path = local_path(uri)
    return path is not None and any(path.is_relative_to(folder) for folder in folders)


def _holds(path: Path, known: KnownFile) -> bool:
    """Whether a file is as it was when it was last read."""
    try:
        status = path.stat()
    except OSError:
        return False
    return is_unchanged(status.st_size, status.st_mtime_ns, known)


def _still_holds(video: VideoRecord, known: KnownFile | None, is_there: Callable[[str], bool | None]) -> bool:
    """Whether a video's own file is there, as far as its size and time say; at an address, as far as is
    known without asking."""
    if video.uri is not None and is_remote(video.uri):
        was_there = known is not None and known.content_sha256 == video.content_sha256
        return was_there and is_there(video.uri) is not False
    path = local_path(video.uri)
    if path is None:
        return False
    if known is not None:
        return _holds(path, known)
    try:
        return path.stat().st_size == video.size_bytes
    except OSError:
        return False


def _is_long_gone(video: VideoRecord, now: float) -> bool:
    return video.missing_since is not None and video.missing_since <= now - PRUNE_DELAY_SECONDS
