"""What a store takes and gives, and what may be stored: rules that are checked before anything is written.

Dimension letters: N segments, F frames, D embedding. Times of the clock are seconds since 1970, UTC.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from indexer.errors import DuplicateIdError, InvalidRecordError, KeptOutError
from indexer.store.text import nfc
from indexer.store.transcripts import Transcript
from indexer.store.words import QueryWord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FIRST_GENERATION: Final = 1
"""Of an index; see `indexer.maintenance.reindexing`."""

ChangeKind = Literal["add", "update", "delete"]
Sort = Literal["-added_at", "added_at", "-recorded_at", "recorded_at"]
"""Orders of a list of videos; a minus sign: descending."""


@dataclass(frozen=True, eq=False)
class SegmentRecord:
    """An interval of a video with one set of features.

    Attributes:
        start_seconds, end_seconds: where it lies in the video; 0 <= start <= end.
        video_feature: float32 [D], unit length.
        frame_features: float16 [F, D]: all F, the encodings of padding frames included (a checkpoint that was
            trained with them is served with them).
        num_frames: how many of the F are real, 1 to F; the real ones come first.
        frame_times: float64 [num_frames], seconds from the start of the video, ascending.
    """

    start_seconds: float
    end_seconds: float
    video_feature: NDArray[np.float32]
    frame_features: NDArray[np.float16]
    num_frames: int
    frame_times: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class NewVideo:
    """A video to be stored; see `VideoRecord` for what the fields mean.

    Attributes:
        segments: all of the video, in their order.
        id: chosen by the client, or None for a new one.
        added_at: of a video that was added elsewhere before, or None for now.
        transcripts: of the video, each of another track.
    """

    content_sha256: str
    segments: Sequence[SegmentRecord]
    duration_seconds: float
    width: int
    height: int
    frame_rate: float
    codec: str
    size_bytes: int
    id: str | None = None
    uri: str | None = None
    title: str | None = None
    metadata: Mapping[str, Any] | None = None
    partial: bool = False
    fraction_read: float = 1.0
    trusted: bool = False
    added_at: float | None = None
    media_start_seconds: float = 0.0
    recorded_at: float | None = None
    missing_since: float | None = None
    transcripts: Sequence[Transcript] = ()


@dataclass(frozen=True)
class VideoRecord:
    """A video as the store holds it.

    Attributes:
        id: the client's or ours; unique.
        content_sha256: 64 hex digits over the bytes; unique.
        width, height: pixels, after rotation.
        partial: only the first `fraction_read` (0 to 1) could be read.
        trusted: the operator trusted the file when it was indexed, see
            `indexer.ingest.manifest.VideoSource`.
        added_at: seconds since 1970.
        sequence: number of the change that added it; later videos have higher ones.
        media_start_seconds: added to a time of ours, it is the time on the clock of a player of the file; 0
            where the first picture is at the file's zero.
        recorded_at: when it was recorded, in seconds since 1970; None where that is not known.
        missing_since: when its file was first found to be gone, in seconds since 1970; None where it was
            there when it was last looked for.
    """

    id: str
    content_sha256: str
    uri: str | None
    title: str | None
    metadata: Mapping[str, Any]
    duration_seconds: float
    width: int
    height: int
    frame_rate: float
    codec: str
    size_bytes: int
    partial: bool
    fraction_read: float
    trusted: bool
    added_at: float
    sequence: int
    media_start_seconds: float = 0.0
    recorded_at: float | None = None
    missing_since: float | None = None


@dataclass(frozen=True)
class KnownFile:
    """What was found in a file when it was last read; it is taken for that while size and time are these.

    Attributes:
        uri: its address; unique.
        size_bytes: of the file.
        modified_ns: when it was last modified, in nanoseconds since 1970; of a file that is not on a disk
            here, the number of its version (`indexer.ingest.remote_files`).
        content_sha256: over its bytes, 64 hex digits.
        failure: why its content cannot become a video, a sentence; None where it can, and did.
        version: of xclip-search that found this failure; another one tries again.
    """

    uri: str
    size_bytes: int
    modified_ns: int
    content_sha256: str
    failure: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class KeptOut:
    """Content that was deleted on purpose and does not come in again until it is let in.

    Attributes:
        content_sha256: over its bytes, 64 hex digits; unique.
        video_id: of the video that was deleted.
        title: of that video.
        uri: of that video.
        size_bytes: of its file.
        kept_out_at: when it was deleted, in seconds since 1970.
    """

    content_sha256: str
    video_id: str
    title: str | None
    uri: str | None
    size_bytes: int
    kept_out_at: float


@dataclass(frozen=True)
class AddOutcome:
    """What became of an added video: its id, and whether it is new (false: the same bytes were there)."""

    video_id: str
    created: bool


RefusedVideo = DuplicateIdError | InvalidRecordError | KeptOutError
"""Why a video is not added, which says nothing of others."""


@dataclass(frozen=True, eq=False)
class SegmentInfo:
    """A segment without its features. `video_key`: the catalog's own number of the video it belongs to."""

    segment_id: int
    video_id: str
    video_key: int
    start_seconds: float
    end_seconds: float
    num_frames: int
    frame_times: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SegmentSpans:
    """N segments, by video and in their order.

    segment_ids, video_keys: int64 [N]. start_seconds: float64 [N].
    """

    segment_ids: NDArray[np.int64]
    video_keys: NDArray[np.int64]
    start_seconds: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SegmentFeatures:
    """Features of N segments, row by row.

    segment_ids, video_keys: int64 [N]; rows of one video share its number.
    video: float32 [N, D]. frames: float16 [N, F, D]. num_frames: int64 [N], real frames, which come first.
    """

    segment_ids: NDArray[np.int64]
    video_keys: NDArray[np.int64]
    video: NDArray[np.float32]
    frames: NDArray[np.float16]
    num_frames: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.segment_ids)

    @property
    def frame_mask(self) -> NDArray[np.bool_]:
        """bool [N, F], true for real frames."""
        import numpy as np  # Here, so that the limits below are read without loading it.

        return np.arange(self.frames.shape[1]) < self.num_frames[:, None]


