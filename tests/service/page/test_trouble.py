"""The page in trouble, in a real browser: slow and lost servers, late answers, nonsense, what is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.store.filters import parse_filter
from tests.support.servers.browser import Browser
from tests.support.servers.page_site import Site, click, text, wait_for_cards
from tests.support.servers.service_fakes import add_video

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

LONG_TITLE = "a title that goes on and" + " on" * 150
LONG_KEY = "a key of metadata that is much longer than a key should be"

HOLD = """
(() => {
  const send = window.fetch;
  window.sent = [];
  window.hold = /./;  // What is asked for under such an address waits until `letGo`.
  const gate = new Promise((resolve) => { window.letGo = resolve });
  window.fetch = async (path, options = {}) => {
    window.sent.push(`${options.method || "GET"} ${path} ${options.body || ""}`);
    const isHeld = window.hold.test(window.sent.at(-1));
    if (isHeld) await gate;
    return send(path, isHeld ? { ...options, signal: undefined } : options);
  };
})()
"""
"""Requests wait, and do not mind being given up, as an answer on its way does not."""

REFUSE = """
(() => {
  window.realFetch = window.fetch;
  window.numRefused = 0;
  window.fetch = async () => { window.numRefused += 1; throw new TypeError("refused") };
})()
"""
"""Nothing answers until `window.fetch` is what it was; as with a server that ended, no event reports it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    for number in range(60):
        add_video(site.catalog, f"video-{number}")
    add_video(site.catalog, "long", title=LONG_TITLE, metadata={LONG_KEY: "value " * 9, "short": "value"})
    site.add_file("tall", "mp4", "libx264", rotation_degrees=90)
    with site.served():
        yield site


def ids(browser: Browser) -> list[str]:
    found = browser.evaluate("[...document.querySelectorAll('.card')].map(card => card.dataset.id)")
    assert isinstance(found, list)
    return found


def test_of_an_address_changed_by_hand_only_what_makes_sense_filters(site: Site, browser: Browser) -> None:
    nonsense = (
        "min=abc&max=-1&since=yesterday&strong=many&meta=nothing&meta=%3Dv&meta=a%22b%3Dc&meta=a..b%3Dc"
    )
    browser.open(f"{site.address}/?q=x&{nonsense}")
    wait_for_cards(browser, 24)
    assert site.searcher.filters[-1] is None and site.searcher.queries[-1].min_percentile is None
    assert browser.evaluate("document.querySelector('#chips').hidden")
    browser.open(f"{site.address}/?q=x&max=1e2&{nonsense}&meta=a.b%3Dc%3Dd")
    browser.wait_for("document.querySelectorAll('.chip').length === 2")
    wait_for_cards(browser, 24)
    wanted = {"and": [{"duration_seconds": {"lte": 100}}, {"metadata.a.b": "c=d"}]}
    assert site.searcher.filters[-1] == parse_filter(wanted)


