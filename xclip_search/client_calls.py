"""Every request of the API as a value, and how its answer is read. Nothing here sends anything."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, Literal, Protocol, TypedDict, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from xclip_search.client_answers import (
    Access,
    AddedVideo,
    Health,
    Job,
    JobPage,
    JobState,
    ManySearchAnswers,
    Mode,
    RankedTexts,
    SearchAnswer,
    SimilarVideos,
    Stats,
    Video,
    VideoPage,
)
from xclip_search.client_errors import UnexpectedAnswerError

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
Filter = Mapping[str, Any]
OnProgress = Callable[[int, int], None]
"""Told how many bytes of how many have gone."""


class SearchOptions(TypedDict, total=False):
    """What a search may say beside its text; see docs/http-api.md."""

    limit: int
    offset: int
    candidates: int
    mode: Mode
    group_by: Literal["video", "segment"]
    min_score: float | None
    min_percentile: float | None
    explain: bool
    num_moments: int
    filter: Filter | None


class Sink(Protocol):
    """Takes the body of an answer as it arrives, and may ask for a part of it."""

    def headers(self) -> dict[str, str]:
        """Of the request; asked anew for each attempt."""

    def begin(self, response: httpx.Response) -> None:
        """The answer's head is there, of status 200 or 206."""

    def write(self, chunk: bytes) -> None:
        """The next bytes."""


@dataclass(frozen=True)
class Form:
    """A file to upload, with its text fields. Opened anew for each attempt."""

    path: Path
    fields: Mapping[str, str]
    on_progress: OnProgress | None = None


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request that may be sent more than once without harm.

    read: makes the result of an answer below 400. gone_is_done: a 404 to a later attempt means that an
    earlier one, whose answer was lost, did it.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    form: Form | None = None
    sink: Sink | None = None
    gone_is_done: bool = False

    @contextlib.contextmanager
    def to_request(self, http: httpx.Client | httpx.AsyncClient) -> Iterator[httpx.Request]:
        """The request, whose file, if any, is open for so long."""
        headers = {**self.headers, **(self.sink.headers() if self.sink else {})}
        params = {name: value for name, value in self.params.items() if value is not None}
        arguments: dict[str, Any] = {"params": params, "headers": headers}
        if self.json is not None:
            arguments["json"] = self.json
        if self.form is None:
            yield http.build_request(self.method, self.path, **arguments)
            return
        with self.form.path.open("rb") as file:
            counted = cast("BinaryIO", _CountedFile(file, self.form.on_progress))
            files = {"file": (self.form.path.name, counted, "application/octet-stream")}
            yield http.build_request(self.method, self.path, data=self.form.fields, files=files, **arguments)


class _CountedFile(io.RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, file: io.BufferedReader, on_progress: OnProgress | None) -> None:
        self._file = file
        self._on_progress = on_progress
        self._size_bytes = os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        if self._on_progress is not None:
            self._on_progress(self._file.tell(), self._size_bytes)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def search(query: str, options: SearchOptions) -> Call[SearchAnswer]:
    """POST /search for one text."""
    return Call("POST", "search", _reader(SearchAnswer), json={"query": query, **options})


def search_many(queries: Sequence[str], options: SearchOptions) -> Call[ManySearchAnswers]:
    """POST /search for several texts."""
    return Call("POST", "search", _reader(ManySearchAnswers), json={"queries": list(queries), **options})


def similar(video_id: str, limit: int, offset: int, filter: Filter | None) -> Call[SimilarVideos]:
    """GET /videos/{id}/similar."""
    params = {"limit": limit, "offset": offset or None, "filter": _as_text(filter)}
    return Call("GET", f"{_video(video_id)}/similar", _reader(SimilarVideos), params=params)


def rank_texts(video_id: str, texts: Sequence[str]) -> Call[RankedTexts]:
    """POST /videos/{id}/texts."""
    return Call("POST", f"{_video(video_id)}/texts", _reader(RankedTexts), json={"texts": list(texts)})


def add_video(
    path: str | os.PathLike[str],
    title: str | None,
    metadata: Mapping[str, Any] | None,
    wait: bool,
    on_progress: OnProgress | None,
) -> Call[AddedVideo]:
    """POST /videos with a file."""
    fields = {}
    if title is not None:
        fields["title"] = title
    if metadata:
        fields["metadata"] = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    return Call(
        "POST",
        "videos",
        _reader(AddedVideo),
        params={"wait": "true" if wait else None},
        form=Form(Path(path), fields, on_progress),
    )


