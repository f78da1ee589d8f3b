"""JSON bodies: read with a size limit, parsed and checked in one strict step.

FastAPI's own parsing accepts NaN and lone surrogates and has no size limit everywhere, so the endpoints read
their body here and only describe it to OpenAPI.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from service.errors import (
    BodyTooLargeError,
    InvalidRequestError,
    MalformedBodyError,
    UnsupportedContentTypeError,
    validation_problem,
)

MAX_MISTAKES = 1000
"""Of more nobody wants to be told, and listing hundreds of thousands would hold up all other requests."""

Model = TypeVar("Model", bound=BaseModel)


async def read_json(
    request: Request, model: type[Model], limit_bytes: int, *, other_types: Sequence[str] = ()
) -> Model:
    """The body of `request` as a `model`.

    other_types: media types that are taken beside application/json.
    Raises UnsupportedContentTypeError, BodyTooLargeError above `limit_bytes`, MalformedBodyError for what is
    not JSON in UTF-8, and InvalidRequestError for what is not a `model`.
    """
    if media_type(request) not in ("application/json", *other_types):
        raise UnsupportedContentTypeError()
    body = await read_bytes(request, limit_bytes)
    return parse_json(body, model)


def parse_json(body: bytes | str, model: type[Model]) -> Model:
    """`body` as a `model`, strictly. Raises MalformedBodyError or InvalidRequestError."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.error_count() > MAX_MISTAKES:
            raise InvalidRequestError(
                f"The body has more than {MAX_MISTAKES} mistakes: GET /openapi.json says what belongs in it."
            ) from None
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise validation_problem(problems, list(model.model_fields)) from None


async def read_bytes(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises BodyTooLargeError as soon as it is known to exceed `limit_bytes`."""
    check_content_length(request, limit_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise BodyTooLargeError(f"The body is larger than {limit_bytes} bytes.")
    return bytes(body)


def check_content_length(request: Request, limit_bytes: int) -> None:
    """Raise BodyTooLargeError where the header announces more than `limit_bytes`, before anything is read."""
    announced = request.headers.get("content-length", "0")
    if not announced.isascii() or not announced.isdigit():
        raise MalformedBodyError("The Content-Length header is not a number.")
    if len(announced) > 18 or int(announced) > limit_bytes:
        raise BodyTooLargeError(f"The body is larger than {limit_bytes} bytes.")


def media_type(request: Request) -> str:
    """The Content-Type without its parameters, in small letters; empty where there is none."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def describe_body(
    model: type[BaseModel], form: dict[str, Any] | None = None, *, other_types: Sequence[str] = ()
) -> dict[str, Any]:
    """OpenAPI's `requestBody` for an endpoint that reads its body itself: pass it as `openapi_extra`.

    other_types: as in `read_json`. form: schema of a multipart form that is taken too.
    """
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {name: {"schema": dict(schema)} for name in ("application/json", *other_types)}
    if form is not None:
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": True, "content": content}}
