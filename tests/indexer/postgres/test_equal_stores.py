"""Both stores compared: the same operations leave the same behind, and searches answer the same."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from indexer.errors import IndexerError
from indexer.ingest.encoding import index_fingerprint
from indexer.maintenance.exporting import export_index
from indexer.maintenance.importing import import_index
from indexer.search.searcher import Searcher
from indexer.search.types import SearchQuery
from indexer.store.filters import parse_filter
from indexer.store.job import NewJob
from indexer.store.records import IndexFacts, KnownFile
from indexer.store.store import create_store, open_store
from indexer.store.transcripts import Line, Transcript
from tests.support.catalog_builders import FINGERPRINT, add_video, make_segment, new_video, sha256_of
from tests.support.postgres import PostgresServer
from tests.support.small_searchers import D, F, fill, tiny_model

FACTS = IndexFacts(
    fingerprint=FINGERPRINT, model_spec="demo", embedding_dim=8, num_frames=4, sampling_json="{}"
)


numbers = st.integers(0, 5)
ids = numbers.map(lambda number: f"video-{number}")
texts = st.sampled_from([None, "", "A dog", "the dog runs", "Größe", "Gro\u0308\u00dfe", "黑猫跑", "a\0b"])
uris = st.sampled_from([None, "file:///a/1.mp4", "file:///a/b/2.mp4", "file:///a%20b/c", "/a/ü.mp4"])
metadatas = st.sampled_from(
    [{}, {"n": 1}, {"n": 1.0}, {"n": [1, "x"]}, {"n": {"m": None}}, {"d": "2024-05-01T02:00:00+02:00"}]
)
times = st.sampled_from([None, 0.0, -1.5, 1_700_000_000.25])
FILTERS = [
    {"metadata.n": 1},
    {"metadata.n": {"exists": True}},
    {"metadata.n.m": None},
    {"metadata.d": {"gte": "2024-05-01"}},
    {"title": {"contains": "DOG"}},
    {"title": {"gt": "B"}},
    {"uri": {"prefix": "/a"}},
    {"not": {"recorded_at": {"exists": True}}},
    {"missing": True},
]


class BothStores(RuleBasedStateMachine):
    """The same calls of both stores: the same answers, the same errors, the same left behind."""

    address: str

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.embedded = create_store(Path(self.folder.name) / "index", FACTS)
        self.shared = open_store(self.address)
        for video_id in self.shared.video_ids():
            self.shared.delete_video(video_id)
        with self.shared.transaction() as transaction:
            for table in ("changes", "jobs", "files", "kept_out"):
                transaction.connection.execute(f"DELETE FROM {table}")
            transaction.connection.execute(
                "UPDATE counters SET sequence = 0, token = '', last_video = 0, last_segment = 0, last_job = 0"
            )
        self.now = 1000.0
        self.stores: tuple[Any, Any] = (self.embedded, self.shared)
        for store in self.stores:
            store.clock = lambda: self.now
        self.jobs: list[tuple[str, str]] = []

    def teardown(self) -> None:
        self.embedded.close()
        self.shared.close()
        self.folder.cleanup()

    def both(self, call: Any) -> tuple[Any, Any]:
        """What a call gives for each; an error is what it gives, by its kind."""
        self.now += 1.0
        given: list[Any] = []
        for position, store in enumerate(self.stores):
            try:
                given.append(call(store, position))
            except IndexerError as error:
                given.append((type(error), str(error)))
        return given[0], given[1]

    def same(self, call: Any) -> Any:
        one, other = self.both(lambda store, _: call(store))
        assert one == other
        return one

    @rule(number=numbers, title=texts, uri=uris, metadata=metadatas, num_segments=st.integers(1, 3), at=times)
    def add(self, number: int, title: Any, uri: Any, metadata: Any, num_segments: int, at: Any) -> None:
        random = np.random.default_rng(number)
        video = new_video(
            number,
            [make_segment(random) for _ in range(num_segments)],
            title=title,
            uri=uri,
            metadata=metadata,
            recorded_at=at,
        )
        self.same(lambda store: store.add_video(video))

    @rule(video_id=ids, keep_out=st.booleans())
    def delete(self, video_id: str, keep_out: bool) -> None:
        self.same(lambda store: store.delete_video(video_id, keep_out=keep_out))

    @rule(video_id=ids, title=texts, metadata=metadatas, missing=times)
    def update(self, video_id: str, title: Any, metadata: Any, missing: Any) -> None:
        changes = {"title": title, "metadata": metadata, "missing_since": missing}
        self.same(lambda store: store.update_video(video_id, **changes))

    @rule(video_id=ids, metadata=metadatas)
    def patch(self, video_id: str, metadata: Any) -> None:
        self.same(lambda store: store.patch_video(video_id, {"metadata": metadata or None}))

    @rule(video_id=ids, track=st.sampled_from(["en", "de"]), text=st.sampled_from(["hello dog", "walking"]))
    def say(self, video_id: str, track: str, text: str) -> None:
        said = Transcript(track, (Line(0.0, 2.0, text), Line(100.0, 101.0, "and the dog")))
        self.same(lambda store: store.transcripts.put(video_id, said))

    @rule(video_id=ids)
    def say_no_more(self, video_id: str) -> None:
        self.same(lambda store: store.transcripts.delete(video_id, "en"))

    @rule(number=numbers)
    def let_in(self, number: int) -> None:
        self.same(lambda store: store.kept_out.let_in(sha256_of(number)))

    @rule(before=st.integers(0, 20))
    def forget(self, before: int) -> None:
        self.same(lambda store: store.forget_changes(before))

    @rule(number=numbers, uri=uris.filter(bool))
    def remember(self, number: int, uri: str) -> None:
        self.same(lambda store: store.files.remember([KnownFile(uri, number, 5, sha256_of(number))]))

    @rule(number=numbers)
    def request(self, number: int) -> None:
        new = NewJob(source_path=f"/{number}", content_sha256=sha256_of(number), video_id=f"video-{number}")
        one, other = self.both(lambda store, _: store.jobs.admit(new, max_queued=3))
        assert type(one) is type(other)
        if not isinstance(one, tuple) and one.is_new:
            self.jobs.append((one.job.id, other.job.id))

    @rule()
    def lease(self) -> None:
        one, other = self.both(lambda store, _: store.jobs.lease("worker", 3.0))
        assert (one and plain_job(one)) == (other and plain_job(other))

    @rule(choice=st.integers(0, 9), ending=st.sampled_from(["finish", "fail", "cancel", "release"]))
    def end(self, choice: int, ending: str) -> None:
        if not self.jobs:
            return
        pair = self.jobs[choice % len(self.jobs)]
        arguments = {"finish": ("video-0",), "fail": ("broken",), "cancel": (), "release": ()}[ending]
        one, other = self.both(lambda store, which: getattr(store.jobs, ending)(pair[which], *arguments))
        if isinstance(one, tuple):
            assert one[0] is other[0]
        else:
            assert plain_job(one) == plain_job(other)

    @rule(chosen=st.sampled_from(FILTERS))
    def filter(self, chosen: dict[str, Any]) -> None:
        parsed = parse_filter(chosen)
        self.same(lambda store: store.matching(parsed).segment_ids.tolist())
        self.same(lambda store: store.list_videos(3, chosen=parsed, sort="recorded_at"))

    @rule(query=st.sampled_from(["dog", "the dog", "hello", "walk", "größe", "黑猫", "nothing"]))
    def find_words(self, query: str) -> None:
        def found(store: Any) -> Any:
            matches = store.find_words(query)
            starts = store.passage_starts(matches)
            return (
                matches.video_keys.tolist(),
                matches.passages.tolist(),
                matches.words,
                matches.is_cut,
                starts.tolist(),
            )

        self.same(found)

    @invariant()
    def the_same_is_left_behind(self) -> None:
        for read in (
            lambda store: store.totals(),
            lambda store: list(store.iterate_videos()),
            lambda store: [replace(change) for change in store.changes_since(max(0, store.sequence - 3))],
            lambda store: store.segment_ids().tolist(),
            lambda store: store.kept_out.list_all(),
            lambda store: store.jobs.counts(),
            lambda store: [plain_job(job) for job in store.jobs.list_jobs()],
            lambda store: list(store.files.below("file:///a")),
            lambda store: list(store.videos_below("file:///a")),
            lambda store: store.transcripts.of_videos([f"video-{number}" for number in range(6)]),
        ):
            self.same(read)
        features = [store.segment_features(store.segment_ids()) for store in self.stores]
        for name in ("segment_ids", "video_keys", "video", "frames", "num_frames"):
            assert np.array_equal(*[getattr(each, name) for each in features])


def plain_job(job: Any) -> Any:
    return replace(job, id="")


def machine_of(server: PostgresServer) -> type[BothStores]:
    address = server.address()
    create_store(address, FACTS).close()
    return type("Both", (BothStores,), {"address": address})


def run_machine(server: PostgresServer, max_examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine_of(server),
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_operations_leave_the_same_in_both_stores(postgres: PostgresServer) -> None:
    run_machine(postgres, max_examples=3, steps=15)


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_very_many_operations_leave_the_same_in_both_stores(postgres: PostgresServer) -> None:
    run_machine(postgres, max_examples=int(os.environ.get("XCLIP_TEST_EXAMPLES", "300")), steps=50)


# Searches


SEARCHED_FACTS = IndexFacts(
    fingerprint="", model_spec="demo", embedding_dim=D, num_frames=F, sampling_json="{}"
)
QUERIES = ("a dog runs", "red", "two people cook a meal", "title 17", "the sea")
SEARCH_FILTERS = (
    None,
    {"metadata.number": {"lt": 30}},
    {"metadata.number": {"in": [3, 17]}},
    {"title": {"contains": "TITLE 1"}},
)


@pytest.fixture(scope="module")
def searchers(
    postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Searcher, Searcher]]:
    """Of both stores, with the same videos; the second was imported from an export of the first."""
    tmp_path = tmp_path_factory.mktemp("searched")
    facts = replace(SEARCHED_FACTS, fingerprint=index_fingerprint(tiny_model(), "{}"))
    directory, address = tmp_path / "index", postgres.address()
    with create_store(directory, facts) as store:
        fill(store, range(60), segments_each=2, num_looks=40)  # type: ignore[arg-type]
        store.delete_video("video-5")
        store.transcripts.put("video-7", Transcript("en", (Line(3.0, 4.0, "a red dog runs"),)))
    export_index(directory, tmp_path / "export")
    import_index(tmp_path / "export", address)
    # As another machine makes it: numbers of videos and segments differ where some were deleted.
    export_index(address, tmp_path / "back")
    import_index(tmp_path / "back", tmp_path / "again")
    one = Searcher(tmp_path / "again", tiny_model(), block_size=16)
    other = Searcher(address, tiny_model(), block_size=16)
    with one, other:
        for searcher in (one, other):
            searcher.prepare()  # Else percentiles are there as soon as a thread has made their baseline.
        yield one, other


def test_searches_of_both_stores_give_the_same(searchers: tuple[Searcher, Searcher]) -> None:
    compare_searches(searchers, QUERIES[:1])


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_very_many_searches_of_both_stores_give_the_same(searchers: tuple[Searcher, Searcher]) -> None:
    compare_searches(searchers, [*QUERIES, *(f"{one} {other}" for one in QUERIES for other in QUERIES)])


def compare_searches(searchers: tuple[Searcher, Searcher], texts: Sequence[str]) -> None:
    num_compared = 0
    for text, mode, chosen, offset, match in itertools.product(
        texts, ("rerank", "coarse", "exhaustive"), SEARCH_FILTERS, (0, 4, 8), ("off", "boost", "only")
    ):
        query = SearchQuery(text, limit=4, offset=offset, mode=mode, filter=chosen, text_match=match)
        found, expected = ([*leaves(searcher.search(query).results)] for searcher in searchers)
        # Scores to rounding: what is scored in one block depends on what the feature file has by then.
        assert found == pytest.approx(expected, abs=1e-4), query
        num_compared += 1
    assert num_compared == 108 * len(texts)


NUM_IN_GRID = 500
GRID_FILTERS = (
    (None, NUM_IN_GRID),
    ({"metadata.number": {"lt": NUM_IN_GRID // 2}}, NUM_IN_GRID // 2),
    ({"metadata.number": {"in": [7, 123, 250, 366, 499]}}, NUM_IN_GRID // 100),
)
"""With how many videos they let through."""

WORDS = ["a", "dog", "red", "two", "people", "sea", "runs", "snow", "title", "17", "night", "horse"]


@pytest.fixture(scope="module")
def same_features(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Searchers of both stores that read the same features from their rows, and no file."""
    folder, address = tmp_path_factory.mktemp("grid"), postgres.address()
    facts = replace(SEARCHED_FACTS, fingerprint=index_fingerprint(tiny_model(), "{}"))
    with create_store(folder / "made", facts) as store:
        fill(store, range(NUM_IN_GRID), num_looks=400)  # type: ignore[arg-type]
    export_index(folder / "made", folder / "export")
    for index in (folder / "index", address):
        import_index(folder / "export", index)
    with (
        Searcher(folder / "index", tiny_model(), feature_file=False) as one,
        Searcher(address, tiny_model(), feature_file=False) as other,
    ):
        for searcher in (one, other):
            searcher.prepare()
        yield one, other


