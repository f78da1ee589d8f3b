"""Files at addresses, `s3://bucket/clip.mp4` for instance: listed and described through fsspec.

An address is kept as it is written, and is its file's identity together with size and version: what the file
system says that changes with the content, an ETag where there is one, else the time of modification.
Credentials are in no address: each file system takes them from where its own tools do.
"""

from __future__ import annotations

import errno
import hashlib
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from indexer.errors import FetchError

UNKNOWN_VERSION: Final = -(1 << 63)
"""Of a file whose file system says neither ETag nor time: it is never taken for what it was."""

_ADDRESS: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_ONE_BY_ONE: Final = frozenset({"http", "https"})
"""Protocols without listings: each address is one file."""

_ETAGS: Final = ("ETag", "etag", "Content-MD5", "Digest", "md5Hash", "content_md5")
_TIMES: Final = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "modified", "created")
_CONNECT_SECONDS, _SILENCE_SECONDS = 30.0, 60.0
_NUM_ASKED_AT_ONCE: Final = 32
_MIN_FILES_TO_LIST: Final = 50
"""A manifest's files of one folder from which on the folder is listed: a listing gives 1000 files a request,
and some of them may be others."""

NUM_TRIES: Final = 3
PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 60.0

FULL_DISK: Final = (errno.ENOSPC, errno.EDQUOT)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at an address; equal to another one of the same address. `str` gives the address.

    Attributes:
        uri: the address.
        size_bytes: as listed; None where that is not known.
        version: a number that changes with the content, signed 64 bits; UNKNOWN_VERSION where there is none.
    """

    uri: str
    size_bytes: int | None = field(default=None, compare=False)
    version: int = field(default=UNKNOWN_VERSION, compare=False)

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """The last part of the address.

        >>> RemoteFile("https://example.org/films/a%20b.mp4?x=1").name, RemoteFile("s3://films/100%.mp4").name
        ('a b.mp4', '100%.mp4')
        """
        scheme = scheme_of(self.uri)
        path = unquote(urlsplit(self.uri).path) if scheme in _ONE_BY_ONE else self.uri.partition("://")[2]
        return PurePosixPath(path).name

    @property
    def stem(self) -> str:
        """`name` without its ending."""
        return PurePosixPath(self.name).stem


def is_remote(location: object) -> bool:
    """Whether a text is an address that fsspec is asked about.

    >>> is_remote("s3://bucket/folder"), is_remote("file:///a.mp4"), is_remote("a.mp4"), is_remote("C:/a.mp4")
    (True, False, False, False)
    """
    return isinstance(location, str) and scheme_of(location) not in ("", "file", "local")


def scheme_of(location: str) -> str:
    """The part before `://`, in lower case; empty where there is none."""
    match = _ADDRESS.match(location)
    return match[1].lower() if match else ""


def list_address(uri: str) -> tuple[list[RemoteFile], bool]:
    """What an address names: the one file that is there, or all files below that folder.

    Returns:
        The files, and whether the address is a folder.

    Raises:
        FetchError: there is nothing, or it cannot be listed; `reason` says why.
    """
    return retried(lambda: _listed(uri))


def _listed(uri: str) -> tuple[list[RemoteFile], bool]:
    file_system, path = _open(uri)
    if scheme_of(uri) in _ONE_BY_ONE:
        return [_describe(file_system, uri, path)], False
    folder = uri.rstrip("/")
    try:
        if not uri.endswith("/"):
            info = file_system.info(path)
            if info["type"] == "file":
                return [_remote_file(uri, info)], False
        root = path.rstrip("/")
        files = [
            _remote_file(folder + name[len(root) :], info)
            for name, info in file_system.find(root, detail=True).items()
            if info["type"] == "file" and not name.endswith("/")
        ]
    except Exception as error:
        raise explained(error, uri) from None
    if not files:
        raise FetchError("there is no such file, and no folder with files")
    return files, True


def describe_all(uris: Iterable[str]) -> dict[str, RemoteFile | FetchError]:
    """Size and version of each of these files, or why they cannot be known.

    Folders of which many files are asked are listed; the others are asked about one by one, concurrently.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for uri in dict.fromkeys(uris):
        by_folder[uri.rpartition("/")[0]].append(uri)
    found: dict[str, RemoteFile | FetchError] = {}
    single: list[str] = []
    for folder, wanted in by_folder.items():
        listed = None
        if len(wanted) >= _MIN_FILES_TO_LIST and scheme_of(folder) not in _ONE_BY_ONE:
            listed = _files_in(folder)
        if listed is None:
            single += wanted
        else:
            absent = FetchError("there is no such file")
            found |= {uri: listed.get(uri, absent) for uri in wanted}
    with ThreadPoolExecutor(_NUM_ASKED_AT_ONCE, thread_name_prefix="describe") as threads:
        found |= zip(single, threads.map(_described, single), strict=True)
    return found


