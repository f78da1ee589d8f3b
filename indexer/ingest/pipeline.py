"""Videos into an index: hashed and decoded ahead in child processes, encoded in batches here.

    sources -> fetch -> hash -> known? -> decode -> segments waiting -> batch -> model -> store
               thread   child             child     of any videos                 one transaction a video

Only files at addresses are fetched; their copies are deleted when they are encoded.

A slow or hanging file keeps one child busy and nothing else. What is in the store is whole: ending the
process at any moment, by kill -9 too, loses at most the videos in flight, and the next run skips the rest
by content.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from indexer.errors import (
    DuplicateIdError,
    FingerprintMismatchError,
    InvalidRecordError,
    KeptOutError,
    MediaError,
    UnsupportedMediaError,
)
from indexer.ingest.encoding import SegmentBatch, index_fingerprint, new_video
from indexer.ingest.local_copies import LocalCopies
from indexer.ingest.manifest import VideoSource
from indexer.ingest.remote_files import RemoteFile
from indexer.ingest.video_files import title_of_file
from indexer.media.decode_messages import (
    FILE_CHANGED,
    MAX_SEGMENTS_PER_ANSWER,
    DecodedSegment,
    DecodedVideo,
    DecodeRequest,
    HashedFile,
)
from indexer.media.decode_pool import DecodePool
from indexer.media.probing import MediaLimits, plausible_recording_time
from indexer.media.sampling import Sampling
from indexer.store.records import AddOutcome, NewVideo, SegmentRecord, VideoRecord
from indexer.store.text import holds_zero

if TYPE_CHECKING:
    import threading
    from types import TracebackType

    from indexer.media.frame_reader import Backend
    from indexer.store.store import Store
    from model import XClip

__all__ = ["IndexEvent", "IndexReport", "IndexingPipeline", "VideoEncoder", "VideoSource"]

Outcome = Literal["added", "moved", "updated", "duplicate", "unchanged", "skipped", "failed", "left out"]

Encoded = NewVideo | AddOutcome | MediaError | KeptOutError
"""What became of a file: its video, ready to be stored; the video that has the same bytes; or why there is
none."""

FindKnown = Callable[[VideoSource, HashedFile], VideoRecord | None]

WAIT_SECONDS: Final = 0.5
"""Decoded segments wait at most this long for others before they are encoded as a smaller batch; a cancelled
run ends this soon."""

IDLE_SECONDS: Final = 0.02
"""Between two looks for a further source where there is none yet."""

CHILD_NICENESS: Final = 5
"""Children get a third of the encoder's share of a processor that both want (sched(7): 335 to 1024), and all
that it leaves: while it encodes, its threads are not held up, and no processor idles while it waits."""

NO_WHOLE_FRAME_REASON: Final = "no frame can be decoded without errors"
OTHER_BYTES_REASON: Final = "its bytes are not those that were indexed"


@dataclass(frozen=True)
class IndexEvent:
    """What became of one source.

    Attributes:
        source: the file.
        outcome: what became of it, see `indexer.ingest.synchronisation.SyncReport`; `skipped` where its
            content was in the index and nothing else was looked at.
        video_id: of the video in the catalog; None where there is none.
        reason: why it failed or is left out, how much of it could be read where that is not all, where it was
            before it was moved, or where a duplicate's video lives; else None.
    """

    source: VideoSource
    outcome: Outcome
    video_id: str | None = None
    reason: str | None = None


@dataclass
class IndexReport:
    """What a run did.

    Attributes:
        num_added: sources that became videos.
        num_skipped: sources whose content was in the index.
        num_failed: sources that could not become videos.
        num_partial: of the added, those that were truncated or damaged.
        num_segments: of the added.
        seconds: of the run.
        decode_seconds: spent by all children together.
        encode_seconds: spent in the model.
        failures: (path, reason).
    """

    num_added: int = 0
    num_skipped: int = 0
    num_failed: int = 0
    num_partial: int = 0
    num_segments: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        failures = [{"path": path, "reason": reason} for path, reason in self.failures]
        return {**vars(self), "failures": failures}


@dataclass(frozen=True)
class DecodeOptions:
    """How files are read.

    Attributes:
        timeout_seconds: the longest that hashing a file may take, or decoding it, or decoding 16 segments of
            a long one.
        limits: what a file may be; the usual ones where None.
        backend: how trusted files are read, see `indexer.media.frame_reader.VideoFile.frames_at`.
    """

    timeout_seconds: float = 300.0
    limits: MediaLimits | None = None
    backend: Backend = "auto"


class VideoEncoder:
    """The way of every file to features: hashed, looked up, decoded in a child process, encoded in batches.

    Use as a context manager: it owns the decoding children.

    Attributes:
        decode_seconds: spent by all children together.
        encode_seconds: spent in the model.
    """

    def __init__(
        self,
        model: XClip,
        sampling: Sampling,
        *,
        num_workers: int,
        batch_size: int,
        decoding: DecodeOptions,
    ) -> None:
        """Start the children; they import while the caller goes on.

        Args:
            model: encodes; its number of frames must be that of the sampling.
            sampling: which frames of a file.
            num_workers: decoding children.
            batch_size: segments encoded together.
            decoding: how files are read.
        """
        self.model = model
        self.sampling = sampling
        self.num_workers = num_workers
        self.batch_size = batch_size
        self.backend = decoding.backend
        self.decode_seconds = 0.0
        self.encode_seconds = 0.0
        self.pool = DecodePool(
            num_workers, decoding.timeout_seconds, limits=decoding.limits, niceness=CHILD_NICENESS
        )
        self.copies = LocalCopies(2 * num_workers + 2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.copies.close()
        self.pool.close()

    def encode(
        self,
        sources: Iterable[VideoSource | None],
        find_known: FindKnown = lambda source, hashed: None,
        cancelled: threading.Event | None = None,
    ) -> Iterator[tuple[VideoSource, Encoded]]:
        """Encode files, in about their order, and yield each as soon as it is done.

        Args:
            sources: read as they are needed; None says that there is no further one yet.
            find_known: called here with a file and its hash before it is decoded; gives the video that has
                the same bytes, or None. A KeptOutError that it raises is what became of the file.
            cancelled: when it is set, the rest is left.

        Raises:
            CancelledError: `cancelled` was set.
        """
        run = _Run(self, iter(sources), find_known)
        try:
            while run.advance():
                yield from run.take_done()
                if cancelled is not None and cancelled.is_set():
                    raise CancelledError
        finally:
            run.cancel()

    def encode_file(
        self, path: Path, cancelled: threading.Event | None = None, *, trusted: bool = False
    ) -> NewVideo:
        """Encode one file.

        Args:
            path: of the file.
            cancelled: when it is set, the rest of the file is left.
            trusted: whether the operator trusts the file, so that decord may read it.

        Returns:
            What the file itself says of its video: no id, uri, title or metadata.

        Raises:
            MediaError: it cannot become a video.
            CancelledError: `cancelled` was set.
        """
        ((_, encoded),) = self.encode([VideoSource(path, trusted=trusted)], cancelled=cancelled)
        if isinstance(encoded, MediaError):
            raise encoded
        assert isinstance(encoded, NewVideo)
        return encoded


def find_in(catalog: Store[Any]) -> FindKnown:
    """Looks content up in a catalog; raises KeptOutError where it is kept out."""

    def find_known(source: VideoSource, hashed: HashedFile) -> VideoRecord | None:
        known = catalog.find_by_sha256(hashed.content_sha256)
        if known is None and (kept_out := catalog.kept_out.find([hashed.content_sha256])):
            raise KeptOutError(kept_out[hashed.content_sha256].video_id)
        return known

    return find_known


class IndexingPipeline:
    """Adds videos to a catalog, with the model and the sampling that it was made for."""

    def __init__(
        self,
        catalog: Store[Any],
        model: XClip,
        *,
        num_workers: int | None = None,
        batch_size: int | None = None,
        decoding: DecodeOptions | None = None,
    ) -> None:
        """Check that the model is that of the catalog. For the other arguments see `VideoEncoder`.

        Args:
            catalog: where the videos go.
            model: the one that the catalog was made for.
            num_workers: None for `default_num_workers`.
            batch_size: None for 8 on a CPU, 32 on a GPU.
            decoding: None for the usual options.

        Raises:
            FingerprintMismatchError: the catalog holds features of another model.
            ValueError: the catalog's sampling does not fit the model.
        """
        sampling = Sampling.from_json(catalog.sampling_json)
        if sampling.num_frames != model.config.num_frames:
            raise ValueError(f"the model takes {model.config.num_frames} frames, not {sampling.num_frames}")
        expected = index_fingerprint(model, sampling)
        if catalog.fingerprint != expected:
            raise FingerprintMismatchError(expected=expected, found=catalog.fingerprint)
        is_gpu = model.device.type != "cpu"
        self.catalog = catalog
        catalog.keep_reserve()
        self.model = model
        self.sampling = sampling
        self.num_workers = num_workers or default_num_workers()
        self.batch_size = batch_size or (32 if is_gpu else 8)
        self.decoding = decoding or DecodeOptions()

    def run(
        self, sources: Iterable[VideoSource], on_event: Callable[[IndexEvent], None] = lambda event: None
    ) -> IndexReport:
        """Index files, in about their order. A file that fails is reported, never raised.

        Args:
            sources: read as they are needed.
            on_event: called in this thread, once for each source.

        Raises:
            IndexerError, OSError, RuntimeError: what concerns the index as a whole: a full disk, a damaged
                catalog, a GPU without memory.
        """
        started = time.perf_counter()
        report = IndexReport()
        with self.encoder() as encoder:
            for source, encoded in encoder.encode(sources, find_in(self.catalog)):
                on_event(self._store(source, encoded, report))
        report.decode_seconds, report.encode_seconds = encoder.decode_seconds, encoder.encode_seconds
        report.seconds = time.perf_counter() - started
        return report

    def encoder(self) -> VideoEncoder:
        """A new encoder of this model, sampling and sizes, for the caller to close."""
        return VideoEncoder(
            self.model,
            self.sampling,
            num_workers=self.num_workers,
            batch_size=self.batch_size,
            decoding=self.decoding,
        )

    def _store(self, source: VideoSource, encoded: Encoded, report: IndexReport) -> IndexEvent:
        try:
            outcome = self._add(source, encoded)
        except (MediaError, DuplicateIdError, InvalidRecordError, KeptOutError) as error:
            report.num_failed += 1
            report.failures.append((str(source.path), str(error)))
            return IndexEvent(source, "failed", None, str(error))
        if not isinstance(encoded, NewVideo) or not outcome.created:
            report.num_skipped += 1
            return IndexEvent(source, "skipped", outcome.video_id)
        report.num_added += 1
        report.num_segments += len(encoded.segments)
        if not encoded.partial:
            return IndexEvent(source, "added", outcome.video_id)
        report.num_partial += 1
        return IndexEvent(
            source, "added", outcome.video_id, f"only {encoded.fraction_read:.0%} could be read"
        )

    def _add(self, source: VideoSource, encoded: Encoded) -> AddOutcome:
        if isinstance(encoded, MediaError | KeptOutError):
            raise encoded
        if isinstance(encoded, AddOutcome):
            return encoded
        return self.catalog.add_video(replace(encoded, **fields_of_source(source, encoded)))


def default_num_workers() -> int:
    """Decoding children next to an encoder: one for each processor, for they take what the encoder leaves."""
    return min(32, os.cpu_count() or 1)


def fields_of_source(source: VideoSource, encoded: NewVideo) -> dict[str, Any]:
    """The fields of `NewVideo` that do not come from the file alone."""
    recorded_at = source.recorded_at if source.record is None else source.record.recorded_at
    if recorded_at is None:
        recorded_at = encoded.recorded_at
    if recorded_at is None and source.trusted and isinstance(source.path, Path):
        recorded_at = file_time(source.path)  # But an upload's file is as old as the upload.
    if source.record is not None:
        names = ("id", "uri", "title", "metadata", "trusted", "added_at", "missing_since")
        kept = {name: getattr(source.record, name) for name in names}
        return {**kept, "recorded_at": recorded_at, "transcripts": source.transcripts}
    path = source.path.absolute() if isinstance(source.path, Path) else source.path
    address = path.as_uri() if isinstance(path, Path) else path.uri
    return {
        "id": source.id,
        "uri": source.uri if source.uri is not None else address,
        "title": title_of_file(path) if source.title is None else source.title,
        "metadata": source.metadata,
        "trusted": source.trusted,
        "recorded_at": recorded_at,
    }


def problem_of(source: VideoSource) -> str | None:
    """Why the text given for a file cannot be stored: U+0000, which no path holds and no filter finds; None
    where it can."""
    values = {"path": str(source.path), "title": source.title, "uri": source.uri, "metadata": source.metadata}
    name = next((name for name, value in values.items() if holds_zero(value)), None)
    return None if name is None else f"its {name} holds a zero character (U+0000)"


def file_time(path: Path) -> float | None:
    """When a file was last modified, in seconds since 1970; None where it is gone or that cannot be."""
    try:
        return plausible_recording_time(path.stat().st_mtime)
    except OSError:
        return None


class _Video:
    """A file that is being decoded and encoded. path: where it is here."""

    def __init__(self, source: VideoSource, path: Path, hashed: HashedFile) -> None:
        self.source = source
        self.path = path
        self.hashed = hashed
        self.first: DecodedVideo | None = None
        self.records: dict[int, SegmentRecord] = {}
        self.fraction_read = 1.0
        self.has_whole_frame = False
        self.failed = False


class _Run:
    """One call of `VideoEncoder.encode`: what is in flight, from sources to features."""

    def __init__(
        self,
        encoder: VideoEncoder,
        sources: Iterator[VideoSource | None],
        find_known: FindKnown,
    ) -> None:
        self.encoder = encoder
        self.sources = sources
        self.has_ended = False
        self.find_known = find_known
        # Each worker has one request under way and one waiting; a few more cover the time of one encoding.
        self.max_in_flight = 2 * encoder.num_workers + 2
        self.max_segments = min(MAX_SEGMENTS_PER_ANSWER, encoder.batch_size)
        self.fetching: dict[Future[Path], VideoSource] = {}
        self.hashing: dict[Future[HashedFile], tuple[VideoSource, Path]] = {}
        self.requests: deque[tuple[_Video, int]] = deque()
        self.decoding: dict[Future[DecodedVideo], _Video] = {}
        self.waiting: deque[tuple[_Video, int, DecodedSegment]] = deque()
        self.encoding: deque[tuple[list[tuple[_Video, int]], SegmentBatch]] = deque()
        self.done: deque[tuple[VideoSource, Encoded]] = deque()
        self.last_progress = time.monotonic()

    def advance(self) -> bool:
        """Hand out work, take what has been decoded, encode a batch where one is due; false at the end."""
        self._refill()
        if self.fetching or self.hashing or self.decoding:
            self._collect()
        # A batch is due when it is full, when nothing more is to come, or when its first segment has waited
        # long enough: one slow file must not hold up the others.
        is_late = time.monotonic() - self.last_progress >= WAIT_SECONDS
        is_due = len(self.waiting) >= self.encoder.batch_size or bool(
            self.waiting
            and (is_late or not (self.fetching or self.hashing or self.decoding or self.requests))
        )
        if is_due:
            self._begin_batch()
        # While batches come, one stays with a GPU, so that it does not idle while we are busy here.
        num_left = int(is_due and self.encoder.model.device.type != "cpu")
        while len(self.encoding) > num_left:
            self._finish_batch()
        reading = self.fetching or self.hashing or self.requests or self.decoding
        is_busy = bool(reading or self.waiting or self.encoding or self.done)
        if not is_busy and not self.has_ended:
            time.sleep(IDLE_SECONDS)
        return is_busy or not self.has_ended

    def take_done(self) -> Iterator[tuple[VideoSource, Encoded]]:
        """The files that are done since the last call."""
        while self.done:
            yield self.done.popleft()

    def cancel(self) -> None:
        """Take back what no child has begun."""
        futures: list[Future[Any]] = [*self.fetching, *self.hashing, *self.decoding]
        for future in futures:
            future.cancel()

    def _refill(self) -> None:
        # Decoded segments wait in memory: no more of them than the encoder will soon take.
        if len(self.waiting) >= 4 * self.encoder.batch_size:
            return
        while self.requests and len(self.decoding) < self.max_in_flight:
            video, first_segment = self.requests.popleft()
            if not video.failed:
                request = self._request(video, first_segment)
                self.decoding[self.encoder.pool.submit(request)] = video
        # Counted apart from what is decoded: hashes are quick, and children must not idle while we encode.
        while len(self.fetching) + len(self.hashing) + len(self.requests) < self.max_in_flight:
            try:
                source = next(self.sources)
            except StopIteration:
                self.has_ended = True
                return
            if source is None:
                return
            if source.record is None and (problem := problem_of(source)) is not None:
                self.done.append((source, MediaError(problem)))
                continue
            if isinstance(source.path, RemoteFile):
                self.fetching[self.encoder.copies.submit(source.path)] = source
            else:
                self._hash(source, source.path)

    def _hash(self, source: VideoSource, path: Path) -> None:
        self.hashing[self.encoder.pool.submit_hash(path)] = (source, path)

    def _request(self, video: _Video, first_segment: int) -> DecodeRequest:
        return DecodeRequest(
            path=str(video.path),
            sampling=self.encoder.sampling,
            resizing=self.encoder.model.config.resizing,
            trusted=video.source.trusted,
            backend=self.encoder.backend,
            first_segment=first_segment,
            max_segments=self.max_segments,
            stamp=video.hashed.stamp,
        )

    def _collect(self) -> None:
        """Take what the children have done; wait for something where the encoder has nothing to do."""
        timeout = WAIT_SECONDS
        if len(self.waiting) >= self.encoder.batch_size:
            timeout = 0.0
        elif self.waiting:
            timeout = max(0.0, self.last_progress + WAIT_SECONDS - time.monotonic())
        in_flight: list[Future[Any]] = [*self.fetching, *self.hashing, *self.decoding]
        for future in wait(in_flight, timeout, FIRST_COMPLETED).done:
            if future in self.fetching:
                source = self.fetching.pop(future)
                try:
                    self._hash(source, future.result())
                except MediaError as error:
                    self.done.append((source, error))
            elif future in self.hashing:
                source, path = self.hashing.pop(future)
                self._look_up(source, path, future)
            else:
                self._take(self.decoding.pop(future), future)

    def _look_up(self, source: VideoSource, path: Path, future: Future[HashedFile]) -> None:
        """Decode a file only where its bytes are new, and those that are expected."""
        try:
            hashed = future.result()
            known = self.find_known(source, hashed)
        except (MediaError, KeptOutError) as error:
            self._end(source, path, error)
            return
        if source.record is not None and hashed.content_sha256 != source.record.content_sha256:
            self._end(source, path, MediaError(OTHER_BYTES_REASON))
        elif known is not None:
            self._end(source, path, AddOutcome(known.id, created=False))
        else:
            self.requests.append((_Video(source, path, hashed), 0))

    def _end(self, source: VideoSource, path: Path, encoded: Encoded) -> None:
        if isinstance(source.path, RemoteFile):
            self.encoder.copies.remove(path)
        self.done.append((source, encoded))

    def _take(self, video: _Video, future: Future[DecodedVideo]) -> None:
        try:
            answer = future.result()
        except MediaError as error:
            self._fail(video, error)
            return
        self.encoder.decode_seconds += answer.decode_seconds
        if video.failed:
            return
        if video.first is None:
            video.first = answer
            self.requests.extend(
                (video, first)
                for first in range(len(answer.segments), answer.num_segments, self.max_segments)
            )
        # A long file takes several requests, and it may be replaced between two of them.
        elif (answer.info, answer.num_segments) != (video.first.info, video.first.num_segments):
            self._fail(video, MediaError(FILE_CHANGED))
            return
        video.fraction_read = min(video.fraction_read, answer.fraction_read)
        video.has_whole_frame |= answer.fraction_read > 0
        if not self.waiting:
            self.last_progress = time.monotonic()
        for number, segment in enumerate(answer.segments, start=answer.first_segment):
            self.waiting.append((video, number, segment))
        answer.segments.clear()  # The pixels go when they are encoded.

    def _begin_batch(self) -> None:
        started = time.perf_counter()
        size = min(self.encoder.batch_size, len(self.waiting))
        batch = [self.waiting.popleft() for _ in range(size)]
        batch = [item for item in batch if not item[0].failed]
        if batch:
            begun = SegmentBatch(self.encoder.model, [segment for _, _, segment in batch])
            self.encoding.append(([(video, number) for video, number, _ in batch], begun))
            self.encoder.encode_seconds += time.perf_counter() - started
        self.last_progress = time.monotonic()

    def _finish_batch(self) -> None:
        started = time.perf_counter()
        batch, begun = self.encoding.popleft()
        records = begun.records()
        self.encoder.encode_seconds += time.perf_counter() - started
        for (video, number), record in zip(batch, records, strict=True):
            if not video.failed:
                video.records[number] = record
                self._finish_video(video)

    def _finish_video(self, video: _Video) -> None:
        """Hand a video on where all of its segments are encoded."""
        first = video.first
        if first is None or len(video.records) < first.num_segments:
            return
        if not video.has_whole_frame:
            self._fail(video, UnsupportedMediaError(NO_WHOLE_FRAME_REASON))
            return
        segments = [video.records[number] for number in range(first.num_segments)]
        encoded = new_video(video.hashed.content_sha256, first.info, segments, video.fraction_read)
        self._end(video.source, video.path, encoded)

    def _fail(self, video: _Video, error: MediaError) -> None:
        if not video.failed:
            video.failed = True
            video.records.clear()
            self._end(video.source, video.path, error)
