"""Where the file of an indexed video lies: among the uploads that the index keeps, or at its uri."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes, urlsplit

from indexer.ingest.remote_files import RemoteFile, is_remote
from indexer.store.records import VideoRecord

if TYPE_CHECKING:
    from indexer.store.store import Files

MEDIA_FOLDER: Final = "media"
"""In the index directory: accepted uploads, each named by its video's id, with an extension."""

_OWN_ID: Final = re.compile(r"[0-9a-f]{32}")


def find_video_file(index_directory: Path, record: VideoRecord) -> tuple[Path, bool] | None:
    """The file of a video, and whether decord may read it; None where there is none.

    A file that the operator trusts is read where it lies; what was uploaded never is.
    """
    if _OWN_ID.fullmatch(record.id):
        for path in sorted((index_directory / MEDIA_FOLDER).glob(f"{record.id}.*")):
            if path.is_file():
                return path, False
    path_of_uri = local_path(record.uri)
    if path_of_uri is None or not path_of_uri.is_file():
        return None
    return path_of_uri, record.trusted


def fetched_from(files: Files[Any], record: VideoRecord) -> RemoteFile | None:
    """The address that a video was fetched from; None where it was not.

    A client of the service may say any uri of a video. Only one is taken that this index itself has read,
    when its user named it, and found to hold the content of this very video.
    """
    if record.uri is None or not is_remote(record.uri):
        return None
    known = files.find([record.uri]).get(record.uri)
    if known is None or known.content_sha256 != record.content_sha256:
        return None
    return RemoteFile(record.uri, record.size_bytes, known.modified_ns)


def title_of_file(path: Path | RemoteFile) -> str:
    """A file's name without its ending, as a title: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path.stem).decode("utf-8", "replace")


def place_of(uri: str | None) -> Path | RemoteFile | None:
    """Where the file of a uri is: here, or at an address; None for anything else."""
    return RemoteFile(uri) if uri is not None and is_remote(uri) else local_path(uri)


def local_path(uri: str | None) -> Path | None:
    """The absolute path that a uri names, `file:///...` or the path itself; None for anything else.

    The bytes that are percent-encoded are those of the path, UTF-8 or not.
    """
    if not uri or "\0" in uri:
        return None
    if uri.startswith("file:"):
        parts = urlsplit(uri)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            return None
        try:
            uri = os.fsdecode(unquote_to_bytes(os.fsencode(parts.path)))
        except UnicodeEncodeError:  # A lone surrogate.
            return None
        if "\0" in uri:
            return None
    path = Path(uri)
    return path if path.is_absolute() else None
