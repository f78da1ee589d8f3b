"""The page in a real browser: searching, shareable addresses, filters, moments, playing, errors."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.store.filters import parse_filter
from tests.support.servers.browser import Browser
from tests.support.servers.page_site import HOSTILE, Site, click, text, wait_for_cards
from tests.support.servers.service_fakes import add_video

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    add_video(site.catalog, "gone", uri="/nowhere.mp4", title="its file is gone")
    site.add_file("avi", "avi", "mpeg4", title="an old film")
    site.add_file("a", "webm", "libvpx", title=HOSTILE, metadata={HOSTILE: HOSTILE, "camera": "north"})
    with site.served():
        yield site


def search(browser: Browser, query: str) -> None:
    browser.evaluate(f"document.querySelector('#query').value = {json.dumps(query)}")
    browser.evaluate("document.querySelector('#search').requestSubmit()")


def test_the_newest_videos_are_shown_before_any_search(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    wait_for_cards(browser, 3)
    assert text(browser, "#status") == "Newest videos"
    browser.wait_for("document.querySelector('.card img').naturalWidth > 0")
    browser.wait_for("document.querySelectorAll('.picture.blank').length === 1")  # Its file is gone.


def test_a_search_has_an_address_that_can_be_shared_and_left_again(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    wait_for_cards(browser, 3)
    search(browser, "ein Hund & 🐕")
    browser.wait_for("document.querySelectorAll('.timeline button').length === 12")
    assert site.searcher.queries[-1].text == "ein Hund & 🐕"
    click(browser, "#view-list")
    address = browser.evaluate("location.href")
    browser.open("about:blank")
    browser.open(address)
    browser.wait_for("document.querySelectorAll('.timeline button').length === 12")
    assert browser.evaluate("document.querySelector('#query').value") == "ein Hund & 🐕"
    assert browser.evaluate("document.querySelector('#results').className") == "as-list"
    assert "3 videos" in text(browser, "#status")
    browser.evaluate("history.go(-3)")
    browser.wait_for("document.querySelector('#status')?.innerText === 'Newest videos'")


def test_the_search_box_names_the_language_of_the_model(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    browser.wait_for("document.querySelector('#query').placeholder.endsWith(', in English')")
    assert browser.evaluate("document.querySelector('#query').ariaLabel").endswith(", in English")


def test_what_looks_the_same_is_one_card_that_opens_its_copies(site: Site, browser: Browser) -> None:
    for number in range(3):
        add_video(site.catalog, f"copy{number}", title=f"{HOSTILE} {number}", metadata={"looks": "a boat"})
    site.add_file("best", "webm", "libvpx", title="the best copy", metadata={"looks": "a boat"})
    try:
        browser.open(f"{site.address}/?q=a+boat")
        wait_for_cards(browser, 4)
        assert site.searcher.queries[-1].fold is True
        assert text(browser, ".card:first-child .open-copies") == "3 more copies"
        assert not browser.evaluate("document.querySelector('.card:last-child .copies').checkVisibility()")
        click(browser, ".open-copies")
        browser.wait_for("document.querySelectorAll('.copies li').length === 3")
        names = "[...document.querySelectorAll('.copies .name')].map(name => name.textContent).join()"
        assert browser.evaluate(names) == ",".join(f"{HOSTILE} {number}" for number in (2, 1, 0))
        assert browser.evaluate("document.querySelector('.open-copies').ariaExpanded") == "true"
        click(browser, ".copies .copy")
        browser.wait_for("location.search.includes('video=copy2')")
        browser.evaluate("document.querySelector('#player-close').click()")
        click(browser, ".open-copies")
        browser.wait_for("!document.querySelector('.copies ul').checkVisibility()")
        browser.open(f"{site.address}/?q=a+boat&copies=all")
        wait_for_cards(browser, 7)
        assert site.searcher.queries[-1].fold is False
        assert "Copies are shown too" in text(browser, "#chips")
        assert browser.evaluate("document.querySelectorAll('.copies:not([hidden])').length") == 0
        browser.open(f"{site.address}/?like=a")
        wait_for_cards(browser, 3)
        assert text(browser, ".card:first-child .open-copies") == "3 more copies"
    finally:
        for name in ("copy0", "copy1", "copy2", "best"):
            site.catalog.delete_video(name)


def test_what_comes_from_outside_is_shown_as_text(site: Site, browser: Browser) -> None:
    site.searcher.warnings = [HOSTILE]
    try:
        browser.open(f"{site.address}/?q=%3Cb%3Ex%3C/b%3E&meta=%3Ci%3Ek=%3Ci%3Ev&title=%3Cs%3E")
        wait_for_cards(browser, 3)
    finally:
        site.searcher.warnings = []
    click(browser, ".picture")
    browser.wait_for("document.querySelector('#player-details .facts-list:last-child dt')")
    assert browser.evaluate("document.querySelector('.title').textContent") == HOSTILE
    assert browser.evaluate("document.title").startswith("<b>x</b>")
    assert text(browser, "#warnings") == HOSTILE and "<i>k = <i>v" in text(browser, "#chips")
    assert HOSTILE in browser.evaluate("document.querySelector('#player-details').textContent")
    assert browser.evaluate("document.querySelectorAll('b, i, s, img[src=x]').length") == 0
    assert browser.evaluate("document.title") != "owned"


def test_filters_become_chips_an_address_and_a_filter_and_go_again(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    click(browser, "#open-filters")
    values = {"title": "A", "min": "2.5", "max": "90", "since": "2026-01-31", "strong": "99"}
    values |= {"from": "2024-02-29", "until": "2024-12-31"}
    for name, value in {**values, "key": "year", "value": "2024"}.items():
        browser.evaluate(f"document.querySelector('#filters').elements[{name!r}].value = {value!r}")
    browser.evaluate("document.querySelector('#filters').requestSubmit()")
    browser.wait_for("document.querySelectorAll('.chip').length === 8")
    browser.wait_for("document.querySelector('#results').getAttribute('aria-busy') !== 'true'")
    wanted = [
        {"title": {"contains": "A"}},
        {"duration_seconds": {"gte": 2.5}},
        {"duration_seconds": {"lte": 90}},
        {"added_at": {"gte": "2026-01-31"}},
        {"recorded_at": {"gte": "2024-02-29"}},
        {"recorded_at": {"lt": "2025-01-01"}},
        {"metadata.year": {"in": ["2024", 2024]}},
    ]
    assert site.searcher.filters[-1] == parse_filter({"and": wanted})
    assert site.searcher.queries[-1].min_percentile == 99
    assert "meta=year%3D2024" in browser.evaluate("location.search")
    browser.evaluate("[...document.querySelectorAll('.chip button')][0].click()")
    browser.wait_for("document.querySelectorAll('.chip').length === 7")
    assert browser.evaluate("document.activeElement.id") == "open-filters"
    browser.evaluate("document.querySelector('#chips li:last-child button').click()")
    browser.wait_for("document.querySelector('#chips').hidden && location.search === '?q=x'")
    browser.wait_for("document.querySelector('#results').getAttribute('aria-busy') !== 'true'")
    assert site.searcher.filters[-1] is None


def test_words_count_where_that_is_chosen_and_what_is_said_plays_from_there(
    site: Site, browser: Browser
) -> None:
    browser.open(f"{site.address}/?q=x&words=boost")
    wait_for_cards(browser, 3)
    assert site.searcher.queries[-1].text_match == "boost"
    assert browser.evaluate("document.querySelector('.chip').textContent").startswith("Words")
    browser.wait_for("document.querySelector('.hits .link').textContent === 'Said at 0:04'")
    assert browser.evaluate("document.title") != "owned"
    click(browser, ".hits .link")
    browser.wait_for("document.querySelector('#player').open && location.search.includes('t=4')")


def test_a_click_plays_the_video_from_the_moment(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    click(browser, ".picture")
    browser.wait_for("video.readyState >= 2 && video.currentTime >= 5 && !video.paused")
    assert "t=5" in browser.evaluate("location.search")
    click(browser, "#player-timeline button")
    browser.wait_for("video.currentTime < 4")
    assert browser.evaluate("document.querySelectorAll('#player-timeline button').length") == 4
    assert browser.evaluate("document.querySelectorAll('#player-scores .fill').length") == 2  # Two are null.
    assert "0.6 %" in text(browser, "#player-scores")
    click(browser, "#player-close")
    browser.wait_for("!document.querySelector('#player').open && location.search === '?q=x'")


def test_an_address_opens_a_video_at_its_moment(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x&video=a&t=2")
    browser.wait_for("document.querySelector('#player').open && video.currentTime >= 2")
    browser.open(f"{site.address}/?q=x&video=unknown")
    wait_for_cards(browser, 3)
    browser.wait_for("location.search === '?q=x'")


def test_the_words_and_frames_of_a_match_can_be_shown(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x&video=a")
    browser.wait_for("document.querySelector('#player').open")
    click(browser, "#player-words button")
    browser.wait_for("document.querySelector('#player-words table')")
    assert site.searcher.queries[-1].explain and site.searcher.filters[-1] == parse_filter({"id": "a"})


def test_a_file_that_browsers_cannot_play_is_shown_as_a_preview(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    browser.evaluate("document.querySelectorAll('.picture')[1].click()")
    browser.wait_for("video.src.includes('/preview?') && video.readyState >= 2 && !video.paused")
    assert "cannot play this file" in text(browser, "#video-note")
    assert (
        browser.evaluate("document.querySelector('#video-note a').getAttribute('href')")
        == "/videos/avi/media"
    )


def test_a_video_without_its_file_says_so(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    browser.evaluate("document.querySelectorAll('.picture')[2].click()")
    browser.wait_for("document.querySelector('#video-note').innerText.includes('cannot be shown')")


@pytest.mark.parametrize(("place", "part"), [(0, "/media"), (1, "/preview")])
def test_a_picture_plays_muted_while_the_pointer_rests_on_it(
    site: Site, browser: Browser, place: int, part: str
) -> None:
    browser.set_viewport(1200, 900)
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    browser.point(f".card:nth-child({place + 1}) .picture")
    browser.wait_for("document.querySelector('.picture video.playing')?.muted")
    assert part in browser.evaluate("document.querySelector('.picture video').src")
    browser.point("#status")
    browser.wait_for("!document.querySelector('.picture video')")


def test_nothing_plays_by_itself_where_reduced_motion_is_preferred(site: Site, browser: Browser) -> None:
    browser.set_viewport(1200, 900, still=True)
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    browser.point(".picture")
    time.sleep(0.8)
    assert browser.evaluate("document.querySelector('.picture video')") is None


def test_more_like_this_leads_to_other_videos_and_back(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    click(browser, ".similar")
    wait_for_cards(browser, 2)
    assert text(browser, "#status").startswith("Videos like “<img")
    assert browser.evaluate("location.search") == "?like=a"
    click(browser, ".chip button")
    wait_for_cards(browser, 3)
    browser.evaluate("history.go(-2)")
    browser.wait_for("location.search === '?q=x' && document.querySelector('#query').value === 'x'")


def test_more_pages_are_added_until_there_are_no_more(browser: Browser, tmp_path: Path) -> None:
    site = Site(tmp_path)
    for number in range(60):
        add_video(site.catalog, f"video-{number}")
    with site.served():
        for address in (site.address, f"{site.address}/?q=x", f"{site.address}/?like=video-3"):
            browser.open(address)
            wait_for_cards(browser, 24)
            click(browser, "#more")
            wait_for_cards(browser, 48)
            browser.evaluate("document.querySelector('#more').focus()")
            click(browser, "#more")
            wait_for_cards(browser, 59 if "like" in address else 60)
            browser.wait_for("document.querySelector('#more').hidden")
            ids = browser.evaluate("[...document.querySelectorAll('.card')].map(card => card.dataset.id)")
            assert len(set(ids)) == len(ids)
            assert browser.evaluate("document.activeElement.closest('.card').dataset.id") == ids[48]


def test_an_index_without_videos_says_what_to_do(browser: Browser, tmp_path: Path) -> None:
    site = Site(tmp_path)
    with site.served():
        browser.open(site.address)
        browser.wait_for("document.querySelector('#notice h2').innerText === 'There are no videos yet'")
        click(browser, "#notice button")
        browser.wait_for("document.querySelector('#jobs').open")


def test_where_nothing_is_found_there_is_a_way_on(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?title=nothing-begins-so")
    browser.wait_for("document.querySelector('#notice h2')?.innerText === 'Nothing matches the filters'")
    click(browser, "#notice button")
    wait_for_cards(browser, 3)


def test_an_error_is_shown_and_the_next_search_works(site: Site, browser: Browser) -> None:
    site.searcher.error = RuntimeError("broken")
    try:
        browser.open(f"{site.address}/?q=x")
        browser.wait_for("document.querySelector('#status').classList.contains('bad')")
        assert "internal error" in text(browser, "#status")
    finally:
        site.searcher.error = None
    click(browser, "#notice button")
    wait_for_cards(browser, 3)
    assert browser.evaluate("document.querySelector('#notice').hidden")


def test_an_unreachable_server_is_shown_and_found_again(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 3)
    browser.go_offline()
    search(browser, "y")
    browser.wait_for("document.querySelector('#notice h2')?.innerText === 'Server not reachable'")
    browser.go_offline(False)
    wait_for_cards(browser, 3)  # It looks again by itself.


def test_a_server_that_is_loading_is_waited_for(site: Site, browser: Browser) -> None:
    state = site.app.state
    service, state.service = state.service, None
    try:
        browser.open(f"{site.address}/?q=x")
        browser.wait_for("document.querySelector('#notice h2')?.innerText === 'Getting ready'")
    finally:
        state.service = service
    wait_for_cards(browser, 3)


@pytest.mark.parametrize("width", [320, 390, 800, 1400])
@pytest.mark.parametrize("view", ["grid", "list"])
def test_nothing_is_wider_than_the_screen(site: Site, browser: Browser, width: int, view: str) -> None:
    browser.set_viewport(width, 800)
    browser.open(f"{site.address}/?q=x&view={view}&meta=a-rather-long-key=and-a-value-that-is-longer-still")
    wait_for_cards(browser, 3)
    click(browser, "#open-filters")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    for opener, dialog in (("#open-jobs", "#jobs"), ("#open-help", "#help"), (".picture", "#player")):
        click(browser, opener)
        browser.wait_for(f"document.querySelector('{dialog}').open")
        if dialog == "#player":
            browser.wait_for("document.querySelector('#player-details dl')")
        width_inside = browser.evaluate(f"document.querySelector('{dialog}').scrollWidth")
        assert width_inside <= browser.evaluate(f"document.querySelector('{dialog}').clientWidth"), dialog
        browser.evaluate(f"document.querySelector('{dialog}').close()")


def test_the_api_page_lists_the_endpoints(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/docs")
    browser.wait_for("document.querySelectorAll('#operations details').length > 10")
