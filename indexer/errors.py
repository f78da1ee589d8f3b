"""What can go wrong in this package.

IndexerError
├── IndexNotFoundError         no index at this path
├── IndexExistsError           an index is already there
├── IndexDamagedError          what is stored is not what was written
├── IndexVersionError          an index of a format that this version does not read
├── IndexBusyError             another process has been writing for too long
├── IndexStorageError          the disk refused a read or a write
│   ├── IndexFullError         the disk is full
│   ├── IndexUnavailableError  the database does not answer
│   └── IndexReadOnlyError     the index lies on a read-only file system
├── OtherwiseDoneError         asked of a store that does it in another way; the message says how
├── BackupDamagedError         a backup that is not what was written
├── IndexSupersededError       another generation of the index is the current one
├── FingerprintMismatchError   the index was made by another model or sampling
├── InvalidRecordError         a video or job record that cannot be stored
├── ManifestError              a list of videos to index that cannot be understood
├── InvalidQueryError          a search that asks for something outside its ranges
├── SearchCancelledError       the caller of a search cancelled it
├── QueryTimeoutError          a filter that takes longer than it may
├── VideoNotFoundError         no video of this id
├── TranscriptNotFoundError    no transcript of this track
├── TranscriptError            a transcript that cannot be read
├── DuplicateIdError           the id is taken by another video
├── KeptOutError               the content was deleted on purpose and is kept out
├── ChangesForgottenError      the change log no longer reaches back that far
├── JobNotFoundError           no job of this id
├── QueueFullError             as many jobs wait as may wait
├── LeaseLostError             a job that its worker no longer holds
├── ClusterError               a cluster that cannot be used for indexing
│   └── ClusterStalledError    one in which nothing happens any more
└── MediaError                 a file that cannot become a video; `reason` is for the user
    ├── NotAVideoError         not a video
    ├── UnsupportedMediaError  a video in a format that we do not read
    ├── MediaLimitError        larger or longer than allowed
    ├── DecodeTimeoutError     decoding took longer than allowed
    ├── DecoderDiedError       the decoding process ended without an answer
    ├── TruncatedMediaError    the file ends before its first frame
    └── FetchError             a file at an address that could not be fetched
"""

from __future__ import annotations


class IndexerError(Exception):
    """Base of all errors raised by `indexer`."""


class IndexNotFoundError(IndexerError):
    """No index at this path; the message names it."""


class IndexExistsError(IndexerError):
    """An index is already at this path; creating never overwrites one."""


class IndexDamagedError(IndexerError):
    """What is stored is not what was written; the message says what and how to repair it."""


class IndexVersionError(IndexerError):
    """An index of a format that this version does not read; the message names both versions."""


class IndexBusyError(IndexerError):
    """Another process wrote to the index for longer than we wait; nothing was changed."""


class IndexStorageError(IndexerError):
    """The disk refused a read or a write: an I/O error, missing rights, a limit on the size of files.

    A write that ends so has changed nothing. The next one may succeed.
    """


class IndexFullError(IndexStorageError):
    """The disk is full; nothing was changed, reads continue."""


class IndexUnavailableError(IndexStorageError):
    """The database does not answer. What was being written may or may not be: ask again when it answers."""


class IndexReadOnlyError(IndexStorageError):
    """The index lies on a read-only file system: it can be searched, not changed."""


class OtherwiseDoneError(IndexerError):
    """Asked of a store that does it in another way; the message says how."""


class BackupDamagedError(IndexerError):
    """A backup that is not what was written; nothing was restored from it."""


class IndexSupersededError(IndexerError):
    """Another generation of the index is the current one, and this one takes no changes any more.

    Nothing was changed. Opening the index again gives the current generation, number `generation`.
    """

    def __init__(self, generation: int) -> None:
        super().__init__(f"the index was reindexed meanwhile: generation {generation} is the current one")
        self.generation = generation

    def __reduce__(self) -> tuple[type[IndexSupersededError], tuple[int]]:
        return type(self), (self.generation,)


