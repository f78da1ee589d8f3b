"""Texts to features for searches of many threads: those that wait together go through the model together, and
the features of recent texts are kept.

    thread 1   encode "a dog"  [=== a dog ===]
    thread 2     encode "snow"   . . . . . . [=== snow, a car ===]
    thread 3          encode "a car" . . . . . . . . . . . . . . .

There is no timer: a text that finds the model idle is encoded at once and alone; what arrives meanwhile
gathers, and the first of those that wait encodes all of it. On a processor that is worth it because one short
text is bound by reading the weights, which a batch reads once.

On PyTorch and OpenVINO, what else is in a batch changes the shapes of its matrix products, and so how they
are rounded: features differ from those of the text alone by less than 1e-6, in vectors of unit length. A text
that is kept gives the same bits each time, so the pages of one search are cut from one order.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from indexer.store.cancellation import raise_if_cancelled
from model.features import TextFeatures
from model.kernels.threads import at_work

if TYPE_CHECKING:
    from model.xclip import XClip

MAX_TOGETHER: Final = 32
"""Texts in one batch: more are hardly cheaper for each of them, and keep those behind them waiting longer."""

NUM_RECENT_TEXTS: Final = 256
"""Texts whose features are kept by default; each takes 66 kB at 32 words of 512 numbers."""


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Features of T texts, and the seconds that their caller waited for them."""

    features: TextFeatures
    seconds: float


class TextEncoder:
    """Encodes texts with one model, whose weights do not change. Safe to use from several threads.

    A text is known by its token ids, which is all that the model sees of it: what differs in case or in white
    space alone is the same text to CLIP.

    Example:
        encoder = TextEncoder(XClip.load("demo"))
        features = encoder.encode(["a red car", "two dogs"])  # of T = 2 texts
    """

    def __init__(
        self, model: XClip, *, num_recent: int = NUM_RECENT_TEXTS, max_together: int = MAX_TOGETHER
    ) -> None:
        """num_recent: texts whose features are kept, on the model's device. max_together: in one batch."""
        if num_recent < 0 or max_together < 1:
            raise ValueError("num_recent is at least 0, max_together at least 1")
        self.model = model
        self._num_recent = num_recent
        self._max_together = max_together
        self._tokenized = lru_cache(num_recent)(partial(_tokenized, model))
        # Guards all that follows; told of each batch that ends.
        self._changed = threading.Condition()
        self._recent: OrderedDict[bytes, TextFeatures] = OrderedDict()
        self._waiting: list[_Request] = []
        self._is_encoding = False

    @property
    def num_waiting(self) -> int:
        """Threads whose texts are in no batch yet."""
        return len(self._waiting)

    @property
    def num_kept(self) -> int:
        """Texts whose features are kept."""
        return len(self._recent)

    @at_work()
    def encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of T texts, at least one, in their order. Blocks.

        Raises:
            TokenError: A text is not valid Unicode.
            SearchCancelledError: The work of this thread was cancelled
                (`indexer.store.cancellation.cancellable`). A batch that has begun is ended first.
        """
        # In this thread: an error is that of its caller alone.
        tokenized = [self._tokenized(text) for text in texts]
        blocks = []
        size = self._max_together
        for block in (tokenized[row : row + size] for row in range(0, len(tokenized), size)):
            request = _Request(dict(block))
            self._answer(request)
            blocks += [request.found[key] for key, _ in block]
        return blocks[0] if len(blocks) == 1 else TextFeatures.cat(blocks)

    def _answer(self, request: _Request) -> None:
        """Find or encode the texts of a request, by themselves or with those of others."""
        try:
            while batch := self._next_batch(request):
                self._encode(batch)
        finally:
            with self._changed:
                if request in self._waiting:
                    self._waiting.remove(request)
        if request.error is not None:
            raise request.error

    def _next_batch(self, request: _Request) -> list[_Request]:
        """Wait until a request is answered, and return nothing; or until its thread has to encode a batch.

        Its own request need not be in that batch: the oldest come first.
        """
        with self._changed:
            self._take_recent(request)
            if not request.is_answered and request not in self._waiting:
                self._waiting.append(request)
            while True:
                raise_if_cancelled()
                if request.is_answered:
                    return []
                if not self._is_encoding:
                    break
                self._changed.wait()
            self._is_encoding = True
            batch: list[_Request] = []
            num_texts = 0
            for waiting in self._waiting:
                self._take_recent(waiting)  # An earlier batch may have had some of its texts.
                num_texts += len(waiting.missing)
                if batch and num_texts > self._max_together:
                    break
                batch.append(waiting)
            del self._waiting[: len(batch)]
            return batch

    def _encode(self, batch: Sequence[_Request]) -> None:
        try:
            try:
                self._encode_together(batch)
            except Exception:
                # Each by itself, so that the error is only that of those whose texts cause it.
                for request in batch:
                    try:
                        self._encode_together([request])
                    except Exception as error:
                        request.error = error
        finally:
            with self._changed:
                self._is_encoding = False
                for request in batch:
                    self._keep(request.found)
                # Empty unless this thread is being ended: then another one has to encode them.
                self._waiting[:0] = [request for request in batch if not request.is_answered]
                self._changed.notify_all()

    def _encode_together(self, batch: Sequence[_Request]) -> None:
        rows = {key: row for request in batch for key, row in request.missing.items()}
        if not rows:
            return
        with torch.inference_mode():
            features = self.model.encode_tokens(torch.stack(list(rows.values())))
            for number, key in enumerate(rows):
                # A copy: a slice would hold the whole batch in memory as long as one text of it is kept.
                single = TextFeatures(*(part.clone() for part in features[number : number + 1].tensors()))
                for request in batch:
                    request.take(key, single)

    def _take_recent(self, request: _Request) -> None:
        for key in list(request.missing):
            if (kept := self._recent.get(key)) is not None:
                self._recent.move_to_end(key)
                request.take(key, kept)

    def _keep(self, found: Mapping[bytes, TextFeatures]) -> None:
        """Keep features, and forget those that were asked for least recently."""
        for key, features in found.items():
            self._recent[key] = features
            self._recent.move_to_end(key)
        while len(self._recent) > self._num_recent:
            self._recent.popitem(last=False)


def _tokenized(model: XClip, text: str) -> tuple[bytes, Tensor]:
    """Token ids int64 [L] of a text, behind their bytes."""
    row = model.tokenize([text])[0]
    return row.numpy().tobytes(), row


@dataclass(eq=False)
class _Request:
    """What one thread waits for.

    missing: token ids, int64 [L], of texts whose features are not known yet, by their bytes. found: features
    of one text each, by the same. error: why there are none.
    """

    missing: dict[bytes, Tensor]
    found: dict[bytes, TextFeatures] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def is_answered(self) -> bool:
        return self.error is not None or not self.missing

    def take(self, key: bytes, features: TextFeatures) -> None:
        """Take the features of a text, where it is one of these."""
        if self.missing.pop(key, None) is not None:
            self.found[key] = features
