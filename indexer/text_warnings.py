"""What a person should know about texts that the model does not read as they were meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from indexer.abandonment import stop_if_abandoned

if TYPE_CHECKING:
    from model.xclip import XClip


def text_warnings(model: XClip, text: str) -> list[str]:
    """Sentences about one query."""
    warnings = _about_unknown_words(model, [text])
    num_tokens, num_read = model.tokenizer.num_tokens(text), model.num_words - 2
    if num_tokens > num_read:
        warnings.append(
            f"the query is too long: the model reads the first {num_read} of its {num_tokens} tokens"
        )
    return warnings


def texts_warnings(model: XClip, texts: Sequence[str]) -> list[str]:
    """Sentences about many texts together."""
    warnings = _about_unknown_words(model, texts)
    num_read = model.num_words - 2
    num_cut = sum(model.tokenizer.num_tokens(text) > num_read for text in texts)
    if num_cut:
        warnings.append(f"{num_cut} of the texts are too long: the model reads their first {num_read} tokens")
    return warnings


def _about_unknown_words(model: XClip, texts: Sequence[str]) -> list[str]:
    unknown: dict[str, None] = {}
    for text in texts:
        stop_if_abandoned()
        unknown |= dict.fromkeys(model.unknown_words(text))
    return [f"the model does not know these words: {', '.join(unknown)}"] if unknown else []
