"""Text as the terms that it is found by, the same for what is stored and what is asked.

A word is a run of letters and digits, without capitals and accents. Scripts without spaces between words
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) are cut into overlapping pairs of characters, as Lucene's
CJKBigramFilter does, and the last character:

    "Größe_2019"  ->  grosse 2019
    "黑猫跑"       ->  黑猫 猫跑 跑

so that each character begins a term, and a query of any length finds it wherever it stands: one character as
the beginning of a term, more as pairs that follow one another. Which tokenizer finds what is measured by
`benchmarks/text_match.py`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import regex

MAX_QUERY_WORDS: Final = 32
"""Of a query, the first; a sentence has fewer."""

MIN_PREFIX_LENGTH: Final = 4
"""A word of a query of this length also finds longer words that begin with it: `walk` finds `walking`, `2019`
finds `20190801`. Shorter ones would find too much that is meant otherwise."""

_WORD: Final = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}]*")
_UNSPACED: Final = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc]+"
)
_RUN: Final = regex.compile(
    r"[\p{Katakana}\u30fc]+|\p{Hiragana}+|\p{Han}+|\p{Thai}+|\p{Lao}+|\p{Khmer}+|\p{Myanmar}+"
)
_IDEOGRAPHIC: Final = regex.compile(r"[\p{Han}\p{Hiragana}]")
_KATAKANA: Final = regex.compile(r"[\p{Katakana}\u30fc]")
_HIRAGANA: Final = regex.compile(r"\p{Hiragana}")
_ACCENTED: Final = regex.compile(r"([\p{Latin}\p{Greek}\p{Cyrillic}\p{Hebrew}\p{Arabic}])\p{Mn}+")
"""A letter of a script in which people leave marks out, with its marks. In others they are letters: without
its vowel signs a word of Hindi is another one."""


@dataclass(frozen=True)
class QueryWord:
    """A word of a query.

    Attributes:
        text: as it stands in the query.
        terms: which must follow one another where it is found; at least one.
        is_prefix: whether the last of them may be the beginning of a longer term.
    """

    text: str
    terms: tuple[str, ...]
    is_prefix: bool


def plain(text: str) -> str:
    """`text` without capitals, accents and variants of form (full width, ligatures); not cut into terms.

    Example:
        >>> plain("Ｃafé ﬁn Straße"), plain("が")
        ('cafe fin strasse', 'が')
    """
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFKC", _ACCENTED.sub(r"\1", apart))


def terms_of(text: str) -> list[str]:
    """The terms of a text, in their order.

    Example:
        >>> terms_of("VID_20190801: Größe!"), terms_of("黑猫跑")
        (['vid', '20190801', 'grosse'], ['黑猫', '猫跑', '跑'])
    """
    return [term for word in _WORD.findall(plain(text)) for term in _terms_of_word(word)]


def _terms_of_word(word: str) -> Iterator[str]:
    if word.isascii():
        yield word
        return
    end = 0
    for run in _UNSPACED.finditer(word):
        if run.start() > end:
            yield word[end : run.start()]
        characters = run.group()
        for first in range(len(characters)):
            yield characters[first : first + 2]
        end = run.end()
    if end < len(word):
        yield word[end:]


def words_of_query(text: str) -> list[QueryWord]:
    """The words that a query asks for, each once, at most MAX_QUERY_WORDS; none where it has no letter.

    Of a script without spaces, a few characters that follow one another are taken for a word. More are a
    sentence, whose parts are asked for each by itself: it then finds a title that shares some of its words.

    Example:
        >>> [word.terms for word in words_of_query("Don't 黑猫跑 カラス")]
        [('don', 't'), ('黑猫', '猫跑'), ('カラ', 'ラス')]
    """
    found: dict[tuple[str, ...], QueryWord] = {}
    particles: dict[tuple[str, ...], QueryWord] = {}
    for given in text.split():
        spaced: list[str] = []
        for word in _WORD.findall(plain(given)):
            if word.isascii():
                spaced.append(word)
                continue
            spaced += [part for part in _UNSPACED.split(word) if part]
            for run in _RUN.finditer(word):
                for part in _parts_of_run(run.group()):
                    terms = tuple(part[first : first + 2] for first in range(max(1, len(part) - 1)))
                    # One hiragana is a particle; alone, it is what is asked for.
                    kept = particles if len(part) == 1 and _HIRAGANA.match(part) else found
                    kept.setdefault(terms, QueryWord(part, terms, is_prefix=len(part) == 1))
        if spaced:
            is_prefix = len(spaced[-1]) >= MIN_PREFIX_LENGTH
            found.setdefault(tuple(spaced), QueryWord(given, tuple(spaced), is_prefix))
    return list((found or particles).values())[:MAX_QUERY_WORDS]


def _parts_of_run(run: str) -> list[str]:
    """What is asked for of characters of one script that follow one another."""
    is_ideographic = _IDEOGRAPHIC.match(run) is not None
    longest, size = (4, 2) if is_ideographic else (8, 4)
    if len(run) <= longest or _KATAKANA.match(run):
        return [run]
    return [run[first : first + size] for first in range(len(run) - size + 1)]


def found_in(word: QueryWord, terms: list[str]) -> bool:
    """Whether a word of a query is found in a text of these terms, as the store finds it."""
    length = len(word.terms)
    for first in range(len(terms) - length + 1):
        last = terms[first + length - 1]
        is_last = last.startswith(word.terms[-1]) if word.is_prefix else last == word.terms[-1]
        if is_last and tuple(terms[first : first + length - 1]) == word.terms[:-1]:
            return True
    return False


def texts_in(metadata: Any) -> Iterator[str]:
    """The texts among the values of metadata, at any depth: what is searched of it."""
    if isinstance(metadata, str):
        yield metadata
    elif isinstance(metadata, dict):
        for value in metadata.values():
            yield from texts_in(value)
    elif isinstance(metadata, list):
        for value in metadata:
            yield from texts_in(value)
