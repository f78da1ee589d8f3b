"""The page in a real browser: search, shareable addresses, moments, playing, uploading, errors."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from browser import Browser, find_browser
from service_fakes import FakeSearcher, add_video, make_catalog
from video_files import write_numbered_video

from indexer.job_queue import JobQueue
from service.app import create_app
from service.settings import ServiceSettings

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> 🐕 \u202eright to left"


class Site:
    """A served index of two videos, one of them playable, and where it is served."""

    def __init__(self, directory: Path) -> None:
        self.catalog = make_catalog(directory / "index")
        self.job_queue = JobQueue(self.catalog)
        self.searcher = FakeSearcher(self.catalog)
        path = write_numbered_video(directory / "a.webm", 100, rate=10, codec="libvpx")
        add_video(self.catalog, "gone", uri="/nowhere.mp4", title="its file is gone")
        add_video(self.catalog, "a", path.read_bytes(), uri=str(path), title=HOSTILE)
        settings = ServiceSettings(directory / "index")
        app = create_app(settings, searcher=self.searcher)  # type: ignore[arg-type]
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        self.address = ""

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    with site.served():
        yield site


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(program, tmp_path / "profile") as browser:
        yield browser


def text(browser: Browser, selector: str) -> str:
    value = browser.evaluate(f"document.querySelector({selector!r}).innerText")
    assert isinstance(value, str)
    return value


def test_the_newest_videos_are_shown_before_any_search(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    browser.wait_for("document.querySelectorAll('.card').length === 2")
    assert text(browser, "#status") == "Newest videos"
    browser.wait_for("document.querySelector('.card img').naturalWidth > 0")
    browser.wait_for("document.querySelectorAll('.picture.blank').length === 1")  # Its file is gone.


def test_a_search_has_an_address_that_can_be_shared_and_left_again(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    browser.wait_for("document.querySelectorAll('.card').length === 2")
    browser.evaluate("document.querySelector('#query').value = 'ein Hund & 🐕'")
    browser.evaluate("document.querySelector('#search').requestSubmit()")
    browser.wait_for("document.querySelectorAll('.moments a').length === 4")
    assert site.searcher.queries[-1].text == "ein Hund & 🐕"
    address = browser.evaluate("location.href")
    browser.open("about:blank")
    browser.open(address)
    browser.wait_for("document.querySelectorAll('.moments a').length === 4")
    assert browser.evaluate("document.querySelector('#query').value") == "ein Hund & 🐕"
    assert "2 videos" in text(browser, "#status")
    browser.evaluate("history.go(-2)")
    browser.wait_for("document.querySelector('#status')?.innerText === 'Newest videos'")
    assert not browser.problems


def test_what_comes_from_outside_is_shown_as_text(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=%3Cb%3Ex%3C/b%3E")
    browser.wait_for("document.querySelectorAll('.card').length === 2")
    assert browser.evaluate("document.querySelector('.title').textContent") == HOSTILE
    assert browser.evaluate("document.title").startswith("<b>x</b>")
    assert browser.evaluate("document.querySelectorAll('.title img, #status b').length") == 0


def test_a_click_plays_the_video_from_the_moment(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    browser.wait_for("document.querySelectorAll('.card').length === 2")
    browser.evaluate("document.querySelector('.picture').click()")
    browser.wait_for("video.readyState >= 2 && video.currentTime >= 5 && !video.paused")
    browser.evaluate("[...document.querySelectorAll('#player-moments a')][0].click()")
    browser.wait_for("video.currentTime < 4")
    browser.evaluate("document.querySelector('#player-close').click()")
    assert browser.evaluate("document.querySelector('#player').open") is False
    assert not browser.problems


def test_a_video_that_cannot_be_played_says_so(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    browser.wait_for("document.querySelectorAll('.card').length === 2")
    browser.evaluate("document.querySelectorAll('.picture')[1].click()")
    browser.wait_for("!document.querySelector('#video-error').hidden")


def test_an_upload_shows_how_its_job_goes(site: Site, browser: Browser, tmp_path: Path) -> None:
    names = ("good.mp4", "bad.mp4")
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    browser.open(f"{site.address}/?q=x")
    browser.wait_for("document.querySelectorAll('.card').length === 2")
    browser.choose_files("#files", [tmp_path / name for name in names])
    browser.wait_for("document.querySelector('#jobs .state').innerText === 'waiting for a worker'")
    job = site.job_queue.lease("worker", 60)
    assert job is not None and job.title == "good"
    browser.wait_for("document.querySelector('#jobs .state').innerText === 'being read'")
    site.job_queue.finish(job.id, job.video_id)
    browser.wait_for("document.querySelector('#jobs .done')?.innerText.includes('ready to be found')")
    browser.wait_for("document.querySelectorAll('#jobs .state')[1].innerText === 'waiting for a worker'")
    job = site.job_queue.lease("worker", 60)
    assert job is not None
    site.job_queue.fail(job.id, "a PNG image, not a video")
    browser.wait_for("document.querySelector('#jobs .failed')?.innerText.includes('a PNG image')")
    assert not browser.problems


def test_an_error_is_told_and_the_next_search_works(site: Site, browser: Browser) -> None:
    site.searcher.error = RuntimeError("broken")
    try:
        browser.open(f"{site.address}/?q=x")
        browser.wait_for("document.querySelector('#status').classList.contains('bad')")
        assert "went wrong" in text(browser, "#status")
    finally:
        site.searcher.error = None
    browser.evaluate("document.querySelector('#search').requestSubmit()")
    browser.wait_for("document.querySelectorAll('.card').length === 2")


@pytest.mark.parametrize("width", [320, 390, 800, 1400])
def test_nothing_is_wider_than_the_screen(site: Site, browser: Browser, width: int) -> None:
    browser.look(width, 800)
    browser.open(f"{site.address}/?q=x")
    browser.wait_for("document.querySelectorAll('.card').length === 2")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_the_api_page_lists_the_endpoints(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/docs")
    browser.wait_for("document.querySelectorAll('#operations details').length > 10")
    assert not browser.problems
