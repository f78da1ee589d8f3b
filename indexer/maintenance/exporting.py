"""Write an index as Parquet files that other tools read; `indexer.maintenance.parquet` has their layout."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from indexer.atomic_files import atomic_directory, sha256_of_file
from indexer.errors import IndexDamagedError, IndexExistsError
from indexer.maintenance.parquet import (
    MANIFEST_FILE,
    ExportManifest,
    OnProgress,
    PartFile,
    load_pyarrow,
    segment_schema,
    transcript_schema,
    video_schema,
)
from indexer.store.postgres.address import is_postgres_address
from indexer.store.records import SegmentInfo, metadata_to_json
from indexer.store.store import Store, open_store
from model.atomic_files import fsync_file

ROWS_PER_GROUP: Final = 1_024
"""Rows read and written together, and held in memory: 15 MB of segments of 12 x 512."""

MAX_PART_BYTES: Final = 256 << 20
"""Size of a file before compression: small enough to be handed out to many workers."""

_DICTIONARY_COLUMNS: Final = (
    *("codec", "width", "height", "frame_rate", "video_id", "num_frames"),
    *("track", "uri", "size_bytes", "modified_ns"),
)
"""Columns whose values repeat. Features never do: a dictionary of them would only cost space."""

_STATISTICS_COLUMNS: Final = ("id", "video_id", "duration_seconds", "added_at", "start_seconds")
"""Columns by whose minimum and maximum a reader may skip row groups."""


@dataclass(frozen=True)
class ExportReport:
    """What an export holds.

    Attributes:
        num_videos: rows of the video files.
        num_segments: rows of the segment files.
        sequence: number of the index's last change that is in it.
        fingerprint: of the index.
        with_frames: whether frame features were written.
        num_files: Parquet files.
        size_bytes: of these files.
    """

    num_videos: int
    num_segments: int
    sequence: int
    fingerprint: str
    with_frames: bool
    num_files: int
    size_bytes: int


def export_index(
    index: str | Path,
    destination: str | Path,
    *,
    with_frames: bool = True,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> ExportReport:
    """Write an index as Parquet files. It may be in use meanwhile.

    All is of one moment: everything is read in one snapshot, which blocks no writer (SQLite's write-ahead log
    grows until it ends). `destination` appears whole or not at all. Every row is compared with its checksum
    as it is read.

    Args:
        index: its address.
        destination: absent, or an empty folder.
        with_frames: whether to write frame features, most of the size; without them it cannot be imported.
        on_progress: called for each block of rows.

    Raises:
        ParquetMissingError: pyarrow is not installed.
        IndexNotFoundError: there is no index.
        IndexDamagedError: a row is not what was written.
        IndexExistsError: something is in `destination`, or it lies inside the index.
        OSError: the disk refused a write.
    """
    load_pyarrow()
    destination = Path(destination).resolve()
    if not is_postgres_address(index) and destination.is_relative_to(Path(index).resolve()):
        raise IndexExistsError(f"an export cannot lie inside the index that it is of: {destination}")
    with (
        open_store(index) as catalog,
        atomic_directory(destination, MANIFEST_FILE) as unfinished,
        catalog.snapshot() as snapshot,
    ):
        blocks = _CatalogBlocks(snapshot, with_frames, on_progress)
        files = _write_parts(unfinished, "videos", video_schema(), blocks.videos())
        schema = segment_schema(catalog.embedding_dim, catalog.num_frames, with_frames)
        files |= _write_parts(unfinished, "segments", schema, blocks.segments(schema))
        said = blocks.transcripts()
        files |= _write_parts(unfinished, "transcripts", transcript_schema(), said, at_least_one=False)
        manifest = ExportManifest(
            made_at=time.time(),
            **asdict(catalog.facts),
            sequence=snapshot.sequence,
            num_videos=blocks.num_videos,
            num_segments=blocks.num_segments,
            with_frames=with_frames,
            files=files,
            kept_out=snapshot.kept_out.list_all(),
        )
        fsync_file(manifest.write(unfinished))
    return ExportReport(
        manifest.num_videos,
        manifest.num_segments,
        manifest.sequence,
        manifest.fingerprint,
        with_frames,
        len(files),
        sum(part.size_bytes for part in files.values()),
    )


class _CatalogBlocks:
    """The catalog of one moment as Arrow tables of at most ROWS_PER_GROUP rows, in the order of addition."""

    def __init__(self, catalog: Store[Any], with_frames: bool, on_progress: OnProgress) -> None:
        """catalog: a snapshot."""
        self._catalog = catalog
        self._with_frames = with_frames
        self._on_progress = on_progress
        self.num_videos, self.num_segments = catalog.totals()

    def videos(self) -> Iterator[Any]:
        pa, _ = load_pyarrow()
        schema = video_schema()
        num_done = 0
        for records in self._catalog.iterate_videos(ROWS_PER_GROUP):
            rows = [{**vars(record), "metadata": metadata_to_json(record.metadata)} for record in records]
            yield pa.Table.from_pylist(rows, schema=schema)
            num_done += len(records)
            self._on_progress("videos", num_done, self.num_videos)
        _check_all_there(num_done, self.num_videos)

    def segments(self, schema: Any) -> Iterator[Any]:
        num_done = 0
        last_video_key, next_position = 0, 0
        for ids, columns in self._features(schema):
            found = self._catalog.segment_infos(ids)
            _check_all_there(len(found), len(ids))
            infos = [found[segment_id] for segment_id in ids.tolist()]
            positions = []
            for info in infos:  # Segments of a video follow each other: they were added together.
                is_next = info.video_key == last_video_key
                last_video_key, next_position = info.video_key, next_position + 1 if is_next else 0
                positions.append(next_position)
            yield _segment_table(infos, positions, columns, schema)
            num_done += len(ids)
            self._on_progress("segments", num_done, self.num_segments)
        _check_all_there(num_done, self.num_segments)

    def transcripts(self) -> Iterator[Any]:
        pa, _ = load_pyarrow()
        rows: list[dict[str, Any]] = []
        for records in self._catalog.iterate_videos(ROWS_PER_GROUP):
            ids = [record.id for record in records]
            found = self._catalog.transcripts.of_videos(ids)
            for video_id in ids:
                for transcript in found.get(video_id, ()):
                    file = {} if transcript.file is None else asdict(transcript.file)
                    same = {"video_id": video_id, "track": transcript.track, **file}
                    rows += [{**same, **asdict(line)} for line in transcript.lines]
                if len(rows) >= ROWS_PER_GROUP:
                    yield pa.Table.from_pylist(rows, schema=transcript_schema())
                    rows = []
        if rows:
            yield pa.Table.from_pylist(rows, schema=transcript_schema())

    def _features(self, schema: Any) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """Blocks of segments, ids ascending: the ids, and Arrow columns of their features by name."""
        pa, _ = load_pyarrow()
        blocks: Iterator[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]
        if self._with_frames:
            blocks = (
                (block.segment_ids, {"video_feature": block.video, "frame_features": block.frames})
                for block in self._catalog.iterate_features(ROWS_PER_GROUP)
            )
        else:
            blocks = (
                (ids, {"video_feature": video})
                for ids, video in self._catalog.iterate_video_features(ROWS_PER_GROUP)
            )
        for ids, arrays in blocks:
            yield (
                ids,
                {
                    name: pa.FixedSizeListArray.from_arrays(
                        pa.array(array.reshape(-1)), type=schema.field(name).type
                    )
                    for name, array in arrays.items()
                },
            )


def _segment_table(
    infos: list[SegmentInfo], positions: list[int], features: dict[str, Any], schema: Any
) -> Any:
    pa, _ = load_pyarrow()
    columns = {
        "video_id": [info.video_id for info in infos],
        "position": positions,
        "start_seconds": [info.start_seconds for info in infos],
        "end_seconds": [info.end_seconds for info in infos],
        "num_frames": [info.num_frames for info in infos],
        "frame_times": [info.frame_times for info in infos],
        **features,
    }
    return pa.Table.from_pydict(columns, schema=schema)


def _write_parts(
    directory: Path, kind: str, schema: Any, tables: Iterator[Any], *, at_least_one: bool = True
) -> dict[str, PartFile]:
    """Write tables, a row group each, to as many files as they need.

    Returns:
        The files by name.
    """
    _, parquet = load_pyarrow()
    files: dict[str, PartFile] = {}
    table = next(tables, None)
    while table is not None or (at_least_one and not files):
        path = directory / f"{kind}-{len(files):05}.parquet"
        num_rows = num_bytes = 0
        with parquet.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_dictionary=[name for name in schema.names if name in _DICTIONARY_COLUMNS],
            write_statistics=[name for name in schema.names if name in _STATISTICS_COLUMNS],
            write_page_checksum=True,
        ) as writer:
            while table is not None and (not num_rows or num_bytes + table.nbytes <= MAX_PART_BYTES):
                writer.write_table(table, row_group_size=table.num_rows)
                num_rows += table.num_rows
                num_bytes += table.nbytes
                table = next(tables, None)
        fsync_file(path)
        files[path.name] = PartFile(num_rows, path.stat().st_size, sha256_of_file(path))
    return files


def _check_all_there(num_found: int, num_expected: int) -> None:
    if num_found != num_expected:
        raise IndexDamagedError(
            f"the catalog is damaged: {num_expected} rows should be there, {num_found} were found;"
            " run verify to find out more"
        )
