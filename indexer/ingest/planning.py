"""What a synchronisation does, decided from what was found and what is known: pure functions.

Content is identity, and the address is where it lives now. A found file whose content is a video

    at its own address           is unchanged, or updated where the caller says something new of it
    whose own address has lost it   is moved: the video takes this address over
    that lives on elsewhere      is a duplicate

and one whose content is no video yet is to be encoded. A video whose address now holds other content, and
which is found nowhere else, is replaced by that content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from indexer.errors import InvalidRecordError
from indexer.ingest.manifest import VideoSource
from indexer.ingest.remote_files import UNKNOWN_VERSION, RemoteFile
from indexer.ingest.transcript_files import Tracks, changed_tracks
from indexer.ingest.video_files import place_of, title_of_file
from indexer.store.records import KnownFile, VideoRecord, check_time, check_title, metadata_to_json
from indexer.store.text import nfc
from indexer.store.transcripts import TranscriptFile

Kind = Literal["encode", "unchanged", "updated", "moved", "duplicate", "failed", "left out"]

KEPT_OUT: Final = "kept out"
"""Why a file is left out whose content was deleted on purpose."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the library, and what is known of its content.

    Attributes:
        uri: its address, unique among all that are planned together.
        size_bytes: its size; 0 where an address does not say it.
        modified_ns: when it was last modified, in nanoseconds since 1970; at an address, its version.
        source: the file, with what the caller says of it.
        content_sha256: of its bytes; None where they were not read, because no video has this size.
        failure: why this content cannot become a video, from an earlier run; or why it could not be read.
        transcripts: the files of its transcripts; None where they were not looked for.
    """

    uri: str
    size_bytes: int
    modified_ns: int
    source: VideoSource
    content_sha256: str | None = None
    failure: str | None = None
    transcripts: Tracks | None = ()

    @property
    def address(self) -> str:
        """Where the video is to be found: what the caller says, else the file itself."""
        return self.uri if self.source.uri is None else self.source.uri

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses that a video at this file may have."""
        return self.address, self.uri, *plain_addresses(self.source.path)


