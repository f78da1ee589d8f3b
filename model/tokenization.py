"""CLIP's byte-pair tokens, cut and padded by the official rule, with an optional smaller vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import regex
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from model.errors import TokenError

START, END = "<|startoftext|>", "<|endoftext|>"
FULL_VOCABULARY_SIZE = 49408
UNKNOWN = -1
"""No token of CLIP's: the key under which a smaller vocabulary keeps the row of all others."""


class _ClipTokenizer(SimpleTokenizer):  # type: ignore[misc]  # open_clip is untyped
    """open_clip's byte-pair encoder under OpenAI's names for the two special tokens.

    The official code turns the literal texts `<|startoftext|>` and `<|endoftext|>` into the special ids;
    open_clip spells them differently and would split them into pieces.
    """

    def __init__(self) -> None:
        super().__init__()
        for name, token_id in zip((START, END), self.all_special_ids, strict=True):
            self.encoder[name] = token_id
            self.cache[name] = name  # the merges are looked up here first, so the name is never cut up
        self.pat = regex.compile(
            regex.escape(START)
            + "|"
            + regex.escape(END)
            + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE,
        )


@lru_cache(maxsize=1)
def _clip_tokenizer() -> _ClipTokenizer:
    return _ClipTokenizer()


class Tokenizer:
    """Text to token ids for one model.

    With a vocabulary of n tokens, row r of the embedding table is: 0 padding, 1..n the vocabulary's tokens,
    n+1 unknown, n+2 start, n+3 end.

    Args:
        num_words: Length of every row, at least 3.
        vocabulary: CLIP token ids that the model knows, ascending, or None for all 49,408.

    >>> Tokenizer(6)(["a dog"])
    tensor([[49406,   320,  1929, 49407,     0,     0]])
    """

    def __init__(self, num_words: int, vocabulary: Sequence[int] | None = None) -> None:
        self.num_words = num_words
        self._clip = _clip_tokenizer()
        self._rows: dict[int, int] | None = None
        self.unknown_id: int | None = None
        start, end = self._clip.all_special_ids
        if vocabulary is None:
            self.size, self.start_id, self.end_id = FULL_VOCABULARY_SIZE, start, end
        else:
            # The end token keeps the highest id: the network finds the end of a text by its maximum.
            num_tokens = len(vocabulary)
            self.size = num_tokens + 4
            self.unknown_id = num_tokens + 1
            self.start_id, self.end_id = num_tokens + 2, num_tokens + 3
            self._rows = {token_id: row for row, token_id in enumerate(vocabulary, start=1)}
            self._rows |= {start: self.start_id, end: self.end_id, UNKNOWN: self.unknown_id}

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` without start, end or padding.

        Raises:
            TokenError: The text is not valid Unicode (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise TokenError("the text holds a lone surrogate; send valid Unicode") from None
        token_ids: list[int] = self._clip.encode(text)
        if self._rows is None:
            return token_ids
        return [self._rows.get(token_id, self._rows[UNKNOWN]) for token_id in token_ids]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows of [start, tokens, end, 0 ...], int64 [T, W]; at most W - 2 tokens are kept."""
        rows = torch.zeros(len(texts), self.num_words, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            token_ids = [self.start_id, *self.encode(text)[: self.num_words - 2], self.end_id]
            row[: len(token_ids)] = torch.tensor(token_ids)
        return rows

    def num_tokens(self, text: str) -> int:
        """Tokens that `text` has before the cut to `num_words - 2`."""
        return len(self.encode(text))

    def pieces(self, text: str) -> list[str]:
        """The text of each position that `__call__` fills: start, tokens after the cut, end."""
        decode = self._clip.decoder
        kept = self._clip.encode(text)[: self.num_words - 2]
        return [START, *(decode[token_id].removesuffix("</w>") for token_id in kept), END]

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that this vocabulary lacks, in order, each once; empty for the full vocabulary."""
        if self._rows is None:
            return []
        words = dict.fromkeys(regex.findall(r"[\p{L}\p{N}']+", text.lower()))
        return [word for word in words if self.unknown_id in self.encode(word)]


def vocabulary_of(words: Sequence[str]) -> tuple[int, ...]:
    """CLIP token ids, ascending, that the given words and phrases are made of."""
    tokenizer = _clip_tokenizer()
    special = set(tokenizer.all_special_ids)
    return tuple(sorted({token_id for word in words for token_id in tokenizer.encode(word)} - special))
