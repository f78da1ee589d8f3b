"""Videos from the web: POST /videos with an address, and the worker's half that fetches them."""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from indexer.maintenance.backup import backup, restore
from indexer.store.job import Job
from indexer.store.records import NewVideo
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.jobs import JobQueue
from service.ingest.web import download as url_download
from service.ingest.web import fetching as url_fetching
from service.ingest.web.fetching import Fetcher
from service.ingest.web.policy import REFUSED
from service.ingest.worker import FETCHING_OFF_REASON, Worker
from service.ingest.worker_process import fetching_where_on
from service.settings import Settings
from tests.faults.dying_worker import read_by_rote
from tests.support.catalog_builders import enqueue
from tests.support.servers.service_fakes import Service, add_video, running
from tests.support.servers.web_server import WebServer, by_path, dripping, reply, serving

MP4 = b"\x00\x00\x00\x18ftypmp42" + bytes(1000)
URI = "https://videos.example/films/a%20dog.mp4?signature=secret"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running(
        tmp_path / "index", url_ingest=True, url_allowed_hosts=("127.0.0.1",), wait_limit_seconds=0.2
    ) as service:
        yield service


def post(service: Service, uri: str, *, query: str = "", **fields: Any) -> Any:
    return service.client.post(f"/videos{query}", json={"uri": uri, **fields})


# The server's half


def test_it_is_turned_off_unless_turned_on(tmp_path: Path) -> None:
    with running(tmp_path / "index") as service:
        response = post(service, URI)
        assert response.status_code == 403 and "XCLIP_URL_INGEST" in response.json()["detail"]
        assert service.job_queue.list_jobs() == []


def test_an_address_becomes_a_job_whose_file_is_still_to_be_fetched(service: Service) -> None:
    response = post(service, URI, metadata={"year": 2024})
    assert response.status_code == 202
    answer = response.json()["job"]
    assert response.headers["location"] == f"/jobs/{answer['id']}" and "secret" not in response.text
    assert (answer["state"], answer["title"], answer["received_bytes"]) == ("queued", "a dog", None)
    job = service.job_queue.get(answer["id"])
    assert job.is_unfetched and job.uri == URI and job.metadata == {"year": 2024}
    assert not Path(job.source_path).exists()
    assert Path(job.source_path).parent == service.directory / "uploads"


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "http://127.0.0.2/",
            "http://localhost:22/",
            "http://0x7f.1/",
            "http://[::1]/",
            "https://u:p@a.example/",
        ),
        *("http://169.254.169.254/latest/", "http:///etc/passwd", "HTTPS://10.0.0.1/", "http:relative"),
    ],
)
def test_an_address_that_may_not_be_asked_is_refused_and_not_repeated(service: Service, uri: str) -> None:
    response = post(service, uri)
    assert response.status_code == 403 and response.json()["type"].endswith("uri-not-allowed")
    assert uri not in response.text and "10.0.0.1" not in response.text
    assert service.job_queue.list_jobs() == []


def test_a_video_from_the_web_has_no_id_of_the_clients(service: Service) -> None:
    response = post(service, URI, id="mine")
    assert response.status_code == 422 and response.json()["errors"][0]["field"] == "id"


def test_the_same_address_again_is_the_same_job_while_that_is_open(service: Service) -> None:
    first = post(service, URI).json()
    assert post(service, URI, title="other").json() == first
    assert post(service, URI + "2").json()["job"]["id"] != first["job"]["id"]
    service.job_queue.cancel(first["job"]["id"])
    assert post(service, URI).json()["job"]["id"] != first["job"]["id"]


def test_jobs_that_wait_to_be_fetched_count_as_waiting(tmp_path: Path) -> None:
    with running(tmp_path / "index", url_ingest=True, max_queued_jobs=1) as service:
        assert post(service, URI).status_code == 202
        assert post(service, URI + "2").status_code == 503


# The worker's half


