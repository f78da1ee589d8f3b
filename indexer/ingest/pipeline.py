"""Videos into an index: decoding ahead in child processes, encoding in batches here, each video one
transaction.

    sources -> decode pool (a bounded number in flight) -> segments waiting -> batch -> model -> catalog
                 child  child  child ...                    of any videos

A slow or hanging file keeps one child busy and nothing else. What is in the catalog is whole: ending the
process at any moment, by kill -9 too, loses at most the videos in flight, and the next run skips the rest
by content.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from indexer.errors import DuplicateIdError, FingerprintMismatchError, InvalidRecordError, MediaError
from indexer.ingest.encoding import index_fingerprint
from indexer.ingest.manifest import VideoSource
from indexer.media.decode_messages import (
    MAX_SEGMENTS_PER_ANSWER,
    DecodedSegment,
    DecodedVideo,
    DecodeRequest,
    KnownContent,
)
from indexer.media.decode_pool import DecodePool
from indexer.media.probing import MediaLimits
from indexer.store.records import SegmentRecord

if TYPE_CHECKING:
    from indexer.media.frame_reader import Backend
    from indexer.media.sampling import Sampling
    from indexer.store.sqlite.catalog import Catalog
    from model import XClip

__all__ = ["IndexEvent", "IndexReport", "IndexingPipeline", "VideoSource"]

Outcome = Literal["added", "skipped", "failed"]

_WAIT_FOR_FULL_BATCH_SECONDS: Final = 0.5
"""Decoded segments wait so long for company before they are encoded as a smaller batch."""

OTHER_BYTES_REASON: Final = "its bytes are not those that were indexed"


@dataclass(frozen=True)
class IndexEvent:
    """One source has been dealt with.

    video_id: of the video in the catalog; None where it failed. reason: why it failed, or how much of it
    could be read where that is not all; else None.
    """

    source: VideoSource
    outcome: Outcome
    video_id: str | None = None
    reason: str | None = None


@dataclass
class IndexReport:
    """What a run did.

    num_skipped: sources whose content was in the index. num_partial: of the added, those that were cut off or
    damaged. failures: (path, reason). seconds: of the run. decode_seconds: spent by all children together.
    encode_seconds: spent in the model.
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
        """JSON values."""
        failures = [{"path": path, "reason": reason} for path, reason in self.failures]
        return {**vars(self), "failures": failures}


class IndexingPipeline:
    """Adds videos to a catalog.

    catalog: made for this model and sampling. num_workers: decoding children; None for `default_num_workers`.
    batch_size: segments encoded at once; None for 8 on a CPU, 32 on a GPU.
    decode_timeout_seconds: the longest that decoding one file, or 16 segments of a long one, may take.
    backend: how trusted files are read, see `indexer.media.frame_reader.VideoFile.frames_at`.
    Raises FingerprintMismatchError where the catalog holds features of another model or sampling, ValueError
    where the sampling does not fit the model.
    """

    def __init__(
        self,
        catalog: Catalog,
        model: XClip,
        sampling: Sampling,
        *,
        num_workers: int | None = None,
        batch_size: int | None = None,
        decode_timeout_seconds: float = 300.0,
        limits: MediaLimits | None = None,
        backend: Backend = "auto",
    ) -> None:
        if sampling.num_frames != model.config.num_frames:
            raise ValueError(f"the model takes {model.config.num_frames} frames, not {sampling.num_frames}")
        expected = index_fingerprint(model, sampling)
        if catalog.fingerprint != expected:
            raise FingerprintMismatchError(expected=expected, found=catalog.fingerprint)
        is_gpu = model.device.type != "cpu"
        self.catalog = catalog
        self.model = model
        self.sampling = sampling
        self.num_workers = num_workers or default_num_workers(is_gpu)
        self.batch_size = batch_size or (32 if is_gpu else 8)
        self.decode_timeout_seconds = decode_timeout_seconds
        self.limits = limits
        self.backend: Backend = backend

    def run(
        self, sources: Iterable[VideoSource], on_event: Callable[[IndexEvent], None] = lambda event: None
    ) -> IndexReport:
        """Index `sources`, in about their order. A file that fails is reported, never raised.

        sources: read as they are needed. on_event: called in this thread, once for each source.
        Raises what concerns the index as a whole: IndexDamagedError, sqlite3.Error, torch's out of memory.
        """
        started = time.perf_counter()
        with DecodePool(self.num_workers, self.decode_timeout_seconds, limits=self.limits) as pool:
            run = _Run(self, pool, iter(sources), on_event)
            run.work()
        run.report.seconds = time.perf_counter() - started
        return run.report


