"""Searching by a picture or a clip on the page: chosen, dropped or pasted."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.servers.browser import Browser
from tests.support.servers.page_site import Site, click, text, wait_for_cards
from tests.support.video_files import write_coloured_video

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    for name in ("a", "b"):
        site.add_file(name, "webm", "libvpx", title=f"film {name}")
    with site.served():
        yield site


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 20, 20)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    (tmp_path / "beach.png").write_bytes(png())
    return tmp_path / "beach.png"


def open_page(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    wait_for_cards(browser, 2)


def wait_for_answer(browser: Browser, name: str) -> None:
    expected = json.dumps(f"Videos that look like “{name}”")
    browser.wait_for(f"document.querySelector('#status').innerText === {expected}", 20)
    wait_for_cards(browser, 2)


def test_a_chosen_picture_finds_videos_and_back_leads_back(
    site: Site, browser: Browser, picture: Path
) -> None:
    open_page(site, browser)
    browser.choose_files("#media-file", [picture])
    wait_for_answer(browser, "beach.png")
    assert "Looks like “beach.png”" in text(browser, "#chips")
    click(browser, ".card .picture")
    browser.wait_for("document.querySelector('#player').open")
    browser.press("Escape")
    browser.evaluate("history.back()")
    browser.wait_for("document.querySelector('#status').innerText === 'Newest videos'", 20)
    browser.evaluate("history.forward()")
    wait_for_answer(browser, "beach.png")


def test_a_clip_is_searched_with_too(site: Site, browser: Browser, tmp_path: Path) -> None:
    write_coloured_video(tmp_path / "clip.mp4", (20, 20, 200), 2)
    open_page(site, browser)
    browser.choose_files("#media-file", [tmp_path / "clip.mp4"])
    wait_for_answer(browser, "clip.mp4")


def test_a_dropped_picture_is_searched_with_and_not_uploaded(
    site: Site, browser: Browser, picture: Path
) -> None:
    open_page(site, browser)
    browser.drop_files("main", [picture])
    wait_for_answer(browser, "beach.png")
    assert not site.job_queue.list_jobs()


def test_a_pasted_picture_is_searched_with(site: Site, browser: Browser) -> None:
    open_page(site, browser)
    data = base64.b64encode(png()).decode()
    browser.evaluate(
        f"""(() => {{
            const bytes = Uint8Array.from(atob("{data}"), (letter) => letter.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "image.png", {{ type: "image/png" }}));
            document.querySelector("#query").dispatchEvent(
              new ClipboardEvent("paste", {{ clipboardData, bubbles: true, cancelable: true }}));
        }})()"""
    )
    wait_for_answer(browser, "image.png")


def test_an_address_of_a_former_visit_says_that_the_file_is_gone(
    site: Site, browser: Browser, picture: Path
) -> None:
    open_page(site, browser)
    browser.choose_files("#media-file", [picture])
    wait_for_answer(browser, "beach.png")
    address = browser.evaluate("location.href")
    browser.open("about:blank")
    browser.open(address)
    browser.wait_for("document.querySelector('#notice h2')?.innerText === 'No longer available'")
    assert "Choose a file" in text(browser, "#notice")


def test_a_file_that_is_no_picture_says_so(site: Site, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("words")
    open_page(site, browser)
    browser.choose_files("#media-file", [tmp_path / "words.png"])
    browser.wait_for(
        "document.querySelector('#notice h2')?.innerText === 'This file cannot be searched with'"
    )
    browser.problems.clear()  # Of the console: the answer 422 is what was asked for.
    browser.failed_requests.clear()