@dataclass(frozen=True)
class Knowledge:
    """What the index knows of the found files.

    Attributes:
        videos: by the sha256 of their content, those whose content was found.
        at: by the address of each found file, the videos that have it.
        kept_out: sha256 of the content among theirs that was deleted on purpose.
        living: addresses of files beyond the found ones that still hold what the index says.
        gone: those of them, not of this machine, at which there is no file any more.
        tracks: by the id of each of `videos` that has transcripts, their tracks and files.
    """

    videos: Mapping[str, VideoRecord] = field(default_factory=dict)
    at: Mapping[str, Sequence[VideoRecord]] = field(default_factory=dict)
    kept_out: Set[str] = frozenset()
    living: Set[str] = frozenset()
    gone: Set[str] = frozenset()
    tracks: Mapping[str, Mapping[str, TranscriptFile | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Action:
    """What is done about one found file.

    Attributes:
        file: that was found.
        kind: what is done; `encode` becomes `added`, `duplicate` or `failed` when the file is read.
        video: that has its content; None where none has.
        changes: fields of that video to be set.
        replaces: videos that give way to the content of this file.
        reason: why it failed or is left out; of a duplicate, where the video lives.
        transcripts: files of transcripts to be read and stored.
        tracks_gone: tracks of the video whose files are gone.
    """

    file: Found
    kind: Kind
    video: VideoRecord | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    replaces: Sequence[VideoRecord] = ()
    reason: str | None = None
    transcripts: Tracks = ()
    tracks_gone: Sequence[str] = ()


def plain_addresses(path: Path | RemoteFile) -> tuple[str, ...]:
    """A path as an address, without a slash at its end, as a server stores one that it was given; none where
    it is not text, or an address already."""
    if isinstance(path, RemoteFile):
        return ()
    text = str(path).removesuffix("/")
    return (text,) if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text) else ()


def plan(found: Sequence[Found], known: Knowledge) -> list[Action]:
    """One action for each found file, in their order."""
    homes = _homes(found, known)
    found_contents = {file.content_sha256 for file in found}
    actions = []
    for file in found:
        video = None if file.content_sha256 is None else known.videos.get(file.content_sha256)
        replaced = [
            other
            for other in known.at.get(file.uri, ())
            if other.content_sha256 != file.content_sha256 and other.content_sha256 not in found_contents
        ]
        if file.failure is not None:
            # What was here stays until something that can be read takes its place.
            actions.append(Action(file, "failed", reason=file.failure))
        elif video is None and file.content_sha256 in known.kept_out:
            actions.append(Action(file, "left out", replaces=replaced, reason=KEPT_OUT))
        elif video is None:
            actions.append(Action(file, "encode", replaces=replaced, transcripts=file.transcripts or ()))
        elif homes.get(video.content_sha256) == file.uri:
            actions.append(_at_home(file, video, replaced, known))
        else:
            reason = homes.get(video.content_sha256) or video.uri or "an upload"
            actions.append(Action(file, "duplicate", video, replaces=replaced, reason=reason))
    return actions


def _homes(found: Sequence[Found], known: Knowledge) -> dict[str, str]:
    """For each known content, the found file at which its video lives from now on; none where that is
    elsewhere."""
    files: dict[str, list[Found]] = {}
    for file in found:
        if file.failure is None and file.content_sha256 is not None and file.content_sha256 in known.videos:
            files.setdefault(file.content_sha256, []).append(file)
    homes = {}
    for content, candidates in files.items():
        video = known.videos[content]
        own = [file for file in candidates if video.uri in file.addresses]
        if own:
            homes[content] = own[0].uri
        elif video.uri is not None and video.uri not in known.living:
            homes[content] = candidates[0].uri
    return homes


def _at_home(file: Found, video: VideoRecord, replaced: Sequence[VideoRecord], known: Knowledge) -> Action:
    """The file is where its video lives, from now on or as before."""
    changes: dict[str, Any] = {}
    old_place = place_of(video.uri)
    # An address elsewhere, which a manifest gave, stays until a manifest gives another one.
    is_lost = isinstance(old_place, Path) or video.uri in known.gone
    is_moved = is_lost and video.uri not in file.addresses
    if (is_moved or file.source.uri is not None) and video.uri != file.address:
        changes["uri"] = file.address
    title = file.source.title
    if title is None and is_moved and old_place is not None and video.title == nfc(title_of_file(old_place)):
        title = title_of_file(file.source.path)
    try:
        if title is not None and check_title(title) != video.title:
            changes["title"] = title
        wanted = file.source.metadata
        if wanted and metadata_to_json(wanted) != metadata_to_json(video.metadata):
            changes["metadata"] = wanted
        if file.source.recorded_at is not None and file.source.recorded_at != video.recorded_at:
            changes["recorded_at"] = check_time("recorded_at", file.source.recorded_at)
    except InvalidRecordError as error:
        return Action(file, "failed", video, replaces=replaced, reason=str(error))
    if video.missing_since is not None:
        changes["missing_since"] = None
    transcripts: Tracks = ()
    tracks_gone: Sequence[str] = ()
    if file.transcripts is not None:
        transcripts, tracks_gone = changed_tracks(file.transcripts, known.tracks.get(video.id, {}))
    said = bool(changes.keys() - {"missing_since"} or transcripts or tracks_gone)
    kind: Kind = "moved" if is_moved else "updated" if said else "unchanged"
    reason = video.uri if is_moved else None
    return Action(file, kind, video, changes, replaced, reason, transcripts, tracks_gone)


def missing_videos(
    below: Iterable[VideoRecord], actions: Sequence[Action], is_there: Callable[[str], bool | None]
) -> list[VideoRecord]:
    """The videos whose files are gone.

    Args:
        below: the videos below the folders that were walked, as they were before the actions.
        actions: what is done about the files there.
        is_there: whether a file that was not found, because it is left out for instance, is there after all;
            None where that cannot be known now.
    """
    found = {action.file.uri for action in actions}
    settled = {action.video.id for action in actions if action.video is not None}
    settled |= {video.id for action in actions for video in action.replaces}
    return [
        video
        for video in below
        if video.uri is not None
        and video.id not in settled
        and video.uri not in found
        and is_there(video.uri) is False
    ]


def is_unchanged(size_bytes: int, modified_ns: int, known: KnownFile | None) -> bool:
    """Whether a file is taken for what it was when it was last read."""
    if known is None or modified_ns == UNKNOWN_VERSION:
        return False
    return (size_bytes, modified_ns) == (known.size_bytes, known.modified_ns)