def add_uri(
    uri: str,
    title: str | None,
    metadata: Mapping[str, Any] | None,
    id: str | None,
    wait: bool,
) -> Call[AddedVideo]:
    """POST /videos with a uri."""
    values = {"uri": uri, "title": title, "metadata": dict(metadata or {}), "id": id}
    return Call(
        "POST",
        "videos",
        _reader(AddedVideo),
        params={"wait": "true" if wait else None},
        json={name: value for name, value in values.items() if value is not None},
    )


def get_video(video_id: str) -> Call[Video]:
    """GET /videos/{id}."""
    return Call("GET", _video(video_id), _reader(Video))


def list_videos(limit: int, after: int | None, filter: Filter | None) -> Call[VideoPage]:
    """GET /videos."""
    params = {"limit": limit, "after": after, "filter": _as_text(filter)}
    return Call("GET", "videos", _reader(VideoPage), params=params)


def update_video(video_id: str, changes: Mapping[str, Any]) -> Call[Video]:
    """PATCH /videos/{id}, RFC 7396."""
    return Call(
        "PATCH",
        _video(video_id),
        _reader(Video),
        json=dict(changes),
        headers={"Content-Type": "application/merge-patch+json"},
    )


def delete_video(video_id: str) -> Call[None]:
    """DELETE /videos/{id}."""
    return Call("DELETE", _video(video_id), lambda response: None, gone_is_done=True)


def get_job(job_id: str) -> Call[Job]:
    """GET /jobs/{id}."""
    return Call("GET", f"jobs/{_segment(job_id)}", _reader(Job))


def cancel_job(job_id: str) -> Call[Job]:
    """DELETE /jobs/{id}."""
    return Call("DELETE", f"jobs/{_segment(job_id)}", _reader(Job))


def list_jobs(limit: int, after: int | None, state: JobState | None) -> Call[JobPage]:
    """GET /jobs."""
    return Call("GET", "jobs", _reader(JobPage), params={"limit": limit, "after": after, "state": state})


def media(video_id: str, sink: Sink) -> Call[None]:
    """GET /videos/{id}/media into a sink."""
    return Call("GET", f"{_video(video_id)}/media", lambda response: None, sink=sink)


def thumbnail(video_id: str, time_seconds: float, width: int) -> Call[bytes]:
    """GET /videos/{id}/thumbnail: a JPEG."""
    params = {"time_seconds": time_seconds, "width": width}
    return Call("GET", f"{_video(video_id)}/thumbnail", lambda response: response.content, params=params)


def preview(video_id: str, time_seconds: float) -> Call[bytes]:
    """GET /videos/{id}/preview: a short clip that browsers play."""
    params = {"time_seconds": time_seconds}
    return Call("GET", f"{_video(video_id)}/preview", lambda response: response.content, params=params)


def access() -> Call[Access]:
    """GET /session."""
    return Call("GET", "session", _reader(Access))


def stats() -> Call[Stats]:
    """GET /stats."""
    return Call("GET", "stats", _reader(Stats))


def metrics() -> Call[str]:
    """GET /metrics, in the format of Prometheus."""
    return Call("GET", "metrics", lambda response: response.text)


def health() -> Call[Health]:
    """GET /healthz."""
    return Call("GET", "healthz", _reader(Health))


def readiness() -> Call[Health]:
    """GET /readyz."""
    return Call("GET", "readyz", _reader(Health))


def _reader(model: type[Model]) -> Callable[[httpx.Response], Model]:
    def read(response: httpx.Response) -> Model:
        try:
            return model.model_validate_json(response.content)
        except ValidationError as error:
            raise UnexpectedAnswerError(
                f"the answer of {response.request.method} {response.request.url.path} is not what this "
                f"client knows ({error.error_count()} things differ); is the server of another version?"
            ) from error

    return read


def _video(video_id: str) -> str:
    return f"videos/{_segment(video_id)}"


def _segment(text: str) -> str:
    """One segment of a path. An id that is a whole path, or none, is nobody's."""
    if text in ("", ".", ".."):
        raise ValueError(f"{text!r} is no id")
    return quote(text, safe="")


def _as_text(filter: Filter | None) -> str | None:
    return None if filter is None else json.dumps(filter, ensure_ascii=False)
