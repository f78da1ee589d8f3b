"""The files of a library: folders are walked, first bytes tell videos, what is left out is named.

Of files at addresses the names tell videos: reading the first bytes of each would take a request.

Left out are hidden files and folders, what NAS systems and computers keep for themselves, and what patterns
in the style of .gitignore name: those of the caller, and those of a file `.xclipignore` in any folder, which
counts for that folder and all below. The caller's patterns go first, then the deepest file's; `!` takes
something in.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

from indexer.errors import FetchError, NotAVideoError
from indexer.ingest.manifest import VideoSource
from indexer.ingest.remote_files import RemoteFile, is_remote, list_address
from indexer.media.probing import identify_container
from indexer.store.sqlite.schema import CATALOG_FILE

VIDEO_EXTENSIONS: Final = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogg", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
"""A file of such a name is a video, and a damaged one where its first bytes are not those of a video."""

_SOUND_EXTENSIONS: Final = frozenset(
    {".m4a", ".m4b", ".m4p", ".m4r", ".mka", ".mks", ".oga", ".opus", ".spx", ".wma"}
)
"""Sound and subtitles in the containers of videos."""

_SOUND_AND_IMAGE_BRANDS: Final = frozenset(
    {b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B ", b"crx ", b"hevc", b"hevx"}
)
"""Of the box `ftyp`: sound, raw photographs (CR3) and sequences of HEIF images."""

_OGG_SOUND: Final = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")
"""How the first packet of an Ogg stream of sound begins."""

_ALSO_OF_TEXT: Final = frozenset({".mts", ".ts"})
"""Names that TypeScript has too."""

_KEPT_BY_SYSTEMS: Final = frozenset(
    {"@eaDir", "@Recently-Snapshot", "@Recycle", "#recycle", "#snapshot", "$RECYCLE.BIN", "RECYCLER"}
    | {"System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"}
)
"""Folders and files of Synology and QNAP systems, Windows and ext4. Those of others are hidden: .Trash-1000,
.Trashes, .Spotlight-V100, .DS_Store, and ._NAME, which macOS puts next to NAME on foreign disks."""

IGNORE_FILE: Final = ".xclipignore"
HIDDEN, EXCLUDED, OF_THE_SYSTEM = "hidden", "excluded", "of the system"
NO_ENDING, NO_FILE = "no ending", "no file"
AN_INDEX: Final = "an index"
LINK_LOOP: Final = "a link to a folder that is read already"
_HEAD_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file in the library.

    Attributes:
        path: absolute, or an address.
        size_bytes: its size; 0 where an address does not say it.
        modified_ns: when it was last modified, in nanoseconds since 1970; at an address, its version.
        is_named: whether the caller named the file itself: then it is taken for a video whatever it is.
        remote: of a file at an address.
    """

    path: str
    size_bytes: int
    modified_ns: int
    is_named: bool = False
    remote: RemoteFile | None = None

    @classmethod
    def at(cls, remote: RemoteFile, *, is_named: bool = False) -> FoundFile:
        """A file at an address."""
        return cls(remote.uri, remote.size_bytes or 0, remote.version, is_named, remote)

    @property
    def place(self) -> Path | RemoteFile:
        """Where it is."""
        return self.remote or Path(self.path)

    @property
    def uri(self) -> str:
        """Its address, file:// for a file here."""
        return Path(self.path).as_uri() if self.remote is None else self.path


