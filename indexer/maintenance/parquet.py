"""The Parquet files of an export: what lies in the folder, and what is checked before it is imported.

    EXPORT/
      export.json              format, fingerprint, model, sampling, D, F, counts, sha256 of every file
      videos-00000.parquet     a row for each video, in the order in which they were added; more parts follow
      segments-00000.parquet   a row for each segment with its features, in the same order
      transcripts-00000.parquet   where there are transcripts: a row for each of their lines, in this order

Needs pyarrow, the extra `parquet`, imported when it is first used.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from indexer.atomic_files import sha256_of_file, sha256_of_json
from indexer.errors import (
    FingerprintMismatchError,
    IndexDamagedError,
    IndexerError,
    IndexNotFoundError,
    IndexVersionError,
)
from indexer.store.records import IndexFacts, KeptOut

MANIFEST_FILE: Final = "export.json"
FORMAT: Final = 3
READABLE_FORMATS: Final = (1, 2, 3)
"""1 is the format of versions 0.1.0 and 0.2.0, without the columns NEW_VIDEO_COLUMNS; 2 has no
transcripts."""

NEW_VIDEO_COLUMNS: Final = ("media_start_seconds", "recorded_at", "missing_since")
_KINDS: Final = ("videos", "segments")
_PART_NAME = re.compile(r"(videos|segments|transcripts)-\d{5,}\.parquet")

OnProgress = Callable[[str, int, int], None]
"""Called with the stage (`videos`, `segments`, `checking`, `importing`), the number done and the total."""


class ExportDamagedError(IndexDamagedError):
    """An export that is not what was written; the message names the file."""


class ExportWithoutFramesError(IndexerError):
    """An export made without frame features: good for analysis, but no index can be made of it."""


class ExportFingerprintError(FingerprintMismatchError):
    """An export made by another model or sampling than the index that it was to be imported into.

    Attributes:
        expected: fingerprint of the export.
        found: fingerprint of the index.
    """

    def __str__(self) -> str:
        return (
            f"the export holds features of fingerprint {self.expected}, the index of {self.found}: features"
            " of different models or samplings cannot be searched together; import into a new index"
        )


class ParquetMissingError(IndexerError):
    """pyarrow is not installed."""


def load_pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        ParquetMissingError: they are not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ParquetMissingError(
            "Parquet files need pyarrow, which is not installed:"
            " `make install` brings it, or pip install pyarrow"
        ) from None


def video_schema(format: int = FORMAT) -> Any:
    """Columns of the videos; see `VideoRecord` for what they say. `metadata` is a JSON object as text.

    format: of the export, one of READABLE_FORMATS.
    """
    pa, _ = load_pyarrow()
    may_be_absent = {"uri", "title", "recorded_at", "missing_since"}
    types = {
        "id": pa.string(),
        "content_sha256": pa.string(),
        "uri": pa.string(),
        "title": pa.string(),
        "metadata": pa.string(),
        "duration_seconds": pa.float64(),
        "width": pa.int64(),
        "height": pa.int64(),
        "frame_rate": pa.float64(),
        "codec": pa.string(),
        "size_bytes": pa.int64(),
        "partial": pa.bool_(),
        "fraction_read": pa.float64(),
        "added_at": pa.float64(),
    }
    if format >= 2:
        types |= dict.fromkeys(NEW_VIDEO_COLUMNS, pa.float64())
    return pa.schema([pa.field(name, type, name in may_be_absent) for name, type in types.items()])


def segment_schema(embedding_dim: int, num_frames: int, with_frames: bool) -> Any:
    """Columns of the segments; see `SegmentRecord`. `position` counts the segments of a video from 0.

    `video_feature` is float32 [D]; `frame_features`, where `with_frames`, float16 [F * D], frame after frame.
    """
    pa, _ = load_pyarrow()

    def element(type: Any) -> Any:
        return pa.field("element", type, nullable=False)

    types = {
        "video_id": pa.string(),
        "position": pa.int64(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "num_frames": pa.int64(),
        "frame_times": pa.list_(element(pa.float64())),
        "video_feature": pa.list_(element(pa.float32()), embedding_dim),
    }
    if with_frames:
        types["frame_features"] = pa.list_(element(pa.float16()), num_frames * embedding_dim)
    return pa.schema([pa.field(name, type, nullable=False) for name, type in types.items()])


def transcript_schema() -> Any:
    """Columns of the lines of transcripts; see `Transcript` and `TranscriptFile` for what they say."""
    pa, _ = load_pyarrow()
    types = {
        "video_id": pa.string(),
        "track": pa.string(),
        "uri": pa.string(),
        "size_bytes": pa.int64(),
        "modified_ns": pa.int64(),
        "start_seconds": pa.float64(),
        "end_seconds": pa.float64(),
        "text": pa.string(),
    }
    of_file = {"uri", "size_bytes", "modified_ns"}
    return pa.schema([pa.field(name, type, name in of_file) for name, type in types.items()])


@dataclass(frozen=True)
class PartFile:
    """A Parquet file as it was written."""

    num_rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportManifest:
    """What export.json says: facts of the index after the change `sequence`, and the files by name.

    Attributes:
        made_at: seconds since 1970.
        fingerprint: of model and sampling.
        model_spec: how to load the model again.
        sampling_json: the very text that the fingerprint was computed from.
        embedding_dim: D.
        num_frames: F.
        sequence: number of the index's last change.
        num_videos: rows of the video files.
        num_segments: rows of the segment files.
        with_frames: whether frame features were written.
        files: the Parquet files by name.
        kept_out: content that was deleted on purpose and does not come in again.
        format: one of READABLE_FORMATS.
    """

    made_at: float
    fingerprint: str
    model_spec: str
    sampling_json: str
    embedding_dim: int
    num_frames: int
    sequence: int
    num_videos: int
    num_segments: int
    with_frames: bool
    files: Mapping[str, PartFile]
    kept_out: Sequence[KeptOut] = ()
    format: int = FORMAT

    @property
    def facts(self) -> IndexFacts:
        """What the index was that was exported."""
        return IndexFacts(**{field.name: getattr(self, field.name) for field in fields(IndexFacts)})

    def names(self, kind: str) -> list[str]:
        """Names of the parts of `videos`, `segments` or `transcripts`, in their order."""
        return sorted((name for name in self.files if name.startswith(f"{kind}-")), key=lambda n: (len(n), n))

    def write(self, directory: Path) -> Path:
        """Write export.json and return its path."""
        content = asdict(self)
        path = directory / MANIFEST_FILE
        text = json.dumps({**content, "sha256": sha256_of_json(content)}, indent=2)
        path.write_text(f"{text}\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, directory: Path) -> ExportManifest:
        """What `write` wrote.

        Raises:
            IndexNotFoundError: there is no export in this folder.
            ExportDamagedError: the file is not what was written.
            IndexVersionError: it is of a format that this version does not read.
        """
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise IndexNotFoundError(f"there is no export in {directory} (no file {MANIFEST_FILE})")
        damaged = ExportDamagedError(f"{path} is damaged")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("sha256") != sha256_of_json(content):
                raise damaged
            if content["format"] not in READABLE_FORMATS:
                raise IndexVersionError(
                    f"{path} is of format {content['format']}; this version imports"
                    f" {' and '.join(map(str, READABLE_FORMATS))}"
                )
            files = {name: PartFile(**row) for name, row in content.pop("files").items()}
            kept_out = [KeptOut(**row) for row in content.pop("kept_out", ())]
            manifest = cls(**content, files=files, kept_out=kept_out)
            if not manifest._is_consistent():
                raise damaged
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged from None
        return manifest

    def _is_consistent(self) -> bool:
        num_rows = [sum(self.files[name].num_rows for name in self.names(kind)) for kind in _KINDS]
        is_named_right = all(_PART_NAME.fullmatch(name) for name in self.files)
        return is_named_right and num_rows == [self.num_videos, self.num_segments]


def check_files(directory: Path, manifest: ExportManifest, on_progress: OnProgress) -> None:
    """Compare every file with its sha256, its number of rows and its columns.

    Raises:
        ExportDamagedError: a file is not what was written.
    """
    pa, parquet = load_pyarrow()
    schemas = {
        "videos": video_schema(manifest.format),
        "segments": segment_schema(manifest.embedding_dim, manifest.num_frames, manifest.with_frames),
        "transcripts": transcript_schema(),
    }
    for num_done, (name, part) in enumerate(manifest.files.items(), start=1):
        path = directory / name
        if not path.is_file():
            raise ExportDamagedError(f"the export lacks {name}")
        if path.stat().st_size != part.size_bytes or sha256_of_file(path) != part.sha256:
            raise ExportDamagedError(f"{name} in the export does not match its checksum")
        try:
            with parquet.ParquetFile(path) as file:
                columns, num_rows = file.schema_arrow, file.metadata.num_rows
        except pa.ArrowException as error:
            raise ExportDamagedError(f"{name} in the export cannot be read as Parquet: {error}") from None
        expected = schemas[name.partition("-")[0]]
        if not columns.equals(expected):
            raise ExportDamagedError(f"{name} in the export: {_difference(columns, expected)}")
        if num_rows != part.num_rows:
            raise ExportDamagedError(f"{name} in the export has {num_rows} rows, not {part.num_rows}")
        on_progress("checking", num_done, len(manifest.files))


def _difference(found: Any, expected: Any) -> str:
    """The first difference between the columns of a file and the expected ones."""
    for field in expected:
        if field.name not in found.names:
            return f"the column {field.name} is missing"
        if not found.field(field.name).equals(field):
            return f"the column {field.name} is {found.field(field.name).type}, not {field.type}"
    return f"its columns are {', '.join(found.names)}, not {', '.join(expected.names)}"