@dataclass(frozen=True, eq=False)
class Matches:
    """Segments whose videos a filter matches, as of the change `sequence`, which had this `token`.

    segment_ids: int64, ascending, not to be written to.
    """

    sequence: int
    token: str | None
    segment_ids: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WordMatches:
    """Videos in which words of a query are, best first (BM25; Robertson and Zaragoza, 2009).

    video_keys: int64 [N], the catalog's own numbers of the videos. passages: int64 [N], for each one the
    number of the best passage of its transcripts (`indexer.store.transcripts.passages`, from 1), 0 for title
    and metadata. words: of the query, those that chose. is_cut: whether there may be more such videos.
    """

    video_keys: NDArray[np.int64]
    passages: NDArray[np.int64]
    words: Sequence[QueryWord]
    is_cut: bool = False

    def __len__(self) -> int:
        return len(self.video_keys)

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> WordMatches:
        return replace(self, video_keys=self.video_keys[rows], passages=self.passages[rows])


@dataclass(frozen=True)
class Change:
    """One entry of the change log.

    Attributes:
        sequence: increases by one with every change.
        kind: `add`, `update` (title, metadata, uri or a transcript) or `delete`.
        segment_ids: of the video at that moment; empty for `update`.
    """

    sequence: int
    kind: ChangeKind
    video_id: str
    segment_ids: Sequence[int] = field(default=())


@dataclass(frozen=True)
class Successor:
    """The generation that takes the changes instead of this one.

    Attributes:
        generation: its number.
        epoch: higher with each switch of an index; 0 in a generation that has yet to become the current one.
    """

    generation: int
    epoch: int