@pytest.mark.parametrize(
    "values",
    [
        {"min": "9", "max": "3"},
        {"min": "-1"},
        {"key": "camera"},
        {"value": "north"},
        {"key": 'a"b', "value": "c"},
        {"key": "a..b", "value": "c"},
    ],
)
def test_filters_that_cannot_hold_are_refused_in_the_form(
    site: Site, browser: Browser, values: dict[str, str]
) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 24)
    click(browser, "#open-filters")
    for name, value in values.items():
        field = f"document.querySelector('#filters').elements[{name!r}]"
        browser.evaluate(f"{field}.value = {json.dumps(value)}")
        browser.evaluate(f"{field}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    browser.evaluate("document.querySelector('#filters').requestSubmit()")
    assert browser.evaluate("document.querySelector('#filters').matches(':invalid')")
    assert browser.evaluate("!document.querySelector('#filters').hidden && location.search === '?q=x'")


def test_a_later_answer_to_an_earlier_search_is_not_shown(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    wait_for_cards(browser, 24)
    browser.evaluate(HOLD)
    browser.evaluate("window.hold = /slow/")
    for query in ("slow", "quick"):
        browser.evaluate(f"query.value = {query!r}; document.querySelector('#search').requestSubmit()")
    browser.wait_for("document.querySelector('#status').innerText.includes('searched')")
    browser.evaluate("document.querySelector('#more').click()")
    wait_for_cards(browser, 48)
    browser.evaluate("letGo(); new Promise(resolve => setTimeout(resolve, 500))")
    assert site.searcher.queries[-1].text == "slow", "the earlier one was answered last"
    assert len(ids(browser)) == 48 and browser.evaluate("location.search") == "?q=quick"


def test_a_step_back_while_a_video_is_asked_for_leaves_it_closed(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?title=nobody-is-called-so")
    browser.wait_for("!document.querySelector('#notice').hidden")
    browser.evaluate(HOLD)
    browser.evaluate("history.pushState(null, '', location.search + '&video=video-3')")
    browser.evaluate("dispatchEvent(new PopStateEvent('popstate'))")
    browser.wait_for("sent.some(request => request.includes('videos/video-3'))")
    browser.evaluate("history.back()")
    browser.wait_for("!location.search.includes('video')")
    browser.evaluate("letGo(); new Promise(resolve => setTimeout(resolve, 500))")
    assert not browser.evaluate("document.querySelector('#player').open")


def test_a_new_list_begins_at_its_top_and_has_the_focus(site: Site, browser: Browser) -> None:
    browser.set_viewport(1200, 800)
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 24)
    browser.evaluate("document.querySelectorAll('.picture')[20].focus()")
    browser.wait_for("scrollY > 500")
    browser.evaluate("document.querySelectorAll('.similar')[20].click()")
    browser.wait_for("document.querySelector('#status').innerText.startsWith('Videos like')")
    browser.wait_for("document.activeElement === document.querySelector('.picture') && scrollY < 200")


def test_what_is_gone_is_shown_with_a_way_on(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x&video=unknown")
    browser.wait_for("document.querySelector('#warnings').innerText.includes('no longer in the index')")
    assert browser.evaluate("location.search") == "?q=x"
    browser.open(f"{site.address}/?like=unknown")
    browser.wait_for("document.querySelector('#notice h2')?.innerText === 'No longer available'")
    click(browser, "#notice button")
    wait_for_cards(browser, 24)


def test_a_server_that_comes_back_is_found_without_help(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 24)
    browser.evaluate(REFUSE)
    browser.evaluate("query.value = 'y'; document.querySelector('#search').requestSubmit()")
    browser.wait_for("document.querySelector('#notice h2')?.innerText === 'Server not reachable'")
    assert ids(browser) == []
    browser.evaluate("window.fetch = window.realFetch")
    wait_for_cards(browser, 24)
    assert browser.evaluate("document.querySelector('#notice').hidden")


def test_a_next_page_that_fails_is_shown_at_the_button(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 24)
    site.searcher.error = RuntimeError("broken")
    try:
        click(browser, "#more")
        browser.wait_for("document.querySelector('#more-note').innerText.includes('internal error')")
    finally:
        site.searcher.error = None
    assert len(ids(browser)) == 24
    click(browser, "#more")
    wait_for_cards(browser, 48)
    assert text(browser, "#more-note") == ""


@pytest.mark.parametrize("width", [320, 1200])
def test_long_titles_and_keys_leave_space_for_the_rest(site: Site, browser: Browser, width: int) -> None:
    browser.set_viewport(width, 700)
    browser.open(f"{site.address}/?q=x&video=long")
    browser.wait_for("document.querySelectorAll('#player-actions button').length === 4")
    assert browser.evaluate("document.querySelector('.dialog-head').offsetHeight") < 110
    assert browser.evaluate("document.querySelector('#player-title').textContent") == LONG_TITLE
    assert LONG_TITLE in text(browser, "#player-details")
    assert browser.evaluate(
        "[...document.querySelectorAll('#player-details dd')].every(value => value.offsetWidth > 100)"
    )
    click(browser, "#player-actions .risky")
    browser.wait_for("document.querySelector('#confirm').open")
    assert browser.evaluate("document.querySelector('#confirm').offsetHeight") < 300


def test_a_picture_that_is_higher_than_wide_is_shown_whole(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 24)
    browser.wait_for("document.querySelector('.card[data-id=tall] img').naturalWidth > 0")
    fit = "getComputedStyle(document.querySelector('.card[data-id=tall] img')).objectFit"
    browser.wait_for(f"{fit} === 'contain'")


def test_times_are_distinguishable(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/docs")
    shown = browser.evaluate(
        f"import('{site.address}/page/format.js').then(({{clock, clocks, lengthText}}) => "
        "[clock(0), clock(61.9), clock(3661), clock(59.99, true), ...clocks([0, 1, 2.9]),"
        " ...clocks([0.2, 0.95, 61.04]), lengthText(0.1), lengthText(75)])"
    )
    assert shown == [
        *("0:00", "1:01", "1:01:01", "0:59.9", "0:00", "0:01", "0:02"),
        *("0:00.2", "0:00.9", "1:01.0", "0.1 s", "1:15"),
    ]


@pytest.fixture
def small_site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    for number in range(30):
        add_video(site.catalog, f"video-{number}")
    with site.served():
        yield site


def choose_file(browser: Browser, path: Path, content: bytes = b"content") -> None:
    path.write_bytes(content)
    browser.choose_files("#files", [path])


def test_a_next_page_repeats_nothing_though_videos_came_meanwhile(small_site: Site, browser: Browser) -> None:
    browser.open(f"{small_site.address}/?q=x")
    wait_for_cards(browser, 24)
    for number in range(100, 103):
        add_video(small_site.catalog, f"video-{number}")  # Before all others: the offsets shift.
    click(browser, "#more")
    wait_for_cards(browser, 30)
    assert sorted(ids(browser)) == sorted(f"video-{number}" for number in range(30))
    assert browser.evaluate("document.querySelector('#more').hidden")


def test_an_upload_that_is_done_comes_before_the_others_and_moves_nothing(
    small_site: Site, browser: Browser, tmp_path: Path
) -> None:
    browser.open(small_site.address)
    wait_for_cards(browser, 24)
    click(browser, "#more")
    wait_for_cards(browser, 30)
    choose_file(browser, tmp_path / "new.mp4")
    browser.wait_for("document.querySelector('#uploads .state').innerText === 'Queued'")
    browser.evaluate("document.querySelectorAll('.picture')[27].focus()")
    job = small_site.job_queue.lease("worker", 60)
    assert job is not None
    add_video(small_site.catalog, job.video_id)
    small_site.job_queue.finish(job.id, job.video_id)
    wait_for_cards(browser, 31)
    assert ids(browser)[0] == job.video_id
    assert browser.evaluate("document.activeElement.closest('.card').dataset.id") == "video-2"


def test_an_upload_outlives_a_server_that_is_away_for_a_while(
    small_site: Site, browser: Browser, tmp_path: Path
) -> None:
    browser.open(small_site.address)
    wait_for_cards(browser, 24)
    leaves = "!dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    assert not browser.evaluate(leaves)
    choose_file(browser, tmp_path / "new.mp4")
    browser.wait_for("document.querySelector('#uploads .state').innerText === 'Queued'")
    browser.wait_for(f"!({leaves})")  # It has been sent: the page is not needed any more.
    browser.evaluate(REFUSE)
    browser.wait_for("window.numRefused >= 2")
    browser.evaluate("window.fetch = window.realFetch")
    job = small_site.job_queue.lease("worker", 60)
    assert job is not None
    small_site.job_queue.finish(job.id, job.video_id)
    browser.wait_for("document.querySelector('#uploads .done')")


def test_a_file_that_was_refused_for_what_it_is_is_not_to_be_tried_again(
    small_site: Site, browser: Browser, tmp_path: Path
) -> None:
    browser.open(small_site.address)
    wait_for_cards(browser, 24)
    choose_file(browser, tmp_path / "empty.mp4", b"")
    browser.wait_for("document.querySelector('#uploads .failed .state')?.innerText === 'The file is empty.'")
    assert browser.evaluate("document.querySelectorAll('#uploads button').length") == 0


def test_what_is_sent_twice_by_hand_is_sent_once(small_site: Site, browser: Browser) -> None:
    browser.open(f"{small_site.address}/?video=video-1")
    browser.wait_for("document.querySelectorAll('#player-actions button').length === 4")
    browser.evaluate("document.querySelectorAll('#player-actions button')[2].click()")
    browser.wait_for("document.querySelector('#edit').open")
    browser.evaluate(HOLD)
    save = "document.querySelector('#edit [type=submit]')"
    browser.evaluate(f"{save}.click(); {save}.click(); {save}.form.requestSubmit()")
    assert browser.evaluate("sent.length") == 1 and browser.evaluate(f"{save}.disabled")
    browser.evaluate("letGo()")
    browser.wait_for("!document.querySelector('#edit').open")
    assert not browser.evaluate(f"{save}.disabled")


def test_a_click_outside_closes_a_dialog_in_which_nothing_was_written(
    small_site: Site, browser: Browser
) -> None:
    browser.open(f"{small_site.address}/?video=video-1")
    browser.wait_for("document.querySelectorAll('#player-actions button').length === 4")
    browser.evaluate("document.querySelectorAll('#player-actions button')[2].click()")
    browser.wait_for("document.querySelector('#edit').open")
    outside = "dispatchEvent(new MouseEvent('mousedown', {{clientX: 1, clientY: 1, detail: {}}}))"
    browser.evaluate(f"document.querySelector('#edit').{outside.format(1)}")
    assert browser.evaluate("document.querySelector('#edit').open")
    browser.evaluate("document.querySelector('#edit').close()")
    # The second of a double click.
    browser.evaluate(f"document.querySelector('#player').{outside.format(2)}")
    assert browser.evaluate("document.querySelector('#player').open")
    browser.evaluate(f"document.querySelector('#player').{outside.format(1)}")
    assert not browser.evaluate("document.querySelector('#player').open")