def default_num_workers(is_gpu: bool) -> int:
    """Decoding children beside an encoder: all processors but one beside a GPU, half of them where the
    encoder needs processors itself."""
    num_processors = os.cpu_count() or 1
    return max(1, min(32, num_processors - 1 if is_gpu else num_processors // 2))


def _fields_of_source(source: VideoSource) -> dict[str, Any]:
    """The arguments of `Catalog.add_video` that do not come out of the file."""
    if source.record is not None:
        names = ("id", "uri", "title", "metadata", "trusted", "added_at")
        return {name: getattr(source.record, name) for name in names}
    path = source.path.absolute()
    title = source.title
    if title is None:
        title = path.stem.encode("utf-8", "replace").decode("utf-8")
    return {
        "id": source.id,
        "uri": source.uri if source.uri is not None else path.as_uri(),
        "title": title,
        "metadata": source.metadata,
        "trusted": source.trusted,
    }


class _Video:
    """A source on its way through."""

    def __init__(self, source: VideoSource) -> None:
        self.source = source
        self.first: DecodedVideo | None = None
        self.records: dict[int, SegmentRecord] = {}
        self.fraction_read = 1.0
        self.failed = False


class _Run:
    """One call of `IndexingPipeline.run`."""

    def __init__(
        self,
        pipeline: IndexingPipeline,
        pool: DecodePool,
        sources: Iterator[VideoSource],
        on_event: Callable[[IndexEvent], None],
    ) -> None:
        self.pipeline = pipeline
        self.pool = pool
        self.sources = sources
        self.on_event = on_event
        self.report = IndexReport()
        # Each worker has one request at hand and one waiting; a few more cover the time of one encoding.
        self.max_in_flight = 2 * pipeline.num_workers + 2
        self.max_segments = max(1, min(MAX_SEGMENTS_PER_ANSWER, pipeline.batch_size))
        self.in_flight: dict[Future[DecodedVideo | KnownContent], _Video] = {}
        self.continuations: deque[tuple[_Video, int]] = deque()
        self.waiting: deque[tuple[_Video, int, DecodedSegment]] = deque()
        self.last_progress = time.monotonic()

    def work(self) -> None:
        while True:
            self._refill()
            if not self.in_flight and not self.waiting:
                return
            if self.in_flight:
                self._collect()
            is_late = time.monotonic() - self.last_progress >= _WAIT_FOR_FULL_BATCH_SECONDS
            while len(self.waiting) >= self.pipeline.batch_size:
                self._encode()
            if self.waiting and (is_late or not self.in_flight):
                self._encode()

    def _refill(self) -> None:
        # Decoded segments wait in memory: no more of them than the encoder will soon take.
        while len(self.in_flight) < self.max_in_flight and len(self.waiting) < 4 * self.pipeline.batch_size:
            if self.continuations:
                video, first_segment = self.continuations.popleft()
                if not video.failed:
                    self._submit(video, first_segment)
            elif (source := next(self.sources, None)) is not None:
                self._submit(_Video(source), 0)
            else:
                return

    def _submit(self, video: _Video, first_segment: int) -> None:
        request = DecodeRequest(
            path=str(video.source.path),
            sampling=self.pipeline.sampling,
            image_size=self.pipeline.model.config.image_size,
            trusted=video.source.trusted,
            backend=self.pipeline.backend,
            first_segment=first_segment,
            max_segments=self.max_segments,
            content_sha256=video.first.content_sha256 if video.first else None,
        )
        self.in_flight[self.pool.submit_new(request, self._is_known)] = video

    def _is_known(self, content_sha256: str) -> bool:
        return self.pipeline.catalog.find_by_sha256(content_sha256) is not None

    def _collect(self) -> None:
        """Take what has been decoded; wait for something where the encoder has nothing to do."""
        timeout = None
        if self.waiting:
            timeout = max(0.0, self.last_progress + _WAIT_FOR_FULL_BATCH_SECONDS - time.monotonic())
        done, _ = wait(self.in_flight, timeout, FIRST_COMPLETED)
        for future in done:
            video = self.in_flight.pop(future)
            try:
                answer = future.result()
            except MediaError as error:
                self._fail(video, error.reason)
                continue
            expected = video.source.record
            if expected is not None and answer.content_sha256 != expected.content_sha256:
                self._fail(video, OTHER_BYTES_REASON)
            elif isinstance(answer, KnownContent):
                record = self.pipeline.catalog.find_by_sha256(answer.content_sha256)
                self._finish(video, "skipped", record.id if record else None)
            else:
                self._take(video, answer)

    def _take(self, video: _Video, answer: DecodedVideo) -> None:
        self.report.decode_seconds += answer.decode_seconds
        if video.failed:
            return
        if video.first is None:
            video.first = answer
            self.continuations.extend(
                (video, first)
                for first in range(len(answer.segments), answer.num_segments, self.max_segments)
            )
        elif (answer.info, answer.num_segments) != (video.first.info, video.first.num_segments):
            self._fail(video, "the file changed while it was read")
            return
        video.fraction_read = min(video.fraction_read, answer.fraction_read)
        if not self.waiting:
            self.last_progress = time.monotonic()
        for number, segment in enumerate(answer.segments, start=answer.first_segment):
            self.waiting.append((video, number, segment))
        answer.segments.clear()  # The pixels go when they are encoded.

    def _encode(self) -> None:
        from indexer.ingest.encoding import encode_segments

        started = time.perf_counter()
        size = min(self.pipeline.batch_size, len(self.waiting))
        batch = [self.waiting.popleft() for _ in range(size)]
        batch = [item for item in batch if not item[0].failed]
        if batch:
            records = encode_segments(self.pipeline.model, [segment for _, _, segment in batch])
            self.report.encode_seconds += time.perf_counter() - started
            for (video, number, _), record in zip(batch, records, strict=True):
                video.records[number] = record
                if video.first is not None and len(video.records) == video.first.num_segments:
                    self._store(video, video.first)
        self.last_progress = time.monotonic()
        self._refill()

    def _store(self, video: _Video, first: DecodedVideo) -> None:
        from indexer.ingest.encoding import new_video

        try:
            segments = [video.records[number] for number in range(first.num_segments)]
            of_file = new_video(first, segments, video.fraction_read)
            outcome = self.pipeline.catalog.add_video(replace(of_file, **_fields_of_source(video.source)))
        except (DuplicateIdError, InvalidRecordError) as error:
            self._fail(video, str(error))
            return
        if not outcome.created:
            self._finish(video, "skipped", outcome.video_id)
            return
        self.report.num_segments += first.num_segments
        reason = None
        if video.fraction_read < 1:
            self.report.num_partial += 1
            reason = f"only {video.fraction_read:.0%} could be read"
        self._finish(video, "added", outcome.video_id, reason)

    def _fail(self, video: _Video, reason: str) -> None:
        if not video.failed:
            video.failed = True
            self.report.failures.append((str(video.source.path), reason))
            self._finish(video, "failed", None, reason)

    def _finish(
        self, video: _Video, outcome: Outcome, video_id: str | None, reason: str | None = None
    ) -> None:
        if outcome == "added":
            self.report.num_added += 1
        elif outcome == "skipped":
            self.report.num_skipped += 1
        else:
            self.report.num_failed += 1
        video.records.clear()
        self.on_event(IndexEvent(video.source, outcome, video_id, reason))
