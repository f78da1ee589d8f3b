"""Import the videos of an export: into a new index, or into one of the same fingerprint."""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from indexer.errors import FingerprintMismatchError
from indexer.maintenance.parquet import (
    ExportDamagedError,
    ExportFingerprintError,
    ExportManifest,
    ExportWithoutFramesError,
    OnProgress,
    check_files,
    load_pyarrow,
)
from indexer.store.records import AddOutcome, KeptOut, NewVideo, SegmentRecord
from indexer.store.store import Store, open_or_create_store, store_exists
from indexer.store.transcripts import Line, Transcript, TranscriptFile

ROWS_PER_BATCH: Final = 256
"""Rows read together and held in memory, next to the row group that they come from."""

SEGMENTS_PER_TRANSACTION: Final = 100
"""Videos of so many are added together; a longer one alone. More are hardly faster, and others wait for
them."""


@dataclass
class ImportReport:
    """What became of the videos of an export.

    Attributes:
        num_added: videos that were added.
        num_segments: their segments.
        num_skipped: videos whose content was in the index already.
        failures: (id, reason) of those that could not be added.
    """

    num_added: int = 0
    num_segments: int = 0
    num_skipped: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_failed(self) -> int:
        """Videos that could not be added."""
        return len(self.failures)


def import_index(
    source: str | Path,
    index: str | Path,
    *,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> ImportReport:
    """Add the videos of the export `source` to the index `index`, which is made where there is none.

    Every file is checked before anything is changed. Videos are added in transactions of a few together, each
    wholly or not at all, with the id, order and `added_at` that it had; what is in already is skipped by
    content, so after an interruption the same call goes on. The index may be in use meanwhile.

    Raises:
        ParquetMissingError: pyarrow is not installed.
        IndexNotFoundError: there is no export in `source`.
        ExportDamagedError: the export is not what was written.
        IndexVersionError: it is of a format that this version does not read.
        ExportWithoutFramesError: it was made without frame features.
        ExportFingerprintError: another model or sampling made the index.
        IndexStorageError: the disk refused a write.
    """
    load_pyarrow()
    source = Path(source)
    manifest = ExportManifest.read(source)
    if not manifest.with_frames:
        raise ExportWithoutFramesError(
            f"the export in {source} was made without frame features; it can be analysed but not imported"
        )
    if store_exists(index):
        _open_target(index, manifest).close()  # Refused before all files are read, not after.
    check_files(source, manifest, on_progress)
    _check_order(source, manifest)
    report = ImportReport()
    with _open_target(index, manifest) as catalog:
        _keep_out(catalog, manifest.kept_out)
        groups = itertools.groupby(_read_segments(source, manifest), key=operator.itemgetter(0))
        transcripts = _Transcripts(source, manifest)
        batch: list[NewVideo] = []
        num_segments = 0
        for num_done, video in enumerate(_read_videos(source, manifest), start=1):
            segments = [segment for _, _, segment in _rows_of(video["id"], groups)]
            said = transcripts.of_next(video["id"])
            batch.append(NewVideo(**video, segments=segments, transcripts=said))
            num_segments += len(segments)
            if num_segments >= SEGMENTS_PER_TRANSACTION or num_done == manifest.num_videos:
                _add(catalog, batch, report)
                batch, num_segments = [], 0
                on_progress("importing", num_done, manifest.num_videos)
    return report


def _open_target(index: str | Path, manifest: ExportManifest) -> Store[Any]:
    try:
        return open_or_create_store(index, manifest.facts)
    except FingerprintMismatchError as error:
        raise ExportFingerprintError(error.expected, error.found) from None


def _keep_out(catalog: Store[Any], kept_out: Sequence[KeptOut]) -> None:
    """Keep out what the exported index kept out, except what is a video of this one."""
    there = catalog.find_by_contents([content.content_sha256 for content in kept_out])
    with catalog.transaction() as transaction:
        for content in kept_out:
            if content.content_sha256 not in there:
                catalog.kept_out.add(content, transaction)


def _add(catalog: Store[Any], videos: Sequence[NewVideo], report: ImportReport) -> None:
    for video, outcome in zip(videos, catalog.add_videos(videos), strict=True):
        if not isinstance(outcome, AddOutcome):
            report.failures.append((video.id or "", str(outcome)))
        elif outcome.created:
            report.num_added += 1
            report.num_segments += len(video.segments)
        else:
            report.num_skipped += 1


def _check_order(source: Path, manifest: ExportManifest) -> None:
    """Raise ExportDamagedError unless segments are grouped by video, in the order of the videos."""
    rows = (
        (row["video_id"], row["position"])
        for batch in _batches(source, manifest.names("segments"), ["video_id", "position"])
        for row in batch.to_pylist()
    )
    groups = itertools.groupby(rows, key=operator.itemgetter(0))
    for batch in _batches(source, manifest.names("videos"), ["id"]):
        for video_id in batch.column("id").to_pylist():
            _rows_of(video_id, groups)
    if next(groups, None) is not None:
        raise ExportDamagedError("the export holds segments of a video that it does not hold")


def _rows_of(video_id: str, groups: Iterator[tuple[str, Iterator[tuple[Any, ...]]]]) -> list[tuple[Any, ...]]:
    """The next group of rows (video id, position, ...), which must be this video's."""
    owner, rows = next(groups, (None, iter(())))
    listed = list(rows)
    if owner != video_id or [row[1] for row in listed] != list(range(len(listed))):
        raise ExportDamagedError(f"the segments of the video {video_id} are not where they should be")
    return listed


def _read_videos(source: Path, manifest: ExportManifest) -> Iterator[dict[str, Any]]:
    """Arguments of `NewVideo`, but for the segments."""
    for batch in _batches(source, manifest.names("videos")):
        for row in batch.to_pylist():
            yield {**row, "metadata": json.loads(row["metadata"])}


def _read_segments(source: Path, manifest: ExportManifest) -> Iterator[tuple[str, int, SegmentRecord]]:
    """(video id, position in the video, segment) of all segments in their order."""
    shape = manifest.num_frames, manifest.embedding_dim
    for batch in _batches(source, manifest.names("segments")):
        video = batch.column("video_feature").flatten().to_numpy().reshape(-1, manifest.embedding_dim)
        frames = batch.column("frame_features").flatten().to_numpy().reshape(-1, *shape)
        small = batch.select(
            ["video_id", "position", "start_seconds", "end_seconds", "num_frames", "frame_times"]
        )
        for number, row in enumerate(small.to_pylist()):
            segment = SegmentRecord(
                start_seconds=row["start_seconds"],
                end_seconds=row["end_seconds"],
                video_feature=video[number],
                frame_features=frames[number],
                num_frames=row["num_frames"],
                frame_times=np.array(row["frame_times"], np.float64),
            )
            yield row["video_id"], row["position"], segment


class _Transcripts:
    """The transcripts of an export, video by video in the order of the videos."""

    def __init__(self, source: Path, manifest: ExportManifest) -> None:
        rows = (row for batch in _batches(source, manifest.names("transcripts")) for row in batch.to_pylist())
        self._groups = itertools.groupby(rows, key=operator.itemgetter("video_id"))
        self._next = next(self._groups, None)

    def of_next(self, video_id: str) -> list[Transcript]:
        """Those of this video; none where the next ones are of a later video."""
        if self._next is None or self._next[0] != video_id:
            return []
        found = []
        for track, rows in itertools.groupby(self._next[1], key=operator.itemgetter("track")):
            lines = list(rows)
            file = None
            if lines[0]["uri"] is not None:
                file = TranscriptFile(*(lines[0][name] for name in ("uri", "size_bytes", "modified_ns")))
            found.append(
                Transcript(
                    track,
                    tuple(Line(row["start_seconds"], row["end_seconds"], row["text"]) for row in lines),
                    file,
                )
            )
        self._next = next(self._groups, None)
        return found


def _batches(source: Path, names: list[str], columns: list[str] | None = None) -> Iterator[Any]:
    """Record batches of these files in order, of these columns or of all."""
    _, parquet = load_pyarrow()
    for name in names:
        # Not pre-buffered: that would hold the whole file in memory by its end.
        with parquet.ParquetFile(source / name, pre_buffer=False) as file:
            yield from file.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns)
