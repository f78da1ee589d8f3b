"""Text in the forms in which it is stored and compared: letters and accents, capitals, dates, addresses."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import unquote_to_bytes

_DATE_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[Tt ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})?)?"
)
"""RFC 3339 section 5.6 `full-date` and `date-time`; seconds and zone may be missing."""

_OF_SECONDS: Final = slice(17, 19)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_WITHOUT_ZONE: Final = datetime(1970, 1, 1)
_NOTHING, _SECOND = timedelta(0), timedelta(seconds=1)


def nfc(text: str) -> str:
    """`text` in the form in which it is stored and compared (Unicode normalization form C): a name from a
    Mac, whose letters and accents are apart, is the one that a person types."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """`text` for a comparison that regards neither capitals nor the form of accents.

    Example:
        >>> folded("STRASSE") == folded("Straße"), folded("CAFE\u0301") == folded("café")
        (True, True)
    """
    return text.lower() if text.isascii() else nfc(nfc(text).casefold())


def instant(text: str) -> timedelta | None:
    """What a date or a date and time in the form of RFC 3339 names, as the time since 1970; None for other
    text.

    A date is its first moment, and what names no zone is in UTC. Digits beyond the microsecond are left out.

    Example:
        >>> instant("2024-05-01T02:00:00+02:00") == instant("2024-05-01"), instant("2024-05")
        (True, None)
    """
    if not _DATE_TIME.fullmatch(text):
        return None
    after = _NOTHING
    if text[_OF_SECONDS] == "60":  # A leap second.
        text, after = f"{text[:17]}59{text[19:]}", _SECOND
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:  # The 31st of June.
        return None
    # Differences are compared several times faster than moments of different zones.
    return moment - (_EPOCH if moment.tzinfo else _EPOCH_WITHOUT_ZONE) + after


def plain_uri(uri: str) -> str:
    """A uri as it is compared: percent-encoded bytes decoded, in NFC; an absolute path as the file:// address
    that it stands for. Bytes that are not UTF-8 stay apart from all text.

    Example:
        >>> plain_uri("file:///caf%65%CC%81/a%20b.mp4") == plain_uri("/caf\u00e9/a b.mp4")
        True
    """
    if uri.startswith("/"):
        return f"file://{nfc(uri)}"
    if uri.startswith("file://localhost/"):
        uri = f"file://{uri.removeprefix('file://localhost')}"
    if "%" not in uri:
        return nfc(uri)
    return nfc(unquote_to_bytes(uri).decode("utf-8", "backslashreplace"))


def is_below(uri: str, folder: str) -> bool:
    """Whether a uri is `folder` itself or lies below it.

    Args:
        uri: as it is stored.
        folder: from `plain_uri`; one that ends with a slash is not below itself.
    """
    plain = plain_uri(uri)
    return plain.startswith(folder) and (folder.endswith("/") or plain[len(folder) :][:1] in ("", "/"))


def holds_zero(value: Any) -> bool:
    """Whether a text anywhere in a JSON value holds U+0000, at which SQLite's functions end a text."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(holds_zero(inner) for pair in value.items() for inner in pair)
    return isinstance(value, list) and any(map(holds_zero, value))
