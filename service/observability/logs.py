"""Log lines: one JSON object each, or text for a terminal; server and worker alike.

What a record was given as `extra` becomes members of the object. Nothing of a query, a key or a cookie is
ever logged, and addresses of endpoints as templates only: `/videos/{video_id}`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
import traceback
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request under way, in its threads too; on every line that is logged meanwhile."""

TRACEBACK_SECONDS = 60.0
"""Between two tracebacks of the same class that end at the same line."""

MAX_KINDS = 1_000

_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_CHATTY = ("httpx", "httpcore", "faiss.loader", "asyncio", "opentelemetry", "urllib3")


def start_logging(log_format: LogFormat, level: LogLevel, stream: TextIO | None = None) -> None:
    """Log to `stream`, by default standard error, in place of whatever was set up before."""
    stream = stream or sys.stderr
    as_text = log_format == "text" or (log_format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    handler.addFilter(RepeatedTracebacks())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Our own lines say of every request more than uvicorn's; its other lines are ours.
    logging.getLogger("uvicorn.access").disabled = True


class RepeatedTracebacks(logging.Filter):
    """Leaves the traceback out where the same error was logged with one lately.

    What fails once may fail with every request: without memory, open files or a disk. Each is still a line.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Always true: no line is lost."""
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            return True
        last = traceback.extract_tb(error.__traceback__, -1)
        kind = (type(error).__qualname__, f"{last[0].filename}:{last[0].lineno}" if last else "")
        now = time.monotonic()
        if now - self._shown.get(kind, -math.inf) >= TRACEBACK_SECONDS:
            if len(self._shown) >= MAX_KINDS:
                self._shown.clear()
            self._shown[kind] = now
        else:
            record.msg, record.args = f"{record.getMessage()} ({kind[0]} again: {error})", ()
            record.exc_info = record.exc_text = None
        return True


def choose_request_id(offered: str | None) -> str:
    """What a client or proxy offers, if it may stand in a log and a header, else a new one."""
    if offered is not None and _SANE_REQUEST_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex


class JsonFormatter(logging.Formatter):
    """time (UTC), level, logger, message, request_id, whatever else came as `extra`, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line: a newline inside a value is written as JSON does."""
        members: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := REQUEST_ID.get()) is not None:
            members["request_id"] = request_id
        members.update(_extra(record))
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, logger, message; then what came as `extra`, as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line without a traceback."""
        members = _extra(record)
        if (request_id := REQUEST_ID.get()) is not None:
            members["request_id"] = request_id
        return " ".join(
            [super().formatMessage(record), *(f"{key}={value}" for key, value in members.items())]
        )


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    facts = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    # Ray gives every record of its process a time of its own, under such a name.
    return {name: value for name, value in facts.items() if not name.startswith("_")}
