"""The Idempotency-Key header: a client that did not hear an answer may send its request again.

As draft-ietf-httpapi-idempotency-key-header says, with one freedom: the quotation marks may be left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from fastapi import Request

from service.errors import InvalidRequestError, MalformedBodyError

HEADER = "Idempotency-Key"
MAX_KEY_CHARACTERS = 255

_QUOTED = re.compile(r'"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_BARE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]*")

PATTERN = (
    rf'^([\x21\x23-\x5b\x5d-\x7e]{{1,{MAX_KEY_CHARACTERS}}}|"([\x21\x23-\x5b\x5d-\x7e]|\\["\\])'
    rf'{{1,{MAX_KEY_CHARACTERS}}}")$'
)
"""As a pattern of JSON Schema: what `parse_key` takes."""

PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "A name for this very request, for example a UUID: sent again, it is answered as before.",
    "schema": {"type": "string", "pattern": PATTERN},
}
"""OpenAPI's description of the header."""


def read_key(request: Request) -> str | None:
    """The key of a request, None where it has none. `"abc"` and `abc` are the same key.

    Raises MalformedBodyError (400) for anything but one string of 1 to 255 visible ASCII characters; a
    quotation mark or a backslash may be in a quoted string only, after a backslash.
    """
    values = request.headers.getlist(HEADER)
    if not values:
        return None
    if len(values) == 1:
        key = parse_key(values[0].strip(" \t"))
        if key is not None:
            return key
    raise MalformedBodyError(
        f"The {HEADER} header is not one string, quoted or bare, of 1 to {MAX_KEY_CHARACTERS} visible "
        "ASCII characters."
    )


def parse_key(value: str) -> str | None:
    """The key that a header's value holds, or None."""
    quoted = _QUOTED.fullmatch(value)
    if quoted:
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    elif _BARE.fullmatch(value):
        key = value
    else:
        return None
    return key if 1 <= len(key) <= MAX_KEY_CHARACTERS else None


def request_sha256(**parts: Any) -> str:
    """sha256 over what makes a request the one that it is; the order of keys in objects does not count."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def key_reused_problem() -> InvalidRequestError:
    """The answer to a key that was used for another request."""
    message = "This key was used for another request: the bytes, the title, the metadata, uri or id differ."
    return InvalidRequestError(f"{HEADER}: {message}", errors=[{"field": HEADER, "message": message}])