class FingerprintMismatchError(IndexerError):
    """The index was made by another model or sampling than the one in use.

    Attributes:
        expected: fingerprint of the model in use.
        found: fingerprint that the index holds.
        segment_id: where it is a single segment of an index whose own fingerprint is `expected`.
    """

    def __init__(self, expected: str, found: str, segment_id: int | None = None) -> None:
        super().__init__(
            f"this index holds features of fingerprint {found}, but the model, sampling and runtime in use"
            f" have {expected}; open the index with the model that made it (and the runtime, where that was"
            " openvino-bf16), or encode its videos with this one: xclip-search reindex"
            if segment_id is None
            else f"segment {segment_id} holds features of fingerprint {found}, in an index of fingerprint"
            f" {expected}; delete its video and index it again, or restore a backup"
        )
        self.expected = expected
        self.found = found
        self.segment_id = segment_id

    def __reduce__(self) -> tuple[type[FingerprintMismatchError], tuple[str, str, int | None]]:
        return type(self), (self.expected, self.found, self.segment_id)


class InvalidRecordError(IndexerError, ValueError):
    """A video or job record that cannot be stored: a bad id, a feature of the wrong shape, a value out of
    range."""


class ManifestError(IndexerError, ValueError):
    """A list of videos to index that cannot be understood; the message names the line."""


class InvalidQueryError(IndexerError, ValueError):
    """A search that asks for something outside its ranges; the message names the field and its range."""


class SearchCancelledError(IndexerError):
    """A search stopped because its caller cancelled it."""


class QueryTimeoutError(IndexerError):
    """Finding what a filter matches took longer than it may; nothing was changed."""


class VideoNotFoundError(IndexerError, LookupError):
    """No video of this id."""

    def __init__(self, video_id: str) -> None:
        super().__init__(video_id)
        self.video_id = video_id

    def __str__(self) -> str:
        return f"no video has the id {self.video_id!r}"


class TranscriptNotFoundError(IndexerError):
    """The video has no transcript of this track."""

    def __init__(self, video_id: str, track: str) -> None:
        super().__init__(f"the video {video_id} has no transcript {track}")


class TranscriptError(IndexerError):
    """A transcript that cannot be read; the message says why."""


class DuplicateIdError(IndexerError):
    """The id is taken by another video, indexed or waiting to be."""

    def __init__(self, video_id: str) -> None:
        super().__init__(video_id)
        self.video_id = video_id

    def __str__(self) -> str:
        return f"the id {self.video_id!r} is taken by another video"


class KeptOutError(IndexerError):
    """The content was deleted on purpose and is kept out until it is let in.

    Attributes:
        video_id: of the video that was deleted.
    """

    def __init__(self, video_id: str) -> None:
        super().__init__(video_id)
        self.video_id = video_id

    def __str__(self) -> str:
        return (
            f"its content was deleted as the video {self.video_id!r} and is kept out;"
            f" `xclip-search kept-out --let-in {self.video_id}` lets it in again"
        )


class ChangesForgottenError(IndexerError):
    """The change log does not hold the asked sequence number (any more): read everything again instead."""


class JobNotFoundError(IndexerError, LookupError):
    """No job of this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id

    def __str__(self) -> str:
        return f"no job has the id {self.job_id!r}"


class QueueFullError(IndexerError):
    """As many jobs wait as may wait; nothing was added."""


class LeaseLostError(IndexerError):
    """A worker reported on a job that it no longer holds: its lease expired, or the job has ended."""


class ClusterError(IndexerError):
    """A cluster that cannot be used for indexing; the message says what to do."""


class ClusterStalledError(ClusterError):
    """A cluster in which nothing was added or reported for too long; what was added stays."""


class MediaError(IndexerError):
    """A file that cannot become a video.

    Attributes:
        reason: one plain sentence without paths, which may be shown to the client that sent the file.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class NotAVideoError(MediaError):
    """Not a video: text, an image, sound alone, random bytes, an empty file."""


class UnsupportedMediaError(MediaError):
    """A video in a container, codec or layout that we do not read."""


class MediaLimitError(MediaError):
    """Larger, longer or with more pixels than allowed."""


class DecodeTimeoutError(MediaError):
    """Decoding took longer than allowed and was ended."""


class DecoderDiedError(MediaError):
    """The decoding process ended without an answer."""


class TruncatedMediaError(MediaError):
    """The file ends before its first whole frame."""


class FetchError(MediaError):
    """A file at an address that could not be listed or fetched.

    Attributes:
        may_pass: whether it is worth another try: a connection that broke, a server in trouble.
        wait_seconds: before that, as the server wants it; None where it does not say.
    """

    def __init__(self, reason: str, *, may_pass: bool = False, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.wait_seconds = wait_seconds