@dataclass(frozen=True)
class StoreState:
    """The store at one moment.

    Attributes:
        sequence, token: of the last change, see `Catalog.change_token`.
        changes: those since the sequence number asked with, in order.
        stale_seconds: for how long the database has not answered, where this is what it was before; None
            where it is what it is now.
    """

    sequence: int
    token: str
    num_videos: int
    num_segments: int
    changes: Sequence[Change] = ()
    stale_seconds: float | None = None


@dataclass(frozen=True)
class Damage:
    """Something in the store that is not what was written.

    part: `catalog` and `change log` are the truth, `totals` and `words` are derived from it, `jobs` are
    requests.
    """

    part: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What an index is, fixed when it is made.

    Attributes:
        fingerprint: of model and sampling, 64 hex digits, see `indexer.ingest.encoding`.
        model_spec: how to load that model again.
        embedding_dim, num_frames: D and F of every feature.
        sampling_json: from `Sampling.to_json`.
    """

    fingerprint: str
    model_spec: str
    embedding_dim: int
    num_frames: int
    sampling_json: str


class WithFacts:
    """A store, as far as it is described by its facts."""

    facts: IndexFacts

    @property
    def fingerprint(self) -> str:
        """Of model and sampling, 64 hex digits."""
        return self.facts.fingerprint

    @property
    def model_spec(self) -> str:
        """How to load the model that made the features."""
        return self.facts.model_spec

    @property
    def embedding_dim(self) -> int:
        """D of every feature."""
        return self.facts.embedding_dim

    @property
    def num_frames(self) -> int:
        """F of every segment's frame features."""
        return self.facts.num_frames

    @property
    def sampling_json(self) -> str:
        """How frames were sampled, from `Sampling.to_json`."""
        return self.facts.sampling_json


MAX_ID_LENGTH = 200
MAX_TEXT_LENGTH = 10_000
MAX_METADATA_BYTES = 64 << 10

ID_PATTERN = r"[^\s\x00-\x1f\x7f\x85/\\?#%]+"
"""One path segment of an address, in any script: no white space, no control, no character that ends the
segment. Means the same in JSON Schema."""


def check_video_id(video_id: str) -> str:
    """`video_id` as it is stored, in NFC, or InvalidRecordError: 1 to 200 characters, none of white space
    / \\ ? # %, not `.` or `..`."""
    video_id = nfc(video_id)
    if len(video_id) > MAX_ID_LENGTH or not re.fullmatch(ID_PATTERN, video_id) or video_id in (".", ".."):
        raise InvalidRecordError(
            f"an id has 1 to {MAX_ID_LENGTH} characters, no white space, none of / \\ ? # %,"
            " and is not . or .."
        )
    check_text("id", video_id)
    return video_id


def check_text(name: str, text: str | None) -> str | None:
    """`text`, or InvalidRecordError where it is too long or not valid Unicode."""
    if text is None:
        return None
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidRecordError(f"{name} is longer than {MAX_TEXT_LENGTH} characters")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRecordError(f"{name} is not valid Unicode (it holds a lone surrogate)") from None
    return text


def check_title(title: str | None) -> str | None:
    """`title` as it is stored, in NFC, or InvalidRecordError as from `check_text`."""
    return None if title is None else check_text("title", nfc(title))


