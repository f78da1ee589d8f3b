"""Texts to token ids: CLIP's byte pairs by the official rule, and the tokenizers of other text towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import regex
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from torch import Tensor

from model.errors import TokenError

START, END = "<|startoftext|>", "<|endoftext|>"
FULL_VOCABULARY_SIZE = 49408
UNKNOWN = -1
"""No token of CLIP's: the key under which a smaller vocabulary keeps the row of all others."""


_clean_any = get_clean_fn("lower")


def _clean(text: str) -> str:
    """A text as CLIP reads it: encoding mended, HTML unescaped, in small letters, one blank between words.

    Nothing is to be mended or unescaped in printable ASCII without `&`.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.split()).lower()
    cleaned: str = _clean_any(text)
    return cleaned


class _ClipTokenizer(SimpleTokenizer):  # type: ignore[misc]  # open_clip is untyped
    """open_clip's byte-pair encoder under OpenAI's names for the two special tokens.

    The official code turns the literal texts `<|startoftext|>` and `<|endoftext|>` into the special ids;
    open_clip spells them differently and would split them into pieces.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clean_fn = _clean
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


class TextTokenizer(Protocol):
    """What a model needs of a tokenizer; a row of ids is the text from its first token to the padding."""

    @property
    def num_read(self) -> int:
        """How many tokens of a text are read, those that the tokenizer adds itself not counted."""

    @property
    def language(self) -> str | None:
        """The language that these tokens were made for; None for many, or where that is not known."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 [T, L]. Raises TokenError where a text is not valid Unicode."""

    def mask(self, input_ids: Tensor) -> Tensor:
        """Which positions hold the text and not padding, bool [T, L]."""

    def num_tokens(self, text: str) -> int:
        """Tokens that `text` has before it is cut to `num_read`."""

    def pieces(self, text: str) -> list[str]:
        """The text of each position that `__call__` fills."""

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the model has no embedding for, in order, each once."""

    def seems_foreign(self, text: str) -> bool:
        """Whether `text` is in a language other than the one that these tokens were made for, as far as can
        be told; False where they were made for many."""

    def save(self, directory: Path) -> None:
        """Write what `load_tokenizer` needs next to the config, if anything, into a new `directory`."""


def _require_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise TokenError("the text holds a lone surrogate; send valid Unicode") from None


def words_of(text: str) -> list[str]:
    """Its words in small letters, in order, as `unknown_words` names them."""
    words: list[str] = regex.findall(r"[\p{L}\p{N}']+", text.lower())
    return words


_LITTLE_WORDS = frozenset(
    """
    der die das dem den ein eine einen einem und im am auf mit für über zu le la les un une des du dans sur
    est et au aux el los las una en y con por al il lo gli di nel alla sulla della um uma os do da em na ao à
    een het de op van met zijn och ett på till av är
    """.split()  # noqa: SIM905
)
"""Articles, prepositions and the like of German, French, Spanish, Italian, Portuguese, Dutch and Swedish that
are no English words: CLIP has a token for each."""


@lru_cache(maxsize=4096)
def _clip_ids(text: str) -> tuple[int, ...]:
    """CLIP's token ids of a text, without start and end.

    A search asks for the same text several times, and for its words: what differs between queries are few of
    them.
    """
    return tuple(_clip_tokenizer().encode(text))


class Tokenizer:
    """CLIP's tokens.

    With a vocabulary of n tokens, row r of the embedding table is: 0 padding, 1..n the vocabulary's tokens,
    n+1 unknown, n+2 start, n+3 end.

    Args:
        num_words: Length of every row, at least 3.
        vocabulary: CLIP token ids that the model knows, ascending, or None for all 49,408.

    >>> Tokenizer(6)(["a dog"])
    tensor([[49406,   320,  1929, 49407,     0,     0]])
    """

    language: str | None = "English"

    def __init__(self, num_words: int, vocabulary: Sequence[int] | None = None) -> None:
        self.num_words = num_words
        self.num_read = num_words - 2
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
        _require_unicode(text)
        token_ids = _clip_ids(text)
        if self._rows is None:
            return list(token_ids)
        return [self._rows.get(token_id, self._rows[UNKNOWN]) for token_id in token_ids]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows of [start, tokens, end, 0 ...], int64 [T, W]; at most W - 2 tokens are kept."""
        rows = np.zeros((len(texts), self.num_words), np.int64)
        for row, text in zip(rows, texts, strict=True):
            token_ids = [self.start_id, *self.encode(text)[: self.num_read], self.end_id]
            row[: len(token_ids)] = token_ids
        return torch.from_numpy(rows)

    def mask(self, input_ids: Tensor) -> Tensor:
        """True from the start token to the first end token, which has the highest id: bool [T, W]."""
        end = input_ids.argmax(dim=1)  # [T], the first maximum
        return torch.arange(input_ids.shape[1], device=input_ids.device) <= end[:, None]

    def save(self, directory: Path) -> None:
        """Nothing: the byte pairs come with open_clip, the vocabulary stands in the config."""

    def num_tokens(self, text: str) -> int:
        """Tokens that `text` has before the cut to `num_read`."""
        return len(self.encode(text))

    def pieces(self, text: str) -> list[str]:
        """The text of each position that `__call__` fills: start, tokens after the cut, end."""
        decode = self._clip.decoder
        kept = _clip_ids(text)[: self.num_read]
        return [START, *(decode[token_id].removesuffix("</w>") for token_id in kept), END]

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that this vocabulary lacks, in order, each once; empty for the full vocabulary."""
        if self._rows is None:
            return []
        return [word for word in dict.fromkeys(words_of(text)) if self.unknown_id in self.encode(word)]

    def seems_foreign(self, text: str) -> bool:
        """Whether `text` is not English, as far as can be told (benchmarks/facts/relevance.py measures it).

        CLIP's tokens were learnt from English: its words are one token each, those of other languages are cut
        into several, apart from names and from little words that are common on the web. Where a model has a
        vocabulary of its own, its unknown words say more.
        """
        words = regex.findall(r"[\p{L}\p{M}']+", text.lower())
        if not words or self._rows is not None:
            return False
        if 2 * sum(regex.search(r"\p{Latin}", word) is None for word in words) > len(words):
            return True
        num_cut = sum(len(_clip_ids(word)) > 1 for word in words)
        num_little = sum(word in _LITTLE_WORDS for word in words)
        return num_little >= 2 or (num_cut >= 2 and 4 * num_cut >= len(words)) or bool(num_cut and num_little)


class HubTokenizer:
    """A tokenizer of transformers, called as open_clip calls it; loaded when it is first needed.

    Args:
        source: A repository on the Hub, or a directory that `save` wrote.
        num_tokens: L, length of every row.
        options: Of open_clip's `HFTokenizer`: how texts are cleaned, and more.
        explain: Makes an error of ours of what went wrong while it was loaded.
    """

    language: str | None = None

    def __init__(
        self,
        source: str | Path,
        num_tokens: int,
        options: Mapping[str, Any],
        explain: Callable[[Exception], Exception],
    ) -> None:
        self._source, self._length, self._options, self._explain = source, num_tokens, options, explain

    @cached_property
    def _wrapper(self) -> Any:
        try:
            return HFTokenizer(str(self._source), context_length=self._length, **self._options)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            raise self._explain(error) from None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids, int64 [T, L], cut and padded by the tokenizer itself."""
        for text in texts:
            _require_unicode(text)
        if not texts:
            return torch.zeros(0, self._length, dtype=torch.long)
        ids: Tensor = self._wrapper(list(texts))
        return ids

    @cached_property
    def num_read(self) -> int:
        """L without the tokens that the tokenizer adds."""
        return self._length - int(self._wrapper.tokenizer.num_special_tokens_to_add())

    def mask(self, input_ids: Tensor) -> Tensor:
        """True but for padding, bool [T, L]; SigLIP pads with its end token, which so counts as padding."""
        mask: Tensor = input_ids != self._wrapper.tokenizer.pad_token_id
        return mask

    def num_tokens(self, text: str) -> int:
        """Tokens that `text` has before the cut to `num_read`."""
        _require_unicode(text)
        cleaned = self._wrapper.clean_fn(text)
        return len(self._wrapper.tokenizer(cleaned, add_special_tokens=False)["input_ids"])

    def pieces(self, text: str) -> list[str]:
        """The text of each position before the padding; words begin without their mark of a space."""
        ids = self([text])
        kept = ids[0][self.mask(ids)[0]].tolist()
        return [
            piece.removeprefix("\u2581").removeprefix("\u0120")  # SentencePiece's space, GPT-2's space
            for piece in self._wrapper.tokenizer.convert_ids_to_tokens(kept)
        ]

    def unknown_words(self, text: str) -> list[str]:
        """Words of which a piece is the tokenizer's unknown token."""
        tokenizer = self._wrapper.tokenizer
        if tokenizer.unk_token_id is None:
            return []
        _require_unicode(text)
        words = dict.fromkeys(regex.findall(r"[\p{L}\p{N}\p{M}']+", text))
        return [
            word
            for word in words
            if tokenizer.unk_token_id
            in tokenizer(self._wrapper.clean_fn(word), add_special_tokens=False)["input_ids"]
        ]

    def seems_foreign(self, text: str) -> bool:
        """False: most of these were made for a hundred languages."""
        return False

    def save(self, directory: Path) -> None:
        """Write the tokenizer's own files, so that the saved model needs no network."""
        self._wrapper.save_pretrained(str(directory))


def vocabulary_of(words: Sequence[str]) -> tuple[int, ...]:
    """CLIP token ids, ascending, that the given words and phrases are made of."""
    tokenizer = _clip_tokenizer()
    special = set(tokenizer.all_special_ids)
    return tuple(sorted({token_id for word in words for token_id in tokenizer.encode(word)} - special))
