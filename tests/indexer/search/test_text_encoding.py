"""Texts that searches of many threads encode together: features as of each alone, and errors where they
belong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from indexer.errors import SearchCancelledError
from indexer.search.text_encoding import TextEncoder
from indexer.store.cancellation import cancellable
from model.errors import TokenError
from model.features import TextFeatures
from model.kernels import threads as model_threads
from model.kernels.threads import at_work, helped
from tests.support.small_searchers import tiny_model

WITHIN_SECONDS = 30.0
TEXTS = [f"{who} {what}" for who in ("a dog", "two cats", "snow") for what in ("runs", "sleeps on ice", "")]


class SlowModel:
    """The tiny model; a batch whose number is in `held` waits to be let go. Notes the batches."""

    def __init__(
        self, held: set[int] = frozenset(), fails: Callable[[Tensor], bool] = lambda ids: False
    ) -> None:
        self._held, self._fails = held, fails
        self.batches: list[int] = []
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.tokenize = tiny_model().tokenize

    def encode_tokens(self, input_ids: Tensor) -> TextFeatures:
        self.batches.append(len(input_ids))
        if len(self.batches) - 1 in self._held:
            self.begun.set()
            assert self.let_go.wait(WITHIN_SECONDS)
        if self._fails(input_ids):
            raise RuntimeError("this batch cannot be encoded")
        return tiny_model().encode_tokens(input_ids)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def held_encoder(**options: object) -> tuple[TextEncoder, SlowModel, ThreadPoolExecutor]:
    """An encoder whose first batch, of another text, is under way in a thread of the pool."""
    model = SlowModel({0}, **options)
    encoder = TextEncoder(model)
    pool = ThreadPoolExecutor(16)
    pool.submit(encoder.encode, ["the first"])
    assert model.begun.wait(WITHIN_SECONDS)
    return encoder, model, pool


def alone(text: str) -> TextFeatures:
    with torch.inference_mode():
        return tiny_model().encode_text([text])


def assert_equal(found: TextFeatures, expected: TextFeatures, tolerance: float = 1e-5) -> None:
    for mine, right in zip(found.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(mine, right, atol=tolerance, rtol=0)


def test_texts_of_many_threads_are_encoded_as_each_alone() -> None:
    encoder = TextEncoder(tiny_model(), num_recent=4, max_together=5)

    def search(number: int) -> None:
        texts = [TEXTS[(number * step) % len(TEXTS)] for step in range(1, 1 + number % 4)] or TEXTS
        found = encoder.encode(texts)
        for row, text in enumerate(texts):
            assert_equal(found[row : row + 1], alone(text))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(search, number) for number in range(80)]:
            done.result(WITHIN_SECONDS)


def test_texts_that_wait_go_through_the_model_together() -> None:
    encoder, model, pool = held_encoder()
    with pool:
        waiting = [pool.submit(encoder.encode, [text]) for text in TEXTS]
        wait_until(lambda: encoder.num_waiting == len(TEXTS))
        model.let_go.set()
        for text, found in zip(TEXTS, waiting, strict=True):
            assert_equal(found.result(WITHIN_SECONDS), alone(text))
    assert model.batches == [1, len(TEXTS)]


def test_a_text_that_finds_the_model_idle_is_encoded_at_once_in_the_thread_of_its_caller() -> None:
    threads: list[int] = []
    model = SlowModel(fails=lambda ids: bool(threads.append(threading.get_ident())))
    encoder = TextEncoder(model)
    for text in TEXTS[:3]:
        encoder.encode([text])
    assert model.batches == [1, 1, 1]
    assert set(threads) == {threading.get_ident()}
    assert encoder.num_waiting == 0


def test_texts_that_wait_together_leave_the_other_processors_to_other_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []  # The batches in which a second thread was asked to help.

    class Threads:
        def submit(self, *arguments: object) -> Future[None]:
            asked.append(len(model.batches))
            return Future()

    def helps(ids: Tensor) -> bool:
        with helped(lambda: None, num_threads=2):
            return False

    monkeypatch.setattr(model_threads, "_threads", Threads)
    encoder, model, pool = held_encoder(fails=helps)
    with pool:
        waiting = [pool.submit(encoder.encode, [text]) for text in TEXTS]
        wait_until(lambda: encoder.num_waiting == len(TEXTS))
        with at_work():  # A search that is behind its encoding, when the batch is encoded.
            model.let_go.set()
            for done in waiting:
                done.result(WITHIN_SECONDS)
    encoder.encode(["the last"])
    assert model.batches == [1, len(TEXTS), 1]
    assert asked == [3]


def test_one_batch_takes_no_more_texts_than_it_may_and_the_oldest_first() -> None:
    model = SlowModel({0})
    encoder = TextEncoder(model, max_together=4)
    with ThreadPoolExecutor(16) as pool:
        pool.submit(encoder.encode, ["the first"])
        assert model.begun.wait(WITHIN_SECONDS)
        waiting = []
        for number in range(3):
            waiting.append(pool.submit(encoder.encode, TEXTS[3 * number : 3 * number + 3]))
            wait_until(lambda number=number: encoder.num_waiting == number + 1)
        model.let_go.set()
        for done in waiting:
            done.result(WITHIN_SECONDS)
    assert model.batches == [1, 3, 3, 3]


def test_the_same_text_of_several_threads_is_encoded_once() -> None:
    encoder, model, pool = held_encoder()
    with pool:
        waiting = [pool.submit(encoder.encode, ["a dog", "The First"]) for _ in range(5)]
        wait_until(lambda: encoder.num_waiting == 5)
        model.let_go.set()
        found = [done.result(WITHIN_SECONDS) for done in waiting]
    assert model.batches == [1, 1]
    for features in found:
        assert_equal(features, found[0], tolerance=0)


def test_an_error_reaches_only_the_caller_whose_text_causes_it() -> None:
    bad = tiny_model().tokenize(["snow"])
    encoder, model, pool = held_encoder(fails=lambda ids: bool((ids == bad).all(dim=1).any()))
    with pool:
        good = [pool.submit(encoder.encode, [text]) for text in ("a dog", "two cats")]
        wrong = pool.submit(encoder.encode, ["snow"])
        wait_until(lambda: encoder.num_waiting == 3)
        model.let_go.set()
        for text, found in zip(("a dog", "two cats"), good, strict=True):
            assert_equal(found.result(WITHIN_SECONDS), alone(text))
        with pytest.raises(RuntimeError, match="this batch"):
            wrong.result(WITHIN_SECONDS)
    with pytest.raises(TokenError):
        encoder.encode(["a dog", "\ud800"])
    assert_equal(encoder.encode(["a dog"]), alone("a dog"))


def test_a_cancelled_search_does_not_encode_and_leaves_the_others_waiting_in_peace() -> None:
    encoder, model, pool = held_encoder()
    cancelled = threading.Event()

    def cancel() -> None:
        with cancellable(cancelled):
            encoder.encode(["nobody wants this"])

    with pool:
        ended = pool.submit(cancel)
        wait_until(lambda: encoder.num_waiting == 1)
        stays = pool.submit(encoder.encode, ["a dog", "snow"])
        wait_until(lambda: encoder.num_waiting == 2)
        cancelled.set()
        model.let_go.set()
        assert_equal(stays.result(WITHIN_SECONDS)[:1], alone("a dog"))
        with pytest.raises(SearchCancelledError):
            ended.result(WITHIN_SECONDS)
    assert encoder.num_waiting == 0


def test_texts_of_a_thread_that_is_ended_while_it_encodes_are_encoded_by_another() -> None:
    class Ended(BaseException):
        pass

    def end_once(ids: Tensor) -> bool:
        if len(model.batches) == 2:
            raise Ended
        return False

    encoder, model, pool = held_encoder(fails=end_once)
    with pool:
        waiting = [pool.submit(encoder.encode, [text]) for text in TEXTS[:3]]
        wait_until(lambda: encoder.num_waiting == 3)
        model.let_go.set()
        errors = [done.exception(WITHIN_SECONDS) for done in waiting]
    assert [type(error) for error in errors if error is not None] == [Ended]
    assert model.batches == [1, 3, 2]


def test_recent_texts_are_known_by_their_tokens_and_give_the_same_bits() -> None:
    model = SlowModel()
    encoder = TextEncoder(model)
    together = encoder.encode(["a red car", "two dogs", "snow on the ice"])
    again = encoder.encode(["Two   DOGS"])
    assert model.batches == [3]
    assert_equal(again, together[1:2], tolerance=0)
    encoder.encode(["dogs two"])
    assert model.batches == [3, 1]


def test_as_many_texts_are_kept_as_may_be_those_asked_for_last() -> None:
    model = SlowModel()
    encoder = TextEncoder(model, num_recent=2)
    for text in ("a dog", "two cats", "a dog", "snow", "a dog", "two cats"):
        encoder.encode([text])
    # "two cats" was forgotten for "snow", since "a dog" was asked for later.
    assert len(model.batches) == 4
    assert encoder.num_kept == 2
    nothing_kept = TextEncoder(model, num_recent=0)
    nothing_kept.encode(["a dog"])
    nothing_kept.encode(["a dog"])
    assert len(model.batches) == 6


def test_what_is_kept_of_a_text_holds_no_other_text_of_its_batch() -> None:
    encoder = TextEncoder(tiny_model())
    encoder.encode(TEXTS)
    kept = encoder.encode(TEXTS[:1])
    for tensor in kept.tensors():
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
