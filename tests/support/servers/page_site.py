"""A served page for tests in a browser: real files, catalog and queue, a searcher with fixed answers."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn

from indexer.search.types import (
    Moment,
    SearchAnswer,
    SearchQuery,
    SimilarAnswer,
    SimilarQuery,
    TextHit,
    as_filter,
)
from indexer.store.filters import Filter, parse_filter
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from model.preprocessing import Resizing
from service.app import create_app
from service.settings import Settings
from tests.support.servers.browser import Browser
from tests.support.servers.service_fakes import FakeSearcher, add_video, make_catalog
from tests.support.video_files import write_numbered_video

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> 🐕 \u202eright to left"
PERCENTILE = 99.4
TEXT_HITS = [TextHit("transcript", HOSTILE, 4.0, 5.0, "en"), TextHit("title", HOSTILE)]


class PageSearcher(FakeSearcher):
    """Answers with the newest videos, page by page; videos like one are all others."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self.warnings: list[str] = []
        self.filters: list[Filter | None] = []
        self.model = SimpleNamespace(config=SimpleNamespace(resizing=Resizing(32)))

    def search(self, query: SearchQuery, encoded: None = None) -> SearchAnswer:
        self.filters.append(as_filter(query.filter))
        everything = super().search(replace(query, limit=1000, offset=0))
        # Of all filters, only that of one id is applied.
        only = {parse_filter({"id": r.id}): r.id for r in everything.results}.get(as_filter(query.filter))
        moments = [Moment(5.0, 3.0), Moment(0.0, 1.0), Moment(2.0, 2.0), Moment(8.0, 0.5)]
        found = [
            replace(
                result,
                moments=moments[: query.num_moments],
                percentile=PERCENTILE,
                text_hits=[] if query.text_match == "off" else TEXT_HITS,
            )
            for result in everything.results
            if only is None or result.id == only
        ]
        page = found[query.offset : query.num_wanted]
        return replace(everything, results=page, warnings=self.warnings)

    def stats(self) -> dict[str, Any]:
        return {"language": "English"}

    def similar(self, video_id: str, **options: Any) -> SimilarAnswer:
        query = SimilarQuery(**options)
        self.catalog.get_video(video_id)
        answer = super().search(SearchQuery("x", limit=1000, fold=query.fold))
        nothing = dict.fromkeys(("video_sentence", "video_word", "sentence_frame", "frame_word"))
        others = [
            replace(result, score=0.5, scores=nothing) for result in answer.results if result.id != video_id
        ]
        return SimilarAnswer(video_id, answer.num_videos, others[query.offset : query.offset + query.limit])


class Site:
    """A served index, and where it is. `close` it, or use `served`."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.catalog = make_catalog(directory / "index")
        self.job_queue = JobQueue(self.catalog)
        self.searcher = PageSearcher(self.catalog)
        self.app = create_app(
            Settings(index=directory / "index", **settings),
            searcher=self.searcher,  # type: ignore[arg-type]
        )
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, port=0, log_level="warning", proxy_headers=False)
        )
        self.address = ""

    def add_file(self, id: str, ending: str, codec: str, *, rotation_degrees: int = 0, **fields: Any) -> None:
        """A video of ten seconds whose file is there."""
        path = self.directory / f"{id}.{ending}"
        write_numbered_video(path, 100, rate=10, codec=codec, rotation_degrees=rotation_degrees)
        catalog_codec = {"libvpx": "vp8", "libx264": "h264"}.get(codec, codec)
        add_video(self.catalog, id, path.read_bytes(), uri=str(path), codec=catalog_codec, **fields)

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Serve until the end of the block."""
        thread = threading.Thread(target=self.server.run)
        thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        yield
        self.server.should_exit = True
        thread.join()
        self.catalog.close()


def text(browser: Browser, selector: str) -> str:
    """What is to be read in an element."""
    value = browser.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")
    assert isinstance(value, str)
    return value


def click(browser: Browser, selector: str) -> None:
    """Click on the first element."""
    browser.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def focused(browser: Browser) -> str:
    """Tag, id and class of what has the focus."""
    value = browser.evaluate(
        "(({tagName, id, className}) => [tagName, id, className].join(' '))(document.activeElement)"
    )
    assert isinstance(value, str)
    return value


def wait_for_cards(browser: Browser, num_cards: int) -> None:
    """Until this many videos are shown."""
    browser.wait_for(f"document.querySelectorAll('.card:not(.waiting)').length === {num_cards}")