def describe(uri: str) -> RemoteFile:
    """Size and version of one file. Raises FetchError."""
    file_system, path = _open(uri)
    return _describe(file_system, uri, path)


def read_bytes(uri: str, max_bytes: int) -> bytes:
    """A small file, at most `max_bytes` and one of it. Raises FetchError."""
    file_system, path = _open(uri)
    try:
        size_bytes = file_system.info(path).get("size")
        if size_bytes is not None and size_bytes <= max_bytes:
            return bytes(file_system.cat_file(path))
        with file_system.open(path, "rb") as opened:
            return bytes(opened.read(max_bytes + 1))
    except Exception as error:
        raise explained(error, uri) from None


def open_file_system(uri: str) -> tuple[Any, str]:
    """The file system of an address, and its own name for what is there. Raises FetchError."""
    return _open(uri)


def retried(call: Callable[[], Result], cancelled: threading.Event | None = None) -> Result:
    """What `call` gives, asked for again where a connection broke or a server was in trouble.

    Raises:
        FetchError: it is final, or came at each of NUM_TRIES tries.
        CancelledError: `cancelled` was set before another try.
    """
    for number in range(1, NUM_TRIES):
        try:
            return call()
        except FetchError as error:
            if not error.may_pass:
                raise
            wanted = error.wait_seconds or PAUSE_SECONDS * 4 ** (number - 1)
        if (cancelled or threading.Event()).wait(min(wanted, _MAX_PAUSE_SECONDS)):
            raise CancelledError
    try:
        return call()
    except FetchError as error:
        if not error.may_pass:
            raise
        raise FetchError(f"{error.reason}, at {NUM_TRIES} tries") from None


