"""The page for everybody, in a real browser: keyboard alone, names and roles, contrast, colours, motion."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.servers.browser import Browser
from tests.support.servers.page_site import Site, click, wait_for_cards
from tests.support.servers.service_fakes import add_video

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CONTRASTS = """
(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (part) => {
    for (let at = part; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const part = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !part.checkVisibility()) continue;
    if (part.closest(":disabled, .picture, .unseen")) continue;
    const [first, second] = [light(rgba(getComputedStyle(part).color)), light(ground(part))];
    const ratio = (Math.max(first, second) + 0.05) / (Math.min(first, second) + 0.05);
    if (ratio < 4.5) poor.push(`${part.outerHTML.slice(0, 80)} ${ratio.toFixed(2)}`);
  }
  return poor;
})()
"""
"""Texts whose contrast with what lies behind them is below WCAG's AA, 4.5 : 1."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    for number in range(9):
        add_video(site.catalog, f"video-{number}", metadata={"year": 2024})
    with site.served():
        yield site


@pytest.fixture
def browser(browser: Browser) -> Browser:
    browser.set_viewport(1000, 900)
    return browser


def card_in_focus(browser: Browser) -> int:
    place = browser.evaluate(
        "[...document.querySelectorAll('.card')].findIndex(card => card.contains(document.activeElement))"
    )
    assert isinstance(place, int)
    return place


def test_all_can_be_done_with_the_keyboard_alone(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    wait_for_cards(browser, 9)
    browser.evaluate("document.activeElement.blur()")
    browser.press("/")
    browser.wait_for("document.activeElement.id === 'query'")
    browser.write("a dog")
    browser.press("Enter")
    browser.wait_for("location.search === '?q=a+dog'")
    browser.wait_for("document.querySelector('#results').getAttribute('aria-busy') !== 'true'")
    browser.press("ArrowDown")
    assert card_in_focus(browser) == 0
    num_columns = browser.evaluate("getComputedStyle(results).gridTemplateColumns.split(' ').length")
    for key, place in [
        *(("ArrowRight", 1), ("ArrowDown", 1 + num_columns), ("ArrowLeft", num_columns), ("End", 8)),
        *(("ArrowRight", 8), ("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1)),
    ]:
        browser.press(key)
        assert card_in_focus(browser) == place, key
    browser.press("Enter")
    browser.wait_for("document.querySelector('#player').open")
    assert browser.evaluate("document.querySelector('#player').contains(document.activeElement)")
    browser.press("n")
    browser.wait_for("location.search.includes('video=video-6')")
    browser.press("Escape")
    browser.wait_for("!document.querySelector('#player').open && location.search === '?q=a+dog'")
    assert card_in_focus(browser) == 2  # Where the player was last.
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.className") == "similar"
    browser.press("Enter")
    wait_for_cards(browser, 8)
    browser.press("/")
    browser.press("Escape")
    for _ in range(30):  # Round the whole page: the focus is never lost on the way.
        browser.press("Tab")
        assert browser.evaluate("document.activeElement !== null")
    browser.evaluate("document.querySelector('.skip').focus()")
    browser.press("Enter")
    browser.wait_for("document.activeElement.closest('.card')")


@pytest.mark.parametrize(("width", "dark"), [(1000, False), (1000, True), (390, False)])
def test_texts_stand_out_and_parts_have_names(site: Site, browser: Browser, width: int, dark: bool) -> None:
    browser.set_viewport(width, 900, dark=dark)
    browser.open(f"{site.address}/?q=x&min=1&meta=year=2024")
    wait_for_cards(browser, 9)
    click(browser, "#open-filters")
    for opener, dialog in (
        (None, None),
        (".picture", "#player"),
        ("#open-jobs", "#jobs"),
        ("#open-help", "#help"),
    ):
        if opener:
            click(browser, opener)
            browser.wait_for(f"document.querySelector('{dialog}').open")
        if dialog == "#player":
            browser.wait_for("document.querySelectorAll('#player-actions button').length === 4")
        assert browser.evaluate(CONTRASTS) == []
        nodes = browser.accessible_nodes()
        interactive = {"button", "link", "textbox", "searchbox", "combobox", "spinbutton", "dialog", "Date"}
        nameless = [role for role, name in nodes if role in interactive and not name.strip()]
        assert nameless == []
        if dialog:
            assert ("dialog", browser.evaluate(f"document.querySelector('{dialog} h2').textContent")) in nodes
            browser.evaluate(f"document.querySelector('{dialog}').close()")
            browser.wait_for(f"!document.querySelector('{dialog}').open")
    roles = [role for role, _ in browser.accessible_nodes()]
    assert roles.count("main") == roles.count("search") == roles.count("banner") == 1
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(part => part.id)")
    assert len(ids) == len(set(ids))


def test_what_happens_is_announced_to_screen_readers(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 9)
    for selector in ("#status", "#video-note", "#jobs-note"):
        assert browser.evaluate(f"document.querySelector('{selector}').getAttribute('role')") == "status"
    assert browser.evaluate("document.querySelector('.picture').getAttribute('aria-label')") == (
        "Play title of video-8, 0:05 / 0:10, match 10.0"
    )


def test_the_colours_follow_the_system_until_the_user_chooses(site: Site, browser: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for dark in (False, True):
        browser.set_viewport(1000, 900, dark=dark)
        browser.open(site.address)
        wait_for_cards(browser, 9)
        seen[dark] = browser.evaluate(ground)
    assert seen[False] != seen[True]
    click(browser, "#theme")  # Light, though the system is dark.
    assert browser.evaluate(ground) == seen[False]
    browser.open(f"{site.address}/?q=x")
    wait_for_cards(browser, 9)
    assert browser.evaluate(ground) == seen[False]  # Remembered.
    click(browser, "#theme")
    click(browser, "#theme")
    assert browser.evaluate("document.documentElement.dataset.theme") == "auto"
    assert browser.evaluate(ground) == seen[True]


def test_nothing_moves_where_reduced_motion_is_preferred(site: Site, browser: Browser) -> None:
    browser.set_viewport(1000, 900, still=True)
    browser.open(site.address)
    wait_for_cards(browser, 9)
    moving = "[...document.querySelectorAll('*')].filter(part => getComputedStyle(part).{} !== '{}').length"
    assert browser.evaluate(moving.format("transitionDuration", "0s")) == 0
    assert browser.evaluate(moving.format("animationName", "none")) == 0
