"""Uploads: a multipart form, streamed to disk under a name of ours, hashed and limited on the way.

Nothing of the file is ever held in memory beyond one block, and no name of the client's touches the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi import Request
from pydantic import BaseModel, RootModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from indexer.store.transcripts import MAX_TRACKS, MAX_TRANSCRIPT_BYTES, Transcript
from model.atomic_files import fsync_directory
from service.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    MalformedBodyError,
    StorageFullError,
    validation_problem,
)
from service.ingest.media_store import FULL_DISK_ERRORS
from service.ingest.sent_transcripts import parse_sent
from service.schemas.fields import MAX_TITLE_CHARACTERS, Metadata, Title

FORM = "multipart/form-data"

BLOCK_BYTES = 1024 * 1024
"""Written to disk, and hashed, at a time."""

FIELD_LIMIT_BYTES = 64 * 1024
"""Largest text field; enough for all that `title` and `metadata` may hold."""

FORM_OVERHEAD_BYTES = 256 * 1024 + MAX_TRANSCRIPT_BYTES
"""What boundaries, headers, text fields and transcripts may add to the size of the file."""

UPLOAD_FIELDS = ("file", "title", "metadata", "transcript")

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


class _Title(BaseModel):
    title: Title


class _Metadata(RootModel[Metadata]):
    pass


@dataclass(frozen=True)
class Upload:
    """The fields of a form whose file is complete and synced to disk; the caller owns the file.

    content_sha256: of the file's bytes, 64 hex digits. title: the one given, or from the file's name.
    transcripts: each of another track.
    """

    content_sha256: str
    title: str | None
    metadata: dict[str, Any]
    transcripts: list[Transcript]


def media_type_of(request: Request) -> str:
    """The type in the header Content-Type, without its parameters; empty where there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def receive_upload(request: Request, path: Path, limit_bytes: int, limiter: CapacityLimiter) -> Upload:
    """Stream the `file` of a multipart form to disk, with a title, metadata and transcripts.

    Args:
        request: Its body is the form.
        path: Where the file goes; must not exist. On any error it is deleted again.
        limit_bytes: The largest file.
        limiter: Of the threads that write.

    Returns:
        The sha256 of the file's bytes and the other fields. The file is synced to disk.

    Raises:
        What `receive_form` raises, and TranscriptRejectedError.
    """

    def read_fields(form: Form) -> tuple[str | None, dict[str, Any], list[Transcript]]:
        transcripts = parse_sent(form.filename, form.transcripts) if form.transcripts else []
        return form.title(), form.metadata(), transcripts

    form = Form(limit_bytes, UPLOAD_FIELDS)
    title, metadata, transcripts = await receive_form(request, path, form, limiter, read_fields)
    return Upload(form.digest.hexdigest(), title, metadata, transcripts)


async def receive_form(
    request: Request, path: Path, form: Form, limiter: CapacityLimiter, read_fields: Callable[[Form], T]
) -> T:
    """Stream the `file` of a multipart form to disk.

    Args:
        request: Its body is the form.
        path: Where the file goes; must not exist. On any error it is deleted again.
        form: Takes it in.
        limiter: Of the threads that write.
        read_fields: Checks the other fields, before the file is synced to disk; in a thread.

    Returns:
        What `read_fields` returns.

    Raises:
        BodyTooLargeError: The file is larger than the form allows, or a text field than FIELD_LIMIT_BYTES.
        MalformedBodyError: The form is not well-formed, or truncated.
        InvalidRequestError: A field is missing, unknown, repeated or invalid.
        StorageFullError: The disk is full.
    """
    parser = _make_parser(request, form)
    run = partial(to_thread.run_sync, limiter=limiter)
    file: BinaryIO | None = None
    try:
        file = await run(path.open, "xb")
        async for chunk in request.stream():
            # Parsing is quick and stays in the event loop; hashing and writing get a thread, block by block.
            try:
                parser.write(chunk)
            except FormParserError:
                raise MalformedBodyError("The multipart form is not well-formed.") from None
            if len(form.pending) >= BLOCK_BYTES:
                await run(form.flush, file)
        # Before `finish`: what is refused need not be synced to the disk.
        form.check_complete()
        fields = await run(read_fields, form)
        await run(form.finish, file)
        if form.is_durable:
            await run(fsync_directory, path.parent)
        return fields
    except BaseException as error:
        # A client that is gone cancels this task; cleaning up must not be cancelled as well.
        with CancelScope(shield=True):
            await run(_discard, file, path)
        if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
            raise StorageFullError() from error
        raise