def num_compared_in_grid(searchers: tuple[Searcher, Searcher], num_queries: int) -> int:
    """Compare the whole answers but for their timings, to the last bit."""
    texts = (" ".join(words) for words in itertools.permutations(WORDS, 3))
    num_compared = 0
    for text in itertools.islice(texts, 0, 6 * num_queries, 6):
        encoded = searchers[0].encode([text])
        for mode, (chosen, num_matching), offset in itertools.product(
            ("coarse", "rerank", "exhaustive"), GRID_FILTERS, (0, 4, 8)
        ):
            query = SearchQuery(text, limit=4, offset=offset, mode=mode, filter=chosen)
            one, other = (replace(searcher.search(query, encoded), timings=None) for searcher in searchers)
            assert [*leaves(one)] == [*leaves(other)], query
            assert len(one.results) == max(0, min(4, num_matching - offset)), query
            num_compared += 1
    return num_compared


def test_every_mode_filter_and_page_answers_the_same_on_the_same_features(same_features: Any) -> None:
    assert num_compared_in_grid(same_features, 2) == 2 * 27


@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_two_hundred_queries_in_every_mode_filter_and_page_answer_the_same(same_features: Any) -> None:
    assert num_compared_in_grid(same_features, 200) == 200 * 27


def leaves(value: Any) -> Iterator[Any]:
    """Everything in an answer that has no parts, in order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        value = [*value.items()]
    if isinstance(value, list | tuple):
        yield len(value)
        for part in value:
            yield from leaves(part)
    else:
        yield value


def test_a_search_takes_few_round_trips(
    searchers: tuple[Searcher, Searcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_sent, own_thread = 0, threading.get_ident()

    def counting(function: Any) -> Any:
        def counted(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal num_sent
            num_sent += threading.get_ident() == own_thread  # Not what is saved in the background.
            return function(self, *arguments, **options)

        return counted

    execute, stream = counting(psycopg.Connection.execute), counting(psycopg.Cursor.stream)
    with Searcher(searchers[1].catalog.address, tiny_model()) as searcher:
        for chosen, most in ((None, 3), (SEARCH_FILTERS[1], 4)):
            query = SearchQuery("a dog runs", limit=5, filter=chosen)
            searcher.search(query)
            with monkeypatch.context() as patched:
                num_sent = 0
                patched.setattr(psycopg.Connection, "execute", execute)
                patched.setattr(psycopg.Cursor, "stream", stream)
                searcher.search(query)
            assert 0 < num_sent <= most


def test_what_one_process_adds_or_deletes_the_next_search_of_another_sees(
    searchers: tuple[Searcher, Searcher],
) -> None:
    _, searcher = searchers
    with open_store(searcher.catalog.address) as other:
        random = np.random.default_rng(9)
        outcome = add_video(other, 99, [make_segment(random, D, F)], title="new")
        query = SearchQuery("a dog runs", limit=100, mode="exhaustive")
        assert outcome.video_id in {result.id for result in searcher.search(query).results}
        other.delete_video(outcome.video_id)
        assert outcome.video_id not in {result.id for result in searcher.search(query).results}