def explained(error: Exception, uri: str) -> FetchError:
    """What an error of a file system means, as a sentence without the address, and whether it may pass.

    Raises:
        OSError: it is of this machine's disk, which is full.
    """
    if isinstance(error, FetchError):
        return error
    if isinstance(error, OSError) and error.errno in FULL_DISK:
        raise error
    cause = error if error.__cause__ is None else error.__cause__
    said = " ".join(str(cause).split())
    if type(cause).__name__ in _NO_CREDENTIALS:
        how = _WHERE_CREDENTIALS.get(scheme_of(uri), "docs/sources.md says where from")
        is_half = type(cause).__name__ == "PartialCredentialsError"
        missing = f" ({said})" if is_half else ""
        return FetchError(f"there are no credentials for {scheme_of(uri)}://{missing}: {how}")
    if type(cause).__name__ == "ProfileNotFound":
        return FetchError(f"{said}: AWS_PROFILE names it, and ~/.aws/config has no such one")
    if type(cause).__name__ == "TooManyRedirects":
        return FetchError("it redirects without an end")
    if "Cert" in type(cause).__name__:
        return FetchError(f"the server's certificate is not accepted: {said[:300]}")
    if isinstance(error, PermissionError):
        code = _code_of(cause)
        return FetchError(f"the credentials are refused, or do not allow reading it{code}")
    if (status := _status_of(cause)) >= 400 and status != 404:
        # What S3 answered has been asked for two dozen times already, by its own library.
        may_pass = not _code_of(cause) and (status >= 500 or status in (408, 429))
        message = f"the server answers {status} {getattr(cause, 'message', '')}".rstrip() + _code_of(cause)
        return FetchError(message, may_pass=may_pass, wait_seconds=_wanted_pause(cause))
    # The file system of http says of every trouble that the file is not there; its cause says which it was.
    absent = cause if scheme_of(uri) in _ONE_BY_ONE else error
    if status == 404 or isinstance(absent, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        is_bucket = "bucket does not exist" in said or "NoSuchBucket" in _code_of(cause)
        return FetchError("there is no such bucket" if is_bucket else "there is no such file")
    if isinstance(cause, TimeoutError):
        return FetchError("the server did not answer in time", may_pass=True)
    return FetchError(f"it could not be fetched: {said[:300] or type(cause).__name__}", may_pass=True)


_NO_CREDENTIALS: Final = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_WHERE_CREDENTIALS: Final = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or write ~/.aws/credentials;"
    """ for a public bucket set FSSPEC_S3='{"anon": true}'""",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth application-default login`",
}


def _status_of(error: BaseException) -> int:
    """HTTP's, of errors of aiohttp and botocore; 0 where there is none."""
    status = getattr(error, "status", None)
    if status is None:
        response = getattr(error, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = metadata.get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _code_of(error: BaseException) -> str:
    """What S3 calls its trouble, in brackets: ` (InvalidAccessKeyId)`; empty for others."""
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return f" ({code})" if code else ""


def _wanted_pause(error: BaseException) -> float | None:
    """Seconds of Retry-After; a date in it, which is seldom there, counts as none."""
    headers = getattr(error, "headers", None) or {}
    said = headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else None


def _described(uri: str) -> RemoteFile | FetchError:
    try:
        return retried(lambda: describe(uri))
    except FetchError as error:
        return error


def _describe(file_system: Any, uri: str, path: str) -> RemoteFile:
    try:
        info = file_system.info(path)
    except Exception as error:
        raise explained(error, uri) from None
    if info["type"] != "file":
        raise FetchError("it is a folder, not a file")
    return _remote_file(uri, info)


def _files_in(folder: str) -> dict[str, RemoteFile] | None:
    """The files of one folder by address; None where it cannot be listed, and its files have to be asked
    about one by one."""
    try:
        file_system, path = _open(folder)
        root = path.rstrip("/")
        infos = file_system.ls(root, detail=True, refresh=True)
    except Exception:
        return None
    files = {folder + info["name"][len(root) :]: info for info in infos if info["type"] == "file"}
    return {uri: _remote_file(uri, info) for uri, info in files.items()}


def _remote_file(uri: str, info: Mapping[str, Any]) -> RemoteFile:
    size_bytes = info.get("size")
    return RemoteFile(uri, None if size_bytes is None else int(size_bytes), _version(info))


def _version(info: Mapping[str, Any]) -> int:
    for names in (_ETAGS, _TIMES):
        for name in names:
            if (value := info.get(name)) not in (None, ""):
                text = _plain(value)
                digest = hashlib.sha256(f"{name.lower()}:{text}".encode()).digest()
                return max(UNKNOWN_VERSION + 1, int.from_bytes(digest[:8], "big", signed=True))
    return UNKNOWN_VERSION


def _plain(value: object) -> str:
    """A tag or time as it is written in listings and for single files alike."""
    if isinstance(value, datetime):
        value = value.timestamp()
    if isinstance(value, int | float):
        return f"{value:.6f}"
    return str(value).removeprefix("W/").strip('"')


def _open(uri: str) -> tuple[Any, str]:
    scheme = scheme_of(uri)
    if "::" in uri:
        raise FetchError("addresses within addresses (::) are not read")
    if scheme in _ONE_BY_ONE and (urlsplit(uri).username or urlsplit(uri).password):
        raise FetchError("the address holds a user or a password, which would be shown: remove it")
    try:
        file_system = _file_system(scheme)
        return file_system, str(file_system._strip_protocol(uri))
    except ImportError as error:
        raise FetchError(
            f"{scheme}:// needs a package: pip install 'xclip-search[remote]' brings those for s3:// and"
            f" https:// ({' '.join(str(error).split())})"
        ) from None
    except ValueError as error:
        if "protocol" not in str(error).lower():
            raise explained(error, uri) from None
        raise FetchError(f"no file system is known for {scheme}://") from None
    except Exception as error:
        raise explained(error, uri) from None


_making = threading.Lock()


def _file_system(scheme: str) -> Any:
    with _making:  # One for all threads: each would open connections of its own.
        return _made_file_system(scheme)


@cache
def _made_file_system(scheme: str) -> Any:
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme in _ONE_BY_ONE:
        from aiohttp import ClientTimeout

        # By default aiohttp ends each request after five minutes, however well it goes on.
        timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
        options["client_kwargs"] = {"timeout": timeout}
        for name in sorted(_ONE_BY_ONE):  # What the user configured for fsspec, headers for instance, stays.
            options["client_kwargs"] |= fsspec.config.conf.get(name, {}).get("client_kwargs", {})
    return fsspec.filesystem(scheme, **options)


def forget_file_systems() -> None:
    """Make connections anew: credentials may have changed."""
    _made_file_system.cache_clear()
