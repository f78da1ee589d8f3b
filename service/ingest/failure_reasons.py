"""Why jobs fail, in few classes: a metric must not have a label for every sentence."""

from __future__ import annotations

from typing import Literal, get_args

from indexer.store.sqlite.jobs import GAVE_UP_REASON, FailedJobs
from service.ingest.outcomes import NO_ROOM_REASON
from service.ingest.worker import ID_TAKEN_REASON, INTERNAL_REASON

FailureClass = Literal["cancelled", "fetch", "decoder", "media", "gave_up", "no_room", "id_taken", "internal"]
FAILURE_CLASSES: tuple[FailureClass, ...] = get_args(FailureClass)

_WHOLE: dict[str, FailureClass] = {
    "cancelled": "cancelled",
    GAVE_UP_REASON: "gave_up",
    NO_ROOM_REASON: "no_room",
    ID_TAKEN_REASON: "id_taken",
    INTERNAL_REASON: "internal",
}
_BEGINNINGS: dict[str, FailureClass] = {"the decoder ": "decoder", "decoding ": "decoder"}
"""Of DecoderDiedError and DecodeTimeoutError."""


def failure_class(failed: FailedJobs) -> FailureClass:
    """fetch: the file could not be brought here. decoder: it crashed, or took too long. media: the file is no
    video that we read, which is the sender's to mend. gave_up: workers died of it. The rest are ours."""
    if failed.reason in _WHOLE:
        return _WHOLE[failed.reason]
    if failed.is_unfetched:
        return "fetch"
    for beginning, name in _BEGINNINGS.items():
        if failed.reason.startswith(beginning):
            return name
    return "media"
