"""The searcher as a state machine: any order of changes, restarts and maintenance against plain searches."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from indexer.errors import DuplicateIdError, VideoNotFoundError
from indexer.ingest.encoding import index_fingerprint
from indexer.maintenance.verification import rebuild, verify
from indexer.search.searcher import Searcher
from indexer.search.types import SearchAnswer, SearchQuery
from indexer.store.records import SegmentRecord
from indexer.store.sqlite.catalog import Catalog
from model import XClip, XClipConfig
from model.score_names import SCORE_NAMES
from tests.support.catalog_builders import add_video, create_catalog, sha256_of, unit
from tests.support.plain_searches import (
    PlainScores,
    PlainSegment,
    PlainVideo,
    assert_page,
    expected_results,
    settled_candidates,
)

D, F = 32, 8
NUM_KINDS = 10
"""Kinds of segments: so few that many are exactly alike."""

TEXTS = ("a dog runs", "red", "two people cook a meal in a kitchen")
MEMORY_BYTES = (0, 20_000, 10_000_000)
"""Kept of what the full score reads: nothing, about ten segments, all."""

FILTERS: tuple[tuple[Mapping[str, Any] | None, Callable[[PlainVideo], bool]], ...] = (
    (None, lambda video: True),
    ({"metadata.n": {"lt": 2}}, lambda video: "n" in video.metadata and video.metadata["n"] < 2),
    (
        {"not": {"metadata.n": {"lt": 2}}},
        lambda video: not ("n" in video.metadata and video.metadata["n"] < 2),
    ),
    ({"title": {"in": ["a", "c"]}}, lambda video: video.title in ("a", "c")),
    (
        {"or": [{"duration_seconds": {"gte": 20}}, {"title": {"exists": False}}]},
        lambda video: video.duration_seconds >= 20 or video.title is None,
    ),
)


@functools.cache
def searched_model() -> XClip:
    torch.manual_seed(0)
    model = XClip(XClipConfig.tiny()).eval()
    with torch.no_grad():  # Away from the identity, or some mistakes would not show.
        for matrix in model.matrices.parameters():
            matrix += 0.05 * torch.randn_like(matrix)
    return model


@functools.cache
def plain_scores() -> PlainScores:
    return PlainScores(searched_model())


@functools.cache
def segment_of_kind(kind: int) -> PlainSegment:
    random = np.random.default_rng(kind)
    frames = unit(random.standard_normal((F, D))).astype(np.float16)
    return PlainSegment(unit(random.standard_normal(D)), frames, 1 + kind % F)


def to_record(segment: PlainSegment, start_seconds: float) -> SegmentRecord:
    times = start_seconds + np.arange(segment.num_frames, dtype=np.float64)
    return SegmentRecord(
        start_seconds, start_seconds + 10.0, segment.video, segment.frames, segment.num_frames, times
    )


titles = st.sampled_from([None, "a", "b", "c"])
metadatas = st.sampled_from([{}, {"n": 0}, {"n": 1}, {"n": 2}, {"n": 3, "kind": ["x", "y"]}])
writers = st.sampled_from(["own", "other"])
NewVideo = tuple[list[int], str | None, dict[str, Any]]
"""Kinds of its segments, title, metadata."""

new_videos = st.tuples(st.lists(st.integers(0, NUM_KINDS - 1), min_size=1, max_size=4), titles, metadatas)
queries = st.fixed_dictionaries(
    {
        "text": st.sampled_from(TEXTS),
        "limit": st.integers(1, 12),
        "offset": st.sampled_from([0, 0, 1, 3, 9]),
        "candidates": st.sampled_from([1, 2, 5, 200]),
        "mode": st.sampled_from(["rerank", "coarse", "exhaustive"]),
        "group_by": st.sampled_from(["video", "segment"]),
        "num_moments": st.sampled_from([1, 3, 20]),
    }
)


class SearchesAndChanges(RuleBasedStateMachine):
    """A searcher, another writer of its index, and a dict."""

    steps: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.videos: dict[str, PlainVideo] = {}
        self.numbers: dict[str, int] = {}
        self.next_number = 0
        self.last_segment_id = 0

    @initialize(memory_bytes=st.sampled_from(MEMORY_BYTES), first=st.lists(new_videos, max_size=8))
    def start(self, memory_bytes: int, first: Sequence[NewVideo] = ()) -> None:
        facts = {"fingerprint": index_fingerprint(searched_model(), "{}"), "sampling_json": "{}"}
        self.other = create_catalog(self.directory, embedding_dim=D, num_frames=F, **facts)
        self._open(memory_bytes)
        for video in first:
            self.add("other", video)

    def _open(self, memory_bytes: int) -> None:
        self.searcher = Searcher(
            self.directory, searched_model(), block_size=4, feature_memory_bytes=memory_bytes
        )

    def _writer(self, writer: str) -> Catalog:
        return self.searcher.catalog if writer == "own" else self.other

    def _any_id(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.videos)))

    def _count(self, step: str) -> None:
        type(self).steps[step] += 1

    # Changes

    @rule(writer=writers, videos=st.lists(new_videos, min_size=1, max_size=4))
    def add_several(self, writer: str, videos: list[NewVideo]) -> None:
        for video in videos:
            self.add(writer, video)

    @rule(writer=writers, video=new_videos)
    def add(self, writer: str, video: NewVideo) -> None:
        self._count("add")
        kinds, title, metadata = video
        segments = [segment_of_kind(kind) for kind in kinds]
        number, video_id = self.next_number, f"video-{self.next_number}"
        self.next_number += 1
        records = [to_record(segment, 10.0 * position) for position, segment in enumerate(segments)]
        catalog = self._writer(writer)
        add_video(catalog, number, records, title=title, metadata=metadata)
        ids = [info.segment_id for info in catalog.video_segments(video_id)]
        assert ids == sorted(ids) and ids[0] > self.last_segment_id, "ids ascend and are never used again"
        self.last_segment_id = ids[-1]
        of_segments = {
            i: (10.0 * position, s) for position, (i, s) in enumerate(zip(ids, segments, strict=True))
        }
        self.videos[video_id] = PlainVideo(video_id, title, metadata, 10.0 * len(kinds), of_segments)
        self.numbers[video_id] = number

    @precondition(lambda self: self.videos)
    @rule(writer=writers, data=st.data())
    def add_what_is_there(self, writer: str, data: st.DataObject) -> None:
        self._count("add what is there")
        video_id = self._any_id(data)
        records = [to_record(segment_of_kind(0), 0.0)]
        again = add_video(self._writer(writer), self.numbers[video_id], records, id="another")
        assert (again.video_id, again.created) == (video_id, False)
        with pytest.raises(DuplicateIdError):
            add_video(self._writer(writer), 0, records, id=video_id, content_sha256=sha256_of(-1))

    @precondition(lambda self: self.videos)
    @rule(writer=writers, data=st.data())
    def delete(self, writer: str, data: st.DataObject) -> None:
        self._count("delete")
        video_id = self._any_id(data)
        self._writer(writer).delete_video(video_id)
        del self.videos[video_id]
        with pytest.raises(VideoNotFoundError):
            self._writer("own" if writer == "other" else "other").get_video(video_id)

    @precondition(lambda self: self.videos)
    @rule(writer=writers, title=titles, metadata=metadatas, data=st.data())
    def update(self, writer: str, title: str | None, metadata: dict[str, Any], data: st.DataObject) -> None:
        self._count("update")
        video = self.videos[self._any_id(data)]
        self._writer(writer).update_video(video.id, title=title, metadata=metadata)
        video.title, video.metadata = title, metadata

    # Searches

    def _settle(
        self, fields: dict[str, Any], texts: Sequence[str], fulfils: Callable[[PlainVideo], bool]
    ) -> None:
        fields["candidates"] = settled_candidates(
            plain_scores(), self.videos, texts, fields["candidates"], fulfils
        )

    @rule(fields=queries, chosen=st.sampled_from(FILTERS), cut=st.none() | st.floats(0, 1))
    def search(self, fields: dict[str, Any], chosen: Any, cut: float | None) -> None:
        self._count(f"search {fields['mode']}")
        self._settle(fields, [fields["text"]], chosen[1])
        query, fulfils = SearchQuery(filter=chosen[0], **fields), chosen[1]
        expected = expected_results(plain_scores(), self.videos, query, fulfils)
        levels = sorted({round(result.score, 2) for result in expected})
        if cut is not None and len(levels) > 1:
            # Between two scores, so that no rounding decides.
            position = min(int(cut * (len(levels) - 1)), len(levels) - 2)
            least = (levels[position] + levels[position + 1]) / 2
            if min(abs(result.score - least) for result in expected) < 0.01:
                return
            query = SearchQuery(filter=chosen[0], min_score=least, **fields)
            expected = expected_results(plain_scores(), self.videos, query, fulfils)
        answer = self.searcher.search(query)
        assert_page(answer, expected, query, plain_scores(), self.videos)

    @rule(fields=queries, chosen=st.sampled_from(FILTERS))
    def search_several(self, fields: dict[str, Any], chosen: Any) -> None:
        self._count("search several")
        self._settle(fields, TEXTS, chosen[1])
        asked = [SearchQuery(filter=chosen[0], **{**fields, "text": text}) for text in TEXTS]
        for query, answer in zip(asked, self.searcher.search_all(asked).answers, strict=True):
            expected = expected_results(plain_scores(), self.videos, query, chosen[1])
            assert answer.query == query.text
            assert_page(answer, expected, query, plain_scores(), self.videos)

    # Maintenance

    @rule(memory_bytes=st.sampled_from(MEMORY_BYTES))
    def restart(self, memory_bytes: int) -> None:
        self._count("restart")
        self.searcher.close()
        with pytest.raises(RuntimeError):
            self.searcher.search(SearchQuery("a dog"))
        self._open(memory_bytes)

    @rule()
    def restart_the_other_writer(self) -> None:
        self._count("restart the other writer")
        self.other.close()
        self.other = Catalog.open(self.directory)

    @rule()
    def compact(self) -> None:
        self._count("compact")
        self.searcher._index.follow()
        self.searcher._index.compact()

    @rule()
    def save(self) -> None:
        self._count("save")
        self.searcher._index.save()

    @rule()
    def rebuild_all_that_is_derived(self) -> None:
        self._count("rebuild")
        num_segments = sum(len(video.segments) for video in self.videos.values())
        assert rebuild(self.directory) == (len(self.videos), num_segments)

    @rule()
    def forget_changes(self) -> None:
        self._count("forget changes")
        self.other.forget_changes(self.other.sequence)

    @invariant()
    def totals_are_right(self) -> None:
        if hasattr(self, "searcher"):
            num_segments = sum(len(video.segments) for video in self.videos.values())
            assert self.other.totals() == (len(self.videos), num_segments)
            assert self.searcher.catalog.totals() == (len(self.videos), num_segments)

    def teardown(self) -> None:
        if hasattr(self, "searcher"):
            self.searcher.close()
            self.other.close()
            assert verify(self.directory).is_clean
        shutil.rmtree(self.directory)


FAST = settings(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
DEEP = settings(FAST, max_examples=300, stateful_step_count=60)

TestSearchesAndChanges = SearchesAndChanges.TestCase
TestSearchesAndChanges.settings = FAST


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_long_and_many_sequences_of_searches_and_changes() -> None:
    SearchesAndChanges.steps.clear()
    run_state_machine_as_test(SearchesAndChanges, settings=DEEP)
    steps = SearchesAndChanges.steps
    assert steps.total() > 5_000 and min(steps.values()) > 50, steps


# The judge is judged: an answer with anything wrong in it is noticed.


def _without_the_last(answer: SearchAnswer) -> SearchAnswer:
    return replace(answer, results=answer.results[:-1])


def _in_another_order(answer: SearchAnswer) -> SearchAnswer:
    return replace(answer, results=answer.results[::-1])


def _with_a_repetition(answer: SearchAnswer) -> SearchAnswer:
    first, second, *rest = answer.results
    return replace(answer, results=[first, replace(first, rank=second.rank), *rest])


def _with_a_first_result(**changes: Any) -> Callable[[SearchAnswer], SearchAnswer]:
    def change(answer: SearchAnswer) -> SearchAnswer:
        return replace(answer, results=[replace(answer.results[0], **changes), *answer.results[1:]])

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        _without_the_last,
        _in_another_order,
        _with_a_repetition,
        _with_a_first_result(rank=2),
        _with_a_first_result(score=17.0),
        _with_a_first_result(title="another"),
        _with_a_first_result(metadata={"n": 9}),
        _with_a_first_result(moments=[]),
        _with_a_first_result(segment_id=1),
        _with_a_first_result(scores=dict.fromkeys(SCORE_NAMES, 1.0)),
        lambda answer: replace(answer, num_videos=7),
        lambda answer: replace(answer, truncated=True),
    ],
)
def test_a_wrong_answer_is_noticed(spoil: Callable[[SearchAnswer], SearchAnswer]) -> None:
    machine = SearchesAndChanges()
    machine.start(0)
    try:
        for kind in range(6):
            machine.add("other", ([kind, kind], "a", {"n": kind}))
        query = SearchQuery(TEXTS[0], mode="exhaustive")
        expected = expected_results(plain_scores(), machine.videos, query, lambda video: True)
        answer = machine.searcher.search(query)
        judge = functools.partial(
            assert_page, expected=expected, query=query, scores=plain_scores(), videos=machine.videos
        )
        judge(answer)
        assert answer.results[0].segment_id not in (1, 2)
        with pytest.raises((AssertionError, KeyError)):
            judge(spoil(answer))
    finally:
        machine.teardown()
