"""What all bodies, parameters and answers have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """A JSON body: unknown fields, other types, NaN and Infinity are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Parameters(BaseModel):
    """Query parameters: unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Answer(BaseModel):
    """A JSON answer."""

    model_config = ConfigDict(from_attributes=True)
