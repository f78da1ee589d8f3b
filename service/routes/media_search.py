"""POST /search/media: searches by a picture or a clip that is not in the index."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.auth.access import READ
from service.errors import (
    FilterTooCostlyError,
    MediaRejectedError,
    OverloadedError,
    StorageFullError,
    UnsupportedContentTypeError,
)
from service.http.middleware import WITHOUT_DEADLINE
from service.http.openapi import problems
from service.ingest.upload import FORM, Form, media_type_of, receive_form
from service.routes.search import Pieces, write_results
from service.schemas.search import MediaSearchAnswerBody, SimilarParameters
from service.state import Service

router = APIRouter(tags=["search"], dependencies=[READ, WITHOUT_DEADLINE])

FIELDS = ("file", *SimilarParameters.model_fields)


def _form_schema() -> dict[str, Any]:
    properties = SimilarParameters.model_json_schema()["properties"]
    file = {
        "type": "string",
        "format": "binary",
        "minLength": 1,
        "description": "A picture (JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF), or a video of any kind that can be"
        " indexed.",
    }
    return {
        "type": "object",
        "required": ["file"],
        "additionalProperties": False,
        "properties": {"file": file, **properties},
    }


@router.post(
    "/search/media",
    response_model=MediaSearchAnswerBody,
    responses=problems(FilterTooCostlyError, MediaRejectedError, OverloadedError, StorageFullError),
    openapi_extra={"requestBody": {"required": True, "content": {FORM: {"schema": _form_schema()}}}},
)
async def search_media(request: Request, service: Service) -> Response:
    """Find videos that look like a picture or a clip. The file is neither added to the index nor kept."""
    if media_type_of(request) != FORM:
        raise UnsupportedContentTypeError(f"Send the file as a form with the header Content-Type: {FORM}.")
    with TemporaryDirectory(prefix="xclip-query-") as folder:
        path = Path(folder, "file")
        form = Form(service.settings.query_media_limit_bytes, FIELDS, is_durable=False)
        parameters = await receive_form(
            request, path, form, service.ingest_limiter, lambda form: form.fields(SimilarParameters)
        )
        media = await service.media_reader.read(path, service.searcher)
    find = partial(service.searcher.search_media, media, **dict(parameters))
    answer = await service.search_limiter.run(find)
    pieces = Pieces()
    body = MediaSearchAnswerBody(num_videos=answer.num_videos, warnings=list(answer.warnings), results=[])
    root_path = request.scope.get("root_path", "")
    await to_thread.run_sync(write_results, pieces, body, answer.results, service, root_path)
    return pieces.to_response()