@dataclass
class Listing:
    """What lies in the library.

    Attributes:
        files: that are not left out by their names, videos or not, each once, in the order of the walk.
        folders: that the caller named, absolute or addresses.
        remote: by each folder among them that is an address, the addresses of all files below it.
        failures: (address, reason) of those that could not be listed.
        left_out: number of files that are left out by their names, by reason.
        folders_left_out: (folder, reason) of those that were not entered.
        unread: (folder, reason) of those that could not be read: nothing is known of what is below them.
        empty: those of `folders` that hold nothing but what is hidden or of the system, as the place of a
            disk that is not mounted.
    """

    files: list[FoundFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    folders_left_out: list[tuple[str, str]] = field(default_factory=list)
    unread: list[tuple[str, str]] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    remote: dict[str, frozenset[str]] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def has(self, uri: str) -> bool | None:
        """Whether a file is at an address; None where no folder that holds it was listed.

        >>> Listing(remote={"s3://films": frozenset({"s3://films/a.mp4"})}).has("s3://films/b.mp4")
        False
        """
        above = [files for folder, files in self.remote.items() if uri.startswith(f"{folder}/")]
        return any(uri in files for files in above) if above else None


@dataclass(frozen=True)
class _Patterns:
    """Patterns for what is below a folder."""

    folder: str
    spec: GitIgnoreSpec

    def excludes(self, path: str, is_folder: bool) -> bool | None:
        """Whether `path` is left out; None where no pattern is about it."""
        below = path[len(self.folder.rstrip(os.sep)) + 1 :].replace(os.sep, "/")
        return self.spec.check_file(f"{below}/" if is_folder else below).include


def find_files(paths: Iterable[str | Path], exclude: Sequence[str] = ()) -> Listing:
    """List the files among `paths` and below its folders. Links to folders are followed, each folder once.

    Args:
        paths: of files, taken as they are, and of folders; addresses too.
        exclude: patterns of what is left out, relative to each of the folders.

    Raises:
        FileNotFoundError: a path does not exist; the message names it. Of an address, `failures` says so.
    """
    walk = _Walk(exclude)
    for path in paths:
        if is_remote(path):
            walk.ask_for(str(path))
            continue
        try:
            status = os.stat(path)  # noqa: PTH116, a quarter of the time of Path.stat
        except OSError:
            raise FileNotFoundError(f"there is no file or folder {path}") from None
        if stat.S_ISDIR(status.st_mode):
            walk.begin(absolute(path), status)
        else:
            walk.take(FoundFile(absolute(path), status.st_size, status.st_mtime_ns, is_named=True))
    walk.follow_links()
    return walk.listing


def find_videos(paths: Iterable[str | Path], exclude: Sequence[str] = ()) -> list[VideoSource]:
    """The videos among `paths` and below its folders; see `find_files`."""
    files = find_files(paths, exclude).files
    return [VideoSource(file.place) for file in files if look_at(file).left_out is None]


def absolute(path: str | Path) -> str:
    """`path` from the root, without `.` and `..`; links stay, but for those before a `..`."""
    short = os.path.abspath(path)  # noqa: PTH100, Path.absolute keeps `..`
    if ".." in Path(path).parts and os.path.exists(path) and not _is_same(short, path):  # noqa: PTH110
        return os.path.realpath(path)
    return short


def _is_same(one: str, other: str | Path) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What a file's name and first bytes say of it.

    Attributes:
        left_out: why it is none of the library's videos: its ending, `.jpg` or `no ending`; None where it is
            one.
        failure: why it cannot be read although it is named like a video, or by the caller; None where it may.
    """

    left_out: str | None = None
    failure: str | None = None


def look_at(file: FoundFile) -> FirstLook:
    """Read the first bytes of a file: they decide, whatever its name, unless that is a video's. At an address
    the name decides."""
    ending = Path(file.path).suffix.lower()
    reason = ending or NO_ENDING
    if file.remote is not None:
        return FirstLook(left_out=None if file.is_named or ending in VIDEO_EXTENSIONS else reason)
    if ending in _SOUND_EXTENSIONS and not file.is_named:
        return FirstLook(left_out=reason)
    is_named_so = file.is_named or ending in VIDEO_EXTENSIONS
    head = b""
    try:
        with open(file.path, "rb", buffering=0) as opened:  # noqa: PTH123, one of very many
            head = opened.read(_HEAD_BYTES)
        container = identify_container(head)
    except OSError as error:
        failure = f"it cannot be read: {error.strerror or error}"
        return FirstLook(failure=failure) if is_named_so else FirstLook(left_out=reason)
    except NotAVideoError as error:
        is_program = ending in _ALSO_OF_TEXT and not file.is_named and _is_text(head)
        return FirstLook(failure=str(error)) if is_named_so and not is_program else FirstLook(left_out=reason)
    if not file.is_named and _is_no_picture(container, head):
        return FirstLook(left_out=reason)
    return FirstLook()


def _is_no_picture(container: str, head: bytes) -> bool:
    if container == "mp4":
        return head[4:8] == b"ftyp" and head[8:12] in _SOUND_AND_IMAGE_BRANDS
    # The first page of an Ogg file holds the first packet alone, after 27 bytes and one for each part of it.
    return container == "ogg" and len(head) > 27 and head[27 + head[26] :].startswith(_OGG_SOUND)


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8", "strict" if len(head) < _HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return False
    return bool(text) and all(letter.isprintable() or letter in "\t\r\n\f\ufeff" for letter in text)


def _is_empty(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return all(entry.name.startswith(".") or entry.name in _KEPT_BY_SYSTEMS for entry in entries)
    except OSError:
        return False  # It is among those that could not be read.


class _Walk:
    """One walk through all folders; real ones before links to them, so that files keep their own paths."""

    def __init__(self, exclude: Sequence[str]) -> None:
        self.listing = Listing()
        self._exclude = GitIgnoreSpec.from_lines(exclude)
        self._seen_files: set[str] = set()
        self._seen_folders: set[tuple[int, int]] = set()
        self._links: list[tuple[str, tuple[_Patterns, ...]]] = []

    def take(self, file: FoundFile) -> None:
        if file.path not in self._seen_files:
            self._seen_files.add(file.path)
            self.listing.files.append(file)

    def begin(self, folder: str, status: os.stat_result) -> None:
        """Walk a folder that the caller named, but for links to folders."""
        self.listing.folders.append(folder)
        patterns = (_Patterns(folder, self._exclude),) if len(self._exclude) else ()
        self._enter(folder, status, patterns)
        if _is_empty(folder):
            self.listing.empty.append(folder)

    def ask_for(self, uri: str) -> None:
        """Take what an address names: a file, or those below a folder."""
        try:
            files, is_folder = list_address(uri)
        except FetchError as error:
            self.listing.failures.append((uri, error.reason))
            return
        if not is_folder:
            self.take(FoundFile.at(files[0], is_named=True))
            return
        folder = uri.rstrip("/")
        self.listing.folders.append(folder)
        self.listing.remote[folder] = frozenset(file.uri for file in files)
        for file in files:
            if reason := self._why_not(file.uri[len(folder) + 1 :]):
                self.listing.left_out[reason] += 1
            else:
                self.take(FoundFile.at(file))

    def _why_not(self, below: str) -> str | None:
        """Why a file is left out by the part of its address below the folder that was named."""
        excludes = self._exclude.check_file(below).include
        if excludes is not None:
            return EXCLUDED if excludes else None
        parts = below.split("/")
        if any(part.startswith(".") for part in parts):
            return HIDDEN
        return OF_THE_SYSTEM if not _KEPT_BY_SYSTEMS.isdisjoint(parts) else None

    def follow_links(self) -> None:
        while self._links:
            path, patterns = self._links.pop(0)
            try:
                status = os.stat(path)  # noqa: PTH116
            except OSError as error:
                self.listing.unread.append((path, error.strerror or str(error)))
                continue
            if (status.st_dev, status.st_ino) in self._seen_folders:
                self.listing.folders_left_out.append((path, LINK_LOOP))
            else:
                self._enter(path, status, patterns)

    def _enter(self, folder: str, status: os.stat_result, patterns: tuple[_Patterns, ...]) -> None:
        """Walk a folder and those below it, in the order of their names."""
        waiting = [(folder, status, patterns)]
        while waiting:
            folder, status, patterns = waiting.pop()
            key = (status.st_dev, status.st_ino)
            if key in self._seen_folders:
                continue
            self._seen_folders.add(key)
            try:
                with os.scandir(folder) as opened:
                    entries = sorted(opened, key=lambda entry: entry.name)
                patterns = (*patterns, *self._patterns_of(folder, entries))
            except OSError as error:
                self.listing.unread.append((folder, error.strerror or str(error)))
                continue
            if any(entry.name == CATALOG_FILE for entry in entries):
                self.listing.folders_left_out.append((folder, AN_INDEX))
                continue
            waiting += reversed(list(self._sort_out(entries, patterns)))

    def _patterns_of(self, folder: str, entries: Sequence[os.DirEntry[str]]) -> Iterator[_Patterns]:
        if any(entry.name == IGNORE_FILE for entry in entries):
            text = (Path(folder) / IGNORE_FILE).read_text(encoding="utf-8-sig", errors="replace")
            yield _Patterns(folder, GitIgnoreSpec.from_lines(text.splitlines()))

    def _sort_out(
        self, entries: Sequence[os.DirEntry[str]], patterns: tuple[_Patterns, ...]
    ) -> Iterator[tuple[str, os.stat_result, tuple[_Patterns, ...]]]:
        """Take files, put links aside, and give the folders to enter."""
        for entry in entries:
            if entry.name == IGNORE_FILE:
                continue
            try:
                is_folder = entry.is_dir()
                if reason := self._why_left_out(entry, is_folder, patterns):
                    if is_folder:
                        self.listing.folders_left_out.append((entry.path, reason))
                    else:
                        self.listing.left_out[reason] += 1
                elif is_folder and entry.is_symlink():
                    self._links.append((entry.path, patterns))
                elif is_folder:
                    yield entry.path, entry.stat(), patterns
                elif stat.S_ISREG((status := entry.stat()).st_mode):
                    self.take(FoundFile(entry.path, status.st_size, status.st_mtime_ns))
                else:
                    self.listing.left_out[NO_FILE] += 1
            except OSError:  # A link that leads nowhere, or a file that was deleted just now.
                self.listing.left_out[NO_FILE] += 1

    def _why_left_out(
        self, entry: os.DirEntry[str], is_folder: bool, patterns: tuple[_Patterns, ...]
    ) -> str | None:
        of_caller = patterns[:1] if len(self._exclude) else ()
        for one in (*of_caller, *reversed(patterns[len(of_caller) :])):
            excludes = one.excludes(entry.path, is_folder)
            if excludes is not None:
                return EXCLUDED if excludes else None
        if entry.name.startswith("."):
            return HIDDEN
        return OF_THE_SYSTEM if entry.name in _KEPT_BY_SYSTEMS else None