async def receive_json(request: Request, model: type[Model], limit_bytes: int) -> Model:
    """The body of `request` as a `model`: what FastAPI does, for an endpoint that takes forms too.

    Raises:
        BodyTooLargeError: It is larger than `limit_bytes`.
        MalformedBodyError: It is not JSON in UTF-8.
        InvalidRequestError: It is not a `model`.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLargeError(f"The body is larger than {limit_bytes} bytes.")
    return _parse_json(bytes(body), model)


def _parse_json(body: bytes | str, model: type[Model]) -> Model:
    return _validated(model, lambda: model.model_validate_json(body))


def _validated(model: type[Model], validate: Callable[[], Model]) -> Model:
    try:
        return validate()
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise validation_problem(problems, list(model.model_fields)) from None


def _discard(file: BinaryIO | None, path: Path) -> None:
    """Delete what has arrived. Blocks, for some tenths of a second where it is gigabytes."""
    # On a full disk closing fails too: it tries to write what is left.
    with contextlib.suppress(OSError):
        if file is not None:
            file.close()
    path.unlink(missing_ok=True)


def _make_parser(request: Request, form: Form) -> MultipartParser:
    _, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedBodyError("The Content-Type header of the multipart form names no boundary.")
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": form.on_part_begin,
                "on_header_field": form.on_header_field,
                "on_header_value": form.on_header_value,
                "on_header_end": form.on_header_end,
                "on_headers_finished": form.on_headers_finished,
                "on_part_data": form.on_part_data,
                "on_end": form.on_end,
            },
        )
    except FormParserError:
        raise MalformedBodyError("The boundary of the multipart form is too long.") from None


class Form:
    """Receives the parser's callbacks. The file's bytes gather in `pending` until `flush` writes them.

    limit_bytes: the largest file. names: of the fields, `file` the first. is_durable: whether the file shall
    last through a power cut.
    """

    def __init__(self, limit_bytes: int, names: Sequence[str], *, is_durable: bool = True) -> None:
        self.limit_bytes = limit_bytes
        self.names = names
        self.is_durable = is_durable
        self.pending = bytearray()
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self.filename = ""
        self.texts: dict[str, bytearray] = {}
        self.transcripts: list[tuple[str, bytearray]] = []  # Names and bytes of files.
        self.ended = False
        self._seen: set[str] = set()
        self._name = ""
        self._header_field = bytearray()
        self._header_value = bytearray()
        self._disposition = b""

    def on_part_begin(self) -> None:
        """A field begins."""
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        """Bytes of a header's name."""
        self._header_field += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        """Bytes of its value."""
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        """A header ends."""
        if self._header_field.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_field.clear()
        self._header_value.clear()

    def on_headers_finished(self) -> None:
        """The headers of a field end. Raises InvalidRequestError."""
        _, options = parse_options_header(self._disposition)
        # The names that we know are ASCII. Latin-1 decodes any other bytes too, which are refused below.
        name = options.get(b"name", b"").decode("latin-1")
        if name not in self.names:
            raise InvalidRequestError(
                f"The form has a field that is not known; those known: {', '.join(self.names)}."
            )
        if name in self._seen and name != "transcript":
            raise InvalidRequestError("The form has one of its fields twice.")
        self._seen.add(name)
        self._name = name
        filename = options.get(b"filename", b"").decode("utf-8", "replace")
        if name == "file":
            self.filename = filename
        elif name == "transcript":
            if len(self.transcripts) == MAX_TRACKS:
                raise InvalidRequestError(f"A video has at most {MAX_TRACKS} transcripts.")
            self.transcripts.append((filename, bytearray()))
        else:
            self.texts[name] = bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Bytes of a field. Raises BodyTooLargeError."""
        if self._name == "file":
            self.size_bytes += end - start
            if self.size_bytes > self.limit_bytes:
                raise BodyTooLargeError(f"The file is larger than {self.limit_bytes} bytes.")
            self.pending += data[start:end]
            return
        if self._name == "transcript":
            if sum(len(read) for _, read in self.transcripts) + end - start > MAX_TRANSCRIPT_BYTES:
                raise BodyTooLargeError(
                    f"The transcripts are larger than {MAX_TRANSCRIPT_BYTES} bytes together."
                )
            self.transcripts[-1][1].extend(data[start:end])
            return
        text = self.texts[self._name]
        if len(text) + end - start > FIELD_LIMIT_BYTES:
            raise BodyTooLargeError(f"A text field of the form is larger than {FIELD_LIMIT_BYTES} bytes.")
        text += data[start:end]

    def on_end(self) -> None:
        """The form ends."""
        self.ended = True

    def flush(self, file: BinaryIO) -> None:
        """Write and hash what is pending. Blocks."""
        file.write(self.pending)
        self.digest.update(self.pending)
        self.pending.clear()

    def finish(self, file: BinaryIO) -> None:
        """Write the rest, and where it is to be durable make it last. Blocks."""
        self.flush(file)
        file.flush()
        if self.is_durable:
            os.fsync(file.fileno())
        file.close()

    def check_complete(self) -> None:
        """Raise MalformedBodyError for a truncated form, InvalidRequestError for one without a file."""
        if not self.ended:
            raise MalformedBodyError("The multipart form ends before its closing boundary.")
        if "file" not in self._seen:
            raise InvalidRequestError(
                f"The form has no field named file; its fields: {', '.join(self.names)}."
            )
        if not self.size_bytes:
            message = "The file is empty."
            raise InvalidRequestError(f"file: {message}", errors=[{"field": "file", "message": message}])

    def fields(self, model: type[Model]) -> Model:
        """The text fields as a `model`. Raises InvalidRequestError."""
        texts = {name: self._text(name) for name in self.texts}
        return _validated(model, lambda: model.model_validate(texts))

    def title(self) -> str | None:
        """The title that was given, or one made from the file's name. Raises InvalidRequestError."""
        text = self._text("title")
        if not text:
            return title_from_filename(self.filename)
        return _validated(_Title, lambda: _Title(title=text)).title

    def metadata(self) -> dict[str, Any]:
        """The metadata that was given, or none. Raises InvalidRequestError."""
        text = self._text("metadata")
        if not text:
            return {}
        try:
            return _parse_json(text, _Metadata).root
        except MalformedBodyError:
            message = "The text is not JSON without NaN or Infinity."
        except InvalidRequestError as error:
            message = error.detail
        raise InvalidRequestError(f"metadata: {message}", errors=[{"field": "metadata", "message": message}])

    def _listed(self) -> str:
        return ", ".join(self.names)

    def _text(self, name: str) -> str:
        try:
            return bytes(self.texts.get(name, b"")).decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequestError("A text field of the form is not UTF-8.") from None


def title_from_filename(filename: str) -> str | None:
    """The last part of `filename` without its ending, as a title; None where nothing readable is left."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1]
    stem = name.rsplit(".", 1)[0] if "." in name[1:] else name
    title = "".join(character for character in stem if character.isprintable()).strip()
    return title[:MAX_TITLE_CHARACTERS] or None