class Bench:
    """A worker with its fetchers, against a server on this machine that every name stands for."""

    def __init__(self, service: Service, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.service, self.server = service, server
        self.queue, self.store = service.job_queue, service.app.state.service.media_store
        self.settings = Settings(
            index=service.directory,
            url_ingest=True,
            url_allowed_hosts=("127.0.0.1",),
            url_ports=(server.port,),
            poll_seconds=0.01,
            lease_seconds=0.9,
            worker_grace_seconds=0.1,
            upload_limit_bytes=100_000,
        )
        # The service was made before the server's port was known.
        object.__setattr__(service.settings, "url_ports", (server.port,))
        monkeypatch.setattr(url_fetching, "POLL_SECONDS", 0.05)
        monkeypatch.setattr(url_download, "POLL_SECONDS", 0.02)
        monkeypatch.setattr(
            url_fetching.Fetcher.__init__,
            "__defaults__",
            (lambda *arguments: url_download.download(*arguments, resolve=self.resolve),),
        )
        self.read: Callable[[Path], NewVideo] = read_by_rote
        self.stop = threading.Event()

    def resolve(self, host: str, port: int) -> list[Any]:
        return [ipaddress.ip_address("10.0.0.1" if host.startswith("inside") else "127.0.0.1")]

    def post(self, path: str, **fields: Any) -> Job:
        uri = path if "://" in path else self.server.url(path)
        response = post(self.service, uri, **fields)
        assert response.status_code == 202, response.text
        return self.queue.get(response.json()["job"]["id"])

    def start(self) -> threading.Thread:
        def work() -> None:
            with fetching_where_on(self.settings, self.service.catalog, self.store, self.stop):
                worker = Worker(
                    self.settings, self.service.catalog, self.store, lambda path, cancelled: self.read(path)
                )
                worker.run(self.stop)

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def run(self) -> None:
        thread = self.start()
        try:
            self.wait(lambda: all(job.ended for job in self.queue.list_jobs()))
        finally:
            self.stop.set()
            thread.join()
            self.stop.clear()

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def files(self) -> list[str]:
        folders = (self.store.uploads_directory, self.store.media_directory)
        return sorted(path.name for folder in folders for path in folder.iterdir())


@pytest.fixture
def bench(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    answers = {"/a.mp4?signature=secret": reply(MP4), "/b.mp4": reply(MP4), "/c.mp4": reply(MP4 + b"c")}
    with serving(by_path(answers)) as server:
        bench = Bench(service, server, monkeypatch)
        yield bench
        bench.stop.set()
        server.is_stopped.set()


def test_a_fetched_file_becomes_a_video_whose_address_is_shown_without_its_signature(bench: Bench) -> None:
    job = bench.post("/a.mp4?signature=secret", metadata={"k": 1})
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.video_id, ended.attempts) == ("done", job.video_id, 1)
    answer = bench.service.client.get(f"/videos/{job.video_id}").json()
    assert (answer["title"], answer["metadata"]) == ("a", {"k": 1})
    assert answer["uri"] == bench.server.url("/a.mp4")
    assert answer["content_sha256"] == hashlib.sha256(MP4).hexdigest()
    assert bench.service.client.get(f"/videos/{job.video_id}/media").content == MP4
    assert bench.files() == [f"{job.video_id}.mp4"]
    assert bench.service.client.delete(f"/videos/{job.video_id}").status_code == 204 and bench.files() == []


def test_bytes_that_are_known_lead_to_the_video_that_has_them(bench: Bench) -> None:
    add_video(bench.service.catalog, "old", MP4)
    job = bench.post("/b.mp4")
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.video_id) == ("done", "old") and bench.files() == []


def test_two_addresses_of_the_same_bytes_make_one_video(bench: Bench) -> None:
    jobs = [bench.post("/b.mp4"), bench.post("/a.mp4?signature=secret"), bench.post("/c.mp4")]
    bench.run()
    ids = [bench.queue.get(job.id).video_id for job in jobs]
    assert ids[0] == ids[1] != ids[2] and bench.service.catalog.num_videos == 2
    assert bench.files() == sorted(f"{video_id}.mp4" for video_id in {ids[0], ids[2]})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.mp4", "the server at this address answers 404 (not found)"),
        ("http://inside.example:{port}/a.mp4", REFUSED),
    ],
)
def test_a_failed_download_fails_the_job_with_its_reason_and_leaves_nothing(
    bench: Bench, path: str, reason: str
) -> None:
    job = bench.post(path.format(port=bench.server.port))
    bench.run()
    ended = bench.queue.get(job.id)
    assert (ended.state, ended.reason, ended.attempts) == ("failed", reason, 1) and bench.files() == []


