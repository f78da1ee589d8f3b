"""POST and GET /session."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.schemas.strictness import Answer, Request

MAX_KEY_CHARACTERS = 256


class SessionRequest(Request):
    """Log a browser in."""

    key: Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARACTERS, description="An API key.")]


class SessionAnswer(Answer):
    """What whoever asks may do."""

    scopes: list[Literal["read", "write"]]
    keys_required: bool
