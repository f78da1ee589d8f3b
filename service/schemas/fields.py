"""What all bodies, parameters and answers have in common, and the fields that have rules of their own.

The rules of ids and filters are those of `indexer.store.records` and `indexer.store.filters`. A filter of too
many conditions or levels is refused too, though JSON Schema cannot express it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from indexer.errors import InvalidQueryError, InvalidRecordError
from indexer.store import filters
from indexer.store.filters import MAX_TEXT_LENGTH, MAX_VALUES, MISSING
from indexer.store.records import ID_PATTERN, MAX_ID_LENGTH, check_time, check_video_id
from indexer.store.text import instant

MAX_FIELDS: Final = 100
MAX_ITEMS: Final = 1_000
"""Of a body, and of a list in it. No endpoint takes more."""


class Request(BaseModel):
    """A JSON body: unknown fields, other types, NaN, Infinity and lone surrogates are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_json(cls, body: Any) -> Any:
        """Refuse what `json.loads` takes though it is no JSON, or cannot be stored as UTF-8."""
        if not isinstance(body, dict):
            return body
        if len(body) > MAX_FIELDS:
            # An error for each unknown field of a large body would take seconds to list.
            raise ValueError(f"The body has more than {MAX_FIELDS} fields.")
        if any(isinstance(value, list) and len(value) > MAX_ITEMS for value in body.values()):
            raise ValueError(f"The body has a list of more than {MAX_ITEMS} items.")
        try:
            json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise ValueError(
                "The body must be JSON without NaN, Infinity and lone surrogates, and not nested deeply."
            ) from None
        return body


class Parameters(BaseModel):
    """Query parameters: unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """A JSON answer."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


RECORDED_AT = Field(
    description="When it was recorded, as the client or the container says, or else when the file was last"
    " modified; null where that is not known."
)
MEDIA_START = Field(
    description="Add it to a time of the video for a player of `media`: where the first picture is on the"
    " file's own clock. Previews begin at 0."
)

MAX_QUERY_CHARACTERS = 2000
MAX_FILTER_CHARACTERS = 8000
MAX_TITLE_CHARACTERS = 500
MAX_URI_CHARACTERS = 4096
MAX_REQUEST_METADATA_BYTES = 16 * 1024
MAX_METADATA_DEPTH = 8
"""Of metadata in a request; the store takes more (`indexer.store.records`)."""

VISIBLE = r"[^\s\x1c-\x1f\x85]"
"""As a pattern of JSON Schema: a character that `str.strip` leaves."""

TITLE_PATTERN = r"^[^\x00]*[^\s\x00\x1c-\x1f\x85][^\x00]*$"

ID_SCHEMA: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_LENGTH,
    "pattern": f"^{ID_PATTERN}$",
    "not": {"enum": [".", ".."]},
}

METADATA_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": True,
    "description": f"At most {MAX_REQUEST_METADATA_BYTES} bytes of JSON and {MAX_METADATA_DEPTH} levels.",
}


def check_query(text: str) -> str:
    """`text`, unless there is nothing in it to search for. Raises ValueError."""
    if not text.strip():
        raise ValueError("The query is blank: describe in a few words what the video shows.")
    return text


def check_title(text: str) -> str:
    """`text`, unless it is blank or holds a NUL. Raises ValueError."""
    if not text.strip() or "\0" in text:
        raise ValueError("The title must have a visible character and no NUL.")
    return text


def check_id(video_id: str) -> str:
    """`video_id`, unless it cannot be one. Raises ValueError."""
    try:
        return check_video_id(video_id)
    except InvalidRecordError as error:
        text = str(error)
        raise ValueError(f"{text[0].upper()}{text[1:]}.") from None


