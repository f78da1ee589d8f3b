"""GET /videos/{id}/transcripts; GET, PUT and DELETE /videos/{id}/transcripts/{track}."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from anyio import to_thread
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from indexer.errors import InvalidRecordError, TranscriptError
from indexer.ingest.transcript_files import parse_transcript
from indexer.store.transcripts import (
    MAX_TRACK_LENGTH,
    MAX_TRANSCRIPT_BYTES,
    TRACK_PATTERN,
    Line,
    Transcript,
)
from service.auth.access import READ, WRITE
from service.errors import (
    OverloadedError,
    ReadOnlyIndexError,
    StorageFullError,
    TranscriptNotFoundError,
    TranscriptRejectedError,
    UnsupportedContentTypeError,
    VideoNotFoundError,
)
from service.http.openapi import problems
from service.ingest.upload import media_type_of
from service.schemas.fields import transcript_url
from service.schemas.videos import TranscriptAnswer, TranscriptList
from service.state import ReadyService, Service

router = APIRouter(prefix="/videos/{video_id}/transcripts", tags=["videos"], dependencies=[READ])

Track = Annotated[
    str,
    Path(
        pattern=f"^{TRACK_PATTERN}$",
        max_length=MAX_TRACK_LENGTH,
        description="A language tag or another short name: `en`, `pt-BR`, `de.forced`, `und`.",
    ),
]

WEBVTT: Final = "text/vtt"
DOCUMENTED_TYPES: Final = ("text/plain", "application/octet-stream")
CONTENT_TYPES: Final = (*DOCUMENTED_TYPES, WEBVTT, "text/srt", "application/x-subrip")

_BODY: dict[str, Any] = {
    "required": True,
    "description": f"A file in SubRip or WebVTT, in any common encoding, at most {MAX_TRANSCRIPT_BYTES >> 20}"
    f" MiB. Its type may also be {', '.join(CONTENT_TYPES[2:])}.",
    "content": {kind: {"schema": {"type": "string", "minLength": 1}} for kind in DOCUMENTED_TYPES},
}


@router.get("", responses=problems(VideoNotFoundError))
async def list_transcripts(request: Request, video_id: str, service: Service) -> TranscriptList:
    """The transcripts of a video: which tracks there are, and where they came from."""
    transcripts = await to_thread.run_sync(_read, service, video_id)
    root_path = request.scope.get("root_path", "")
    return TranscriptList(transcripts=[_to_answer(video_id, one, root_path) for one in transcripts])


@router.get(
    "/{track}",
    response_class=Response,
    responses={
        **problems(VideoNotFoundError, TranscriptNotFoundError),
        200: {"description": "WebVTT", "content": {WEBVTT: {"schema": {"type": "string"}}}},
    },
)
async def get_transcript(video_id: str, track: Track, service: Service) -> Response:
    """One transcript, as WebVTT, which players show as subtitles."""
    transcripts = await to_thread.run_sync(_read, service, video_id)
    found = next((one for one in transcripts if one.track == track), None)
    if found is None:
        raise TranscriptNotFoundError()
    return Response(await to_thread.run_sync(_to_webvtt, found), media_type=WEBVTT)


@router.put(
    "/{track}",
    dependencies=[WRITE],
    responses=problems(
        VideoNotFoundError, TranscriptRejectedError, OverloadedError, ReadOnlyIndexError, StorageFullError
    ),
    openapi_extra={"requestBody": _BODY},
)
async def put_transcript(request: Request, video_id: str, track: Track, service: Service) -> TranscriptAnswer:
    """Store a transcript instead of the one of this track. It stays, whatever files lie beside the video."""
    if media_type_of(request) not in CONTENT_TYPES:
        raise UnsupportedContentTypeError(
            f"Send the file itself, with one of the types {', '.join(CONTENT_TYPES)}."
        )
    transcript = await to_thread.run_sync(_store, service, video_id, track, await request.body())
    return _to_answer(video_id, transcript, request.scope.get("root_path", ""))


@router.delete(
    "/{track}",
    status_code=204,
    dependencies=[WRITE],
    responses=problems(
        VideoNotFoundError, TranscriptNotFoundError, OverloadedError, ReadOnlyIndexError, StorageFullError
    ),
)
async def delete_transcript(video_id: str, track: Track, service: Service) -> None:
    """Remove a transcript. One that is of a file beside the video comes back with the next `index`."""
    await to_thread.run_sync(partial(service.catalog.transcripts.delete, video_id, track))


def _read(service: ReadyService, video_id: str) -> list[Transcript]:
    record = service.catalog.get_video(video_id)
    return service.catalog.transcripts.of_videos([record.id]).get(record.id, [])


def _store(service: ReadyService, video_id: str, track: str, data: bytes) -> Transcript:
    service.catalog.get_video(video_id)  # First: of a video that is not there, the file does not matter.
    try:
        transcript = parse_transcript(track, data)
        service.catalog.transcripts.put(video_id, transcript)
    except (TranscriptError, InvalidRecordError) as error:
        text = str(error)
        raise TranscriptRejectedError(f"{text[0].upper()}{text[1:]}.") from None
    return transcript


def _to_answer(video_id: str, transcript: Transcript, root_path: str) -> TranscriptAnswer:
    return TranscriptAnswer(
        track=transcript.track,
        num_lines=len(transcript.lines),
        end_seconds=max(line.end_seconds for line in transcript.lines),
        from_file=transcript.file is not None,
        url=root_path + transcript_url(video_id, transcript.track),
    )


def _to_webvtt(transcript: Transcript) -> str:
    cues = (
        f"{_clock(line.start_seconds)} --> {_clock(line.end_seconds)}\n{_escaped(line)}\n"
        for line in transcript.lines
    )
    return "\n".join(("WEBVTT\n", *cues))


def _escaped(line: Line) -> str:
    """The text as WebVTT has it, section 4.2.2; an arrow would be taken for times."""
    return line.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    whole, rest = divmod(milliseconds, 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}.{rest:03}"