def metadata_to_json(metadata: Mapping[str, Any] | None) -> str:
    """JSON text of an object, in NFC, or InvalidRecordError where it is none, or longer than 64 KiB.

    Where two names of an object would be the same in NFC, all of it is stored as it is.
    """
    try:
        given = json.dumps(dict(metadata or {}), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        # The marks of JSON compose with nothing, so that this is each of its texts in NFC.
        text = nfc(given)
        if text != given and _has_equal_names(text):
            text = given
        size_bytes = len(text.encode("utf-8"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRecordError(f"metadata is not a JSON object: {error}") from None
    if size_bytes > MAX_METADATA_BYTES:
        raise InvalidRecordError(f"metadata is longer than {MAX_METADATA_BYTES} bytes of JSON")
    return text


def _has_equal_names(text: str) -> bool:
    found = False

    def look(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found |= len({name for name, _ in pairs}) < len(pairs)

    json.loads(text, object_pairs_hook=look)
    return found


def merge_patch(target: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """`target` with the members of `patch` set, those that it says null removed, objects merged likewise
    (RFC 7396 section 2). Neither is changed."""
    merged = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = merge_patch(merged.get(name), value)
        else:
            merged[name] = value
    return merged


def check_number(name: str, value: float, least: float = 0.0, most: float = sys.float_info.max) -> float:
    """`value`, or InvalidRecordError where it is not finite or not from `least` to `most`."""
    if not least <= value <= most:  # NaN is nowhere between.
        raise InvalidRecordError(f"{name} must be a finite number from {least:g} to {most:g}")
    return without_sign_of_zero(value)


def check_time(name: str, value: float | None) -> float | None:
    """`value`, or InvalidRecordError where it is no time of the clock: from the year 1 to 9999, as
    `datetime` has it."""
    return None if value is None else check_number(name, value, -62_135_596_800.0, 253_402_300_799.0)


def check_count(name: str, value: int) -> int:
    """`value`, or InvalidRecordError where it is not a whole number from 0 on that SQLite can hold."""
    if not 0 <= value < 2**63:
        raise InvalidRecordError(f"{name} must be a whole number from 0 to 2^63 - 1")
    return int(value)


def without_sign_of_zero(value: float) -> float:
    """`value`, with 0.0 for -0.0: SQLite keeps whole numbers of a REAL column as integers, so that a checksum
    over -0.0 would not be that of what is read."""
    return float(value) + 0.0


def check_sha256(sha256: str, name: str = "content_sha256") -> str:
    """`sha256`, or InvalidRecordError: 64 lower-case hex digits."""
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise InvalidRecordError(f"{name} is not 64 lower-case hex digits")
    return sha256


def check_segments(segments: Sequence[SegmentRecord], num_frames: int, embedding_dim: int) -> None:
    """Raise InvalidRecordError unless there is a segment and all fit an index of F and D."""
    if not segments:
        raise InvalidRecordError("a video without segments cannot be found")
    for position, segment in enumerate(segments):
        if problem := _problem(segment, num_frames, embedding_dim):
            raise InvalidRecordError(f"segment {position}: {problem}")


def _problem(segment: SegmentRecord, num_frames: int, embedding_dim: int) -> str | None:
    import numpy as np

    video, frames, times = segment.video_feature, segment.frame_features, segment.frame_times
    if video.shape != (embedding_dim,) or video.dtype != np.float32:
        return f"video_feature must be float32 [{embedding_dim}], not {video.dtype} {list(video.shape)}"
    if frames.shape != (num_frames, embedding_dim) or frames.dtype != np.float16:
        return (
            f"frame_features must be float16 [{num_frames}, {embedding_dim}], "
            f"not {frames.dtype} {list(frames.shape)}"
        )
    if not 1 <= segment.num_frames <= num_frames:
        return f"num_frames must be 1 to {num_frames}, not {segment.num_frames}"
    if times.shape != (segment.num_frames,) or times.dtype != np.float64:
        return f"frame_times must be float64 [{segment.num_frames}], not {times.dtype} {list(times.shape)}"
    if not (math.isfinite(segment.end_seconds) and 0 <= segment.start_seconds <= segment.end_seconds):
        return f"{segment.start_seconds} to {segment.end_seconds} seconds is no interval of a video"
    if not (np.isfinite(video).all() and np.isfinite(frames).all() and np.isfinite(times).all()):
        return "a feature or a frame time is not a finite number"
    return None
