"""Slow uploads delay no other request, and survive a reindexing meanwhile."""

from __future__ import annotations

import concurrent.futures
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexer.store.sqlite.jobs import JobQueue
from service.routes import ingest
from tests.support.servers.service_fakes import FakeSearcher, make_catalog, running

FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nbytes\r\n--b--\r\n'
HEADERS = [(b"content-type", b"multipart/form-data; boundary=b")]
SCOPE = {"type": "http", "method": "POST", "path": "/videos", "query_string": b"", "headers": HEADERS}


def test_files_that_are_slow_to_read_hold_up_neither_searches_nor_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, started = threading.Event(), threading.Semaphore(0)
    really_hash = ingest._hash_file

    def hash_slowly(path: Path, limit_bytes: int) -> str:
        started.release()
        release.wait(30)
        return really_hash(path, limit_bytes)

    monkeypatch.setattr(ingest, "_hash_file", hash_slowly)
    (tmp_path / "a.mp4").write_bytes(b"bytes")
    num_posts = 60  # More than the event loop has threads.
    with (
        running(tmp_path / "index", allowed_roots=(tmp_path,)) as service,
        concurrent.futures.ThreadPoolExecutor(num_posts + 1) as pool,
    ):
        try:
            body = {"uri": str(tmp_path / "a.mp4")}
            posts = [pool.submit(service.client.post, "/videos", json=body) for _ in range(num_posts)]
            while started.acquire(timeout=1):  # Until no more of them begin.
                pass
            for path in ("/healthz", "/readyz", "/stats", "/videos"):
                assert pool.submit(service.client.get, path).result(10).status_code == 200
            search = pool.submit(service.client.post, "/search", json={"query": "x"})
            assert search.result(10).status_code == 200
        finally:
            release.set()
        assert {post.result(30).status_code for post in posts} == {202}


def test_a_large_incomplete_file_is_not_deleted_by_the_thread_that_answers_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted_by: list[int] = []
    unlink = Path.unlink

    def note(path: Path, *args: Any, **options: Any) -> None:
        deleted_by.append(threading.get_ident())
        unlink(path, *args, **options)

    with running(tmp_path / "index") as service:
        monkeypatch.setattr(Path, "unlink", note)
        messages: list[Any] = [
            {"type": "http.request", "body": FORM[:-4], "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None: ...

        assert service.client.portal is not None
        service.client.portal.call(service.app, SCOPE, receive, send)
        event_loop_thread = service.client.portal.call(threading.get_ident)
        assert list((service.directory / "uploads").iterdir()) == []
        assert len(deleted_by) == 1 and event_loop_thread not in deleted_by


def test_an_upload_under_way_while_the_index_is_reindexed_is_accepted(tmp_path: Path) -> None:
    with running(tmp_path / "index") as service:
        new = make_catalog(tmp_path / "new")
        sent: list[Any] = []

        async def receive() -> Any:
            former = service.app.state.service
            service.app.state.service = replace(
                former,
                catalog=new,
                searcher=FakeSearcher(new),  # type: ignore[arg-type]
                job_queue=JobQueue(new),
            )
            former.searcher.close()
            return {"type": "http.request", "body": FORM, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        assert service.client.portal is not None
        service.client.portal.call(service.app, SCOPE, receive, send)
        assert sent[0]["status"] == 202
        (job,) = JobQueue(new).list_jobs()
        assert Path(job.source_path).read_bytes() == b"bytes"
        new.close()
