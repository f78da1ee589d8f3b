"""A service without a model: a real catalog and job queue, a searcher that answers by rote, a client."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from starlette.testclient import TestClient

from indexer.search.query_media import QueryMedia
from indexer.search.types import (
    Copy,
    Explanation,
    Moment,
    RankedText,
    SearchAnswer,
    SearchAnswers,
    SearchQuery,
    SearchResult,
    Segment,
    SimilarAnswer,
    SimilarQuery,
    TextsAnswer,
    TextTimings,
    Timings,
)
from indexer.store.records import IndexFacts, NewVideo, SegmentRecord
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from service.app import create_app
from service.derived_media import Decoders
from service.ingest.worker import Worker
from service.settings import Settings

NUM_FRAMES, EMBEDDING_DIM = 2, 4

NO_DECODERS = Decoders(
    take_picture=lambda path, seconds, width: b"",
    make_clip=lambda path, seconds: b"",
    read_media=lambda path, searcher: QueryMedia([]),
)
TIMINGS = Timings(0.1, 0.2, 0.3, 0.6)


def make_catalog(directory: Path) -> Catalog:
    """An empty catalog of tiny features."""
    return Catalog.create(
        directory,
        IndexFacts(
            fingerprint="f" * 64,
            model_spec="none",
            embedding_dim=EMBEDDING_DIM,
            num_frames=NUM_FRAMES,
            sampling_json='{"num_frames": 2}',
        ),
    )


def segment() -> SegmentRecord:
    """Ten seconds with two frames."""
    return SegmentRecord(
        0.0,
        10.0,
        np.eye(1, EMBEDDING_DIM, dtype=np.float32)[0],
        np.zeros((NUM_FRAMES, EMBEDDING_DIM), np.float16),
        NUM_FRAMES,
        np.array([0.0, 5.0]),
    )


def add_video(
    catalog: Any, id: str, content: bytes | None = None, *, finish_job: str | None = None, **fields: Any
) -> str:
    """Put a video of ten seconds into the catalog; `content` stands for its file's bytes.

    finish_job: a running job that ends with it.
    """
    content = id.encode() if content is None else content
    given = {"title": f"title of {id}", "size_bytes": len(content), "codec": "h264"}
    values: dict[str, Any] = {**given, **fields}
    video = NewVideo(
        id=id,
        content_sha256=hashlib.sha256(content).hexdigest(),
        segments=[segment()],
        duration_seconds=10.0,
        width=64,
        height=48,
        frame_rate=25.0,
        **values,
    )
    with catalog.transaction() as transaction:
        video_id: str = catalog.add_video(video, transaction).video_id
        if finish_job is not None:
            catalog.jobs.finish(finish_job, video_id, transaction=transaction)
    return video_id


def fold(results: Sequence[SearchResult]) -> list[SearchResult]:
    """Those of the same `looks` in their metadata as one."""
    stay: dict[Any, SearchResult] = {}
    for result in results:
        first = stay.setdefault(result.metadata.get("looks", result.id), result)
        if first is not result:
            copies = [*first.copies, Copy(result.id, result.segment_id, 0.99)]
            stay[result.metadata["looks"]] = replace(first, copies=copies, num_copies=len(copies))
    return list(stay.values())


class FakeSearcher:
    """Answers every search with the newest videos. `hold` makes searches wait, `error` makes them fail."""

    def __init__(self, catalog: Any) -> None:
        self.catalog = catalog
        self.queries: list[SearchQuery] = []
        self.hold: threading.Event | None = None
        self.error: Exception | None = None
        self.ranked: list[list[str]] = []
        self.similar_calls: list[tuple[str, int, int, Any]] = []
        self.media_bytes: list[bytes] = []
        self.media_queries: list[SimilarQuery] = []

    def encode(self, texts: Sequence[str]) -> None:
        """Nothing: `search` looks at no text."""

    def search(self, query: SearchQuery, encoded: None = None) -> SearchAnswer:
        self.queries.append(query)
        if self.hold is not None:
            self.hold.wait(10)
        if self.error is not None:
            raise self.error
        records = self.catalog.list_videos(query.limit)
        results = [
            SearchResult(
                id=record.id,
                segment_id=rank,
                rank=rank,
                score=10.0 / rank,
                scores={"video_sentence": 1.5, "video_word": None, "sentence_frame": 2.5, "frame_word": None},
                title=record.title,
                uri=record.uri,
                duration_seconds=record.duration_seconds,
                recorded_at=record.recorded_at,
                media_start_seconds=record.media_start_seconds,
                metadata=record.metadata,
                segment=Segment(0.0, 10.0),
                moments=[Moment(5.0, 3.0), Moment(0.0, 1.0)],
                explanation=Explanation(["a"], [0.0], [[0.5]]) if query.explain else None,
                percentile=99.5,
            )
            for rank, record in enumerate(records, start=1)
        ]
        if query.fold:
            results = fold(results)
        return SearchAnswer(query.text, query.mode, self.catalog.num_videos, False, [], TIMINGS, results)

    def search_all(self, queries: Sequence[SearchQuery], encoded: None = None) -> SearchAnswers:
        return SearchAnswers([self.search(query) for query in queries], TIMINGS)

    def similar(self, video_id: str, **options: Any) -> SimilarAnswer:
        """All other videos, the newest first."""
        self.catalog.get_video(video_id)
        query = SimilarQuery(**options)
        self.similar_calls.append((video_id, query.limit, query.offset, query.filter))
        results = self.search(SearchQuery("x", limit=query.limit, fold=query.fold)).results
        others = [result for result in results if result.id != video_id]
        return SimilarAnswer(
            video_id,
            self.catalog.num_videos,
            [
                replace(result, rank=rank, scores=dict.fromkeys(result.scores), percentile=None)
                for rank, result in enumerate(others, start=1)
            ],
        )

    def search_media(self, media: QueryMedia, **options: Any) -> SimilarAnswer:
        """All videos, the newest first."""
        query = SimilarQuery(**options)
        self.media_queries.append(query)
        results = self.search(SearchQuery("x", limit=query.limit, fold=query.fold)).results
        blank = [replace(r, scores=dict.fromkeys(r.scores), percentile=None) for r in results]
        return SimilarAnswer(None, self.catalog.num_videos, blank, media.warnings)

    def rank_texts(
        self, video_id: str, texts: Sequence[str], *, warn_of: Sequence[str] | None = None
    ) -> TextsAnswer:
        """The texts in the order of their length, the longest first. The warning counts what it is about."""
        self.ranked.append(list(texts))
        num_warned_of = len(texts if warn_of is None else warn_of)
        warnings = [f"{num_warned_of} texts"] if num_warned_of else []
        self.catalog.get_video(video_id)
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        results = [
            RankedText(
                rank=rank,
                index=position,
                text=texts[position],
                score=float(len(texts[position])),
                scores={"video_sentence": 1.5, "video_word": None, "sentence_frame": 2.5, "frame_word": None},
                percentile=50.0,
                segment=Segment(0.0, 10.0),
                moments=[Moment(5.0, 3.0)],
            )
            for rank, position in enumerate(order, start=1)
        ]
        return TextsAnswer(video_id, warnings, TextTimings(0.1, 0.2, 0.3), results)

    def stats(self) -> dict[str, Any]:
        return {"answers": len(self.queries)}

    def close(self) -> None:
        self.catalog.close()


class Service:
    """An application around a FakeSearcher, and a client that gets 500s as answers, not as exceptions."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.catalog = make_catalog(directory)
        self.searcher = FakeSearcher(self.catalog)
        self.settings = Settings(index=directory, start_worker=False, **settings)
        self.pictures: list[tuple[Path, float, int]] = []
        self.picture_error: Exception | None = None
        self.clips: list[tuple[Path, float]] = []
        self.app: FastAPI = create_app(
            self.settings,
            searcher=self.searcher,  # type: ignore[arg-type]
            decoders=self.decoders,
        )
        self.client = TestClient(self.app, raise_server_exceptions=False)

    @property
    def decoders(self) -> Decoders:
        return Decoders(self.take_picture, self.make_clip, self.read_media)

    @property
    def job_queue(self) -> JobQueue:
        return JobQueue(self.catalog)

    def take_picture(self, path: Path, time_seconds: float, width: int) -> bytes:
        self.pictures.append((path, time_seconds, width))
        if self.picture_error is not None:
            raise self.picture_error
        return b"a picture of " + path.name.encode()

    def read_media(self, path: Path, searcher: Any) -> QueryMedia:
        if self.picture_error is not None:
            raise self.picture_error
        self.searcher.media_bytes.append(path.read_bytes())
        return QueryMedia([], ["a warning"])

    def make_clip(self, path: Path, time_seconds: float) -> bytes:
        self.clips.append((path, time_seconds))
        if self.picture_error is not None:
            raise self.picture_error
        return b"a clip of " + path.name.encode()


@contextlib.contextmanager
def running(directory: Path, **settings: Any) -> Iterator[Service]:
    """A started Service; stopped at the end."""
    service = Service(directory, **settings)
    with service.client:
        yield service
    service.catalog.close()


@contextlib.contextmanager
def working(service: Service, read: Callable[[Path, threading.Event], NewVideo]) -> Iterator[None]:
    """A worker of the service, once that has started; it reads videos by `read`."""
    stop = threading.Event()

    def work() -> None:
        while service.app.state.service is None and not stop.is_set():
            time.sleep(0.01)
        if service.app.state.service is not None:
            settings = Settings(index=service.directory, poll_seconds=0.01)
            Worker(settings, service.catalog, service.app.state.service.media_store, read).run(stop)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()
