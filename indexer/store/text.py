"""Text in the form in which it is stored and compared."""

from __future__ import annotations

import unicodedata


def nfc(text: str) -> str:
    """`text` in the form in which it is stored and compared (Unicode normalization form C): a name from a
    Mac, whose letters and accents are apart, is the one that a person types."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