def check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """`metadata`, unless it is too large, too deep, or holds U+0000 or a number that JSON cannot. Raises
    ValueError.

    At most MAX_REQUEST_METADATA_BYTES as compact UTF-8 JSON and MAX_METADATA_DEPTH objects and arrays deep.
    """
    if not _is_plain(metadata, MAX_METADATA_DEPTH):
        raise ValueError(
            f"The metadata must be JSON without NaN, Infinity and U+0000, at most {MAX_METADATA_DEPTH} levels"
            " deep."
        )
    text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode("utf-8", "surrogatepass")) > MAX_REQUEST_METADATA_BYTES:
        raise ValueError(f"The metadata is larger than {MAX_REQUEST_METADATA_BYTES} bytes of JSON.")
    return metadata


def _is_plain(value: Any, levels_left: int) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return "\0" not in value
    if isinstance(value, Mapping):
        names = "".join(value)
        return levels_left > 0 and all(
            _is_plain(inner, levels_left - 1) for inner in (names, *value.values())
        )
    if isinstance(value, list):
        return levels_left > 0 and all(_is_plain(inner, levels_left - 1) for inner in value)
    return True


def as_whole_number(value: object) -> object:
    """10 for 10.0, which JSON Schema takes for the same integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WholeNumber = Annotated[int, BeforeValidator(as_whole_number)]


def check_moment(text: object) -> object:
    """`text` as a moment of time, unless it names none in the form of RFC 3339. Raises ValueError."""
    moment = instant(text) if isinstance(text, str) else None
    if moment is None:
        raise ValueError("The time must be a date, or a date and time as in 2026-01-31T18:00:00+01:00.")
    try:
        return check_time("recorded_at", moment.total_seconds())
    except InvalidRecordError as error:
        raise ValueError(f"{error}.") from None


RecordedAt = Annotated[
    float,
    BeforeValidator(check_moment),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]}
    ),
]
QueryText = Annotated[
    str,
    Field(max_length=MAX_QUERY_CHARACTERS, json_schema_extra={"pattern": VISIBLE}),
    AfterValidator(check_query),
]
VideoId = Annotated[str, AfterValidator(check_id), WithJsonSchema(ID_SCHEMA)]
Title = Annotated[
    str,
    Field(max_length=MAX_TITLE_CHARACTERS, json_schema_extra={"pattern": TITLE_PATTERN}),
    AfterValidator(check_title),
]
Metadata = Annotated[dict[str, Any], AfterValidator(check_metadata), WithJsonSchema(METADATA_SCHEMA)]


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


FILTER_REFERENCE = _reference("Filter")

_KEYS = r'^metadata(\.[^."\\\x00-\x1f]+)+$'

_TEXT: dict[str, Any] = {"type": "string", "maxLength": MAX_TEXT_LENGTH, "pattern": r"^[^\x00]*$"}
_SOME_TEXT: dict[str, Any] = {**_TEXT, "minLength": 1}
_NUMBER: dict[str, Any] = {"type": "number"}
_TIME: dict[str, Any] = {
    "anyOf": [_NUMBER, {"type": "string", "format": "date-time"}, {"type": "string", "format": "date"}]
}
_NULL: dict[str, Any] = {"type": "null"}
_SCALAR: dict[str, Any] = {"anyOf": [_TEXT, _NUMBER, {"type": "boolean"}, _NULL]}


def _one(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: schema},
        "required": [name],
        "additionalProperties": False,
    }


def _range(bound: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict.fromkeys(("gt", "gte", "lt", "lte"), bound),
        "minProperties": 1,
        "additionalProperties": False,
    }


def _condition(
    value: dict[str, Any], listed: dict[str, Any], *bounds: dict[str, Any], operator: str | None = None
) -> dict[str, Any]:
    return {
        "anyOf": [
            value,
            _one("eq", value),
            _one("in", {"type": "array", "items": listed, "minItems": 1, "maxItems": MAX_VALUES}),
            _one("exists", {"type": "boolean"}),
            *map(_range, bounds),
            *([] if operator is None else [_one(operator, _SOME_TEXT)]),
        ]
    }


def _column(value: dict[str, Any], operator: str | None = None) -> dict[str, Any]:
    return _condition({"anyOf": [value, _NULL]}, value, value, operator=operator)


FILTER_SCHEMAS: dict[str, dict[str, Any]] = {
    "Filter": {
        "type": "object",
        "description": "Conditions on fields, all of which must hold; joined by and, or, not.",
        "minProperties": 1,
        "additionalProperties": False,
        "properties": {
            "id": _reference("TextCondition"),
            "title": _reference("TitleCondition"),
            "uri": _reference("UriCondition"),
            "content_sha256": _reference("TextCondition"),
            "duration_seconds": _reference("NumberCondition"),
            "added_at": _reference("TimeCondition"),
            "recorded_at": _reference("TimeCondition"),
            MISSING: {"anyOf": [{"type": "boolean"}, _one("eq", {"type": "boolean"})]},
            "and": {"type": "array", "items": FILTER_REFERENCE, "minItems": 1},
            "or": {"type": "array", "items": FILTER_REFERENCE, "minItems": 1},
            "not": FILTER_REFERENCE,
        },
        "patternProperties": {_KEYS: _reference("MetadataCondition")},
    },
    "TextCondition": _column(_TEXT),
    "TitleCondition": _column(_TEXT, "contains"),
    "UriCondition": _condition({"anyOf": [_TEXT, _NULL]}, _TEXT, operator="prefix"),
    "NumberCondition": _column(_NUMBER),
    "TimeCondition": _column(_TIME),
    "MetadataCondition": _condition(_SCALAR, _SCALAR, _NUMBER, _TEXT, operator="contains"),
}
"""By the name of the component of the OpenAPI document."""


def read_filter(value: object) -> filters.Filter:
    """The filter that a JSON object describes. Raises ValueError, which names the part that is wrong."""
    try:
        return filters.parse_filter(value)
    except InvalidQueryError as error:
        raise ValueError(f"{error}.") from None


def read_filter_text(text: object) -> filters.Filter:
    """The filter that a text describes in JSON. Raises ValueError."""
    if not isinstance(text, str) or len(text) > MAX_FILTER_CHARACTERS:
        raise ValueError(f"The filter must be JSON text of at most {MAX_FILTER_CHARACTERS} characters.")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("The filter is not JSON.") from None
    return read_filter(value)


# `Any`, because FastAPI would put the classes of the parsed tree into the OpenAPI document.
Filter = Annotated[Any, PlainValidator(read_filter), WithJsonSchema(FILTER_REFERENCE)]
FilterText = Annotated[
    Any,
    PlainValidator(read_filter_text),
    WithJsonSchema({"type": "string", "maxLength": MAX_FILTER_CHARACTERS}),
]


# URLs in answers, relative to the host


def video_url(video_id: str) -> str:
    """Of a video's record."""
    return f"/videos/{quote(video_id, safe='')}"


def transcript_url(video_id: str, track: str) -> str:
    """Of a transcript of a video."""
    return f"{video_url(video_id)}/transcripts/{track}"


def to_datetime(seconds: float | None) -> datetime | None:
    """Seconds since 1970 as a moment in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def media_url(video_id: str) -> str:
    """Of a video's file."""
    return f"{video_url(video_id)}/media"


def thumbnail_url(video_id: str, time_seconds: float) -> str:
    """Of the picture that a video shows at a moment."""
    return f"{video_url(video_id)}/thumbnail?time_seconds={time_seconds:.3f}"


def preview_url(video_id: str, time_seconds: float) -> str:
    """Of the short clip that every browser plays, from a moment on."""
    return f"{video_url(video_id)}/preview?time_seconds={time_seconds:.3f}"


def job_url(job_id: str) -> str:
    """Of a job."""
    return f"/jobs/{quote(job_id, safe='')}"