def test_a_fetched_file_that_is_no_video_fails_as_an_upload_does(bench: Bench) -> None:
    from indexer.errors import NotAVideoError

    def refuse(path: Path) -> NewVideo:
        raise NotAVideoError("text, not a video")

    bench.read = refuse
    job = bench.post("/b.mp4")
    bench.run()
    assert bench.queue.get(job.id).reason == "text, not a video" and bench.files() == []


def test_a_file_above_the_limit_is_not_kept(bench: Bench) -> None:
    bench.server.answer = reply(bytes(100_001), length=False)
    job = bench.post("/b.mp4")
    bench.run()
    assert bench.queue.get(job.id).reason == url_download.TOO_LARGE and bench.files() == []


def test_an_internal_error_is_not_shown_to_the_client(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(url_fetching.Fetcher.__init__, "__defaults__", (fail,))
    job = bench.post("/b.mp4")
    bench.run()
    assert bench.queue.get(job.id).reason == url_fetching.INTERNAL_REASON


def hold(bench: Bench) -> None:
    """The server sends 20,000 bytes and then nothing more."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + bytes(20_000)
    bench.server.answer = dripping(head, b"", 0.02, bench.server.is_stopped.is_set)


def test_a_slow_download_is_seen_in_the_job_and_holds_up_no_upload(bench: Bench) -> None:
    hold(bench)
    slow = bench.post("/b.mp4")
    thread = bench.start()
    bench.wait(lambda: bench.queue.get(slow.id).state == "running")
    upload = bench.store.new_upload_path()
    upload.write_bytes(MP4)
    here = enqueue(bench.queue, None, str(upload), delete_source=True)
    bench.wait(lambda: bench.queue.get(here.id).state == "done")
    client = bench.service.client
    bench.wait(lambda: client.get(f"/jobs/{slow.id}").json()["received_bytes"] is not None)
    time.sleep(1.2)  # Longer than the lease, which the download renews.
    assert bench.queue.get(slow.id).state == "running" and bench.queue.get(slow.id).attempts == 1
    bench.stop.set()
    thread.join()


def test_cancelling_ends_the_download_soon_and_leaves_nothing(bench: Bench) -> None:
    hold(bench)
    job = bench.post("/b.mp4")
    thread = bench.start()
    bench.wait(lambda: len(bench.files()) == 1)
    assert bench.service.client.delete(f"/jobs/{job.id}").json()["state"] == "failed"
    bench.wait(lambda: bench.files() == [])
    bench.stop.set()
    thread.join()
    assert bench.queue.get(job.id).reason == "cancelled"


def test_a_stop_puts_the_job_back_and_the_next_worker_fetches_it(bench: Bench) -> None:
    hold(bench)
    job = bench.post("/b.mp4")
    thread = bench.start()
    bench.wait(lambda: len(bench.files()) == 1)
    bench.stop.set()
    thread.join()
    assert bench.queue.get(job.id).state == "queued" and bench.files() == []
    bench.stop.clear()
    bench.server.answer = reply(MP4)
    bench.run()
    assert bench.queue.get(job.id).state == "done"


def test_a_worker_that_died_between_the_file_and_the_note_of_it_costs_nothing(bench: Bench) -> None:
    job = bench.post("/b.mp4")
    Path(job.source_path).write_bytes(b"whatever an earlier attempt left")
    bench.run()
    assert bench.queue.get(job.id).state == "done"
    assert bench.service.catalog.get_video(job.video_id).content_sha256 == hashlib.sha256(MP4).hexdigest()


def test_where_it_was_turned_off_since_the_job_says_so(bench: Bench) -> None:
    job = bench.post("/b.mp4")
    bench.settings = Settings(index=bench.service.directory, poll_seconds=0.01)
    bench.run()
    assert bench.queue.get(job.id).reason == FETCHING_OFF_REASON


def test_a_fetcher_that_cannot_go_on_ends_the_worker_so_that_another_is_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(Fetcher, "_process", fail)
    bench.post("/b.mp4")
    bench.start().join(10)
    assert bench.stop.is_set()


def test_a_job_that_waits_to_be_fetched_outlives_a_backup(service: Service, tmp_path: Path) -> None:
    job_id = post(service, URI).json()["job"]["id"]
    backup(service.directory, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "restored")
    with Catalog.open(tmp_path / "restored") as catalog:
        job = JobQueue(catalog).get(job_id)
        assert job.is_unfetched and Path(job.source_path).parent == tmp_path / "restored" / "uploads"
