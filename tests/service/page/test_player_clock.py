"""The page plays the moment that was found, wherever on a file's clock it is: read back from the pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from indexer.media.frame_reader import VideoFile
from tests.support.servers.browser import Browser
from tests.support.servers.page_site import Site
from tests.support.servers.service_fakes import add_video
from tests.support.timed_videos import shift_fragments, write_timed_video

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

RATE = 25
NUM_FRAMES = 10 * RATE

SHOWN_NUMBER = """(() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 128, height: 32});
  const context = canvas.getContext("2d");
  context.drawImage(video, 0, 0, 128, 32);
  const green = (x, y) => context.getImageData(x, y, 1, 1).data[1];
  const lit = (square) => green(16 * (square % 8) + 8, square < 8 ? 8 : 24) > 128;
  return [...Array(16).keys()].reduce((number, square) => 2 * number + lit(square), 0);
})()"""


def _times(start_milliseconds: int = 0) -> list[int]:
    return [start_milliseconds + 1000 // RATE * number for number in range(NUM_FRAMES)]


def _live(path: Path) -> Path:
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov"}
    write_timed_video(path, _times(3000), sound_seconds=(0, 13), container_options=options)
    path.write_bytes(shift_fragments(path.read_bytes(), 36_000))
    return path


FILES: dict[str, tuple[Callable[[Path], Path], float]] = {
    "plain.mp4": (lambda path: write_timed_video(path, _times()), 0),
    "plain.webm": (lambda path: write_timed_video(path, _times()), 0),
    "late.mp4": (lambda path: write_timed_video(path, _times(3000), sound_seconds=(0, 13)), 3),
    "late-and-silent.mp4": (lambda path: write_timed_video(path, _times(3000)), 3),
    "from-100.webm": (lambda path: write_timed_video(path, _times(100_000)), 100),
    "late-from-100.webm": (
        lambda path: write_timed_video(path, _times(103_000), sound_seconds=(100, 113)),
        103,
    ),
    "live.mp4": (_live, 36_003),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    for name, (write, _) in FILES.items():
        path = write(site.directory / name)
        info = VideoFile(path).info
        start = info.media_start_seconds
        add_video(
            site.catalog, name, path.read_bytes(), uri=str(path), codec=info.codec, media_start_seconds=start
        )
    with site.served():
        yield site


def _played(browser: Browser, earliest: float) -> tuple[float, int]:
    """(time on the player's clock, number of the picture) once the player shows one from `earliest` on."""
    browser.wait_for(f"!video.seeking && video.readyState >= 2 && video.currentTime >= {earliest - 0.05}")
    # However late this is, the picture is that of the time: a paused player is sent to where it is.
    browser.evaluate(
        "new Promise((shown) => { video.pause(); video.onseeked = shown;"
        " video.currentTime = video.currentTime })"
    )
    time, number = browser.evaluate(f"[video.currentTime, {SHOWN_NUMBER}]")
    return time, number


@pytest.mark.parametrize("name", FILES)
def test_the_player_shows_the_picture_of_the_moment(site: Site, browser: Browser, name: str) -> None:
    start = FILES[name][1]
    browser.open(f"{site.address}/?q=x&video={name}&t=5")
    browser.wait_for("document.querySelector('#player').open")
    assert browser.evaluate("video.src").endswith(f"/media#t={start + 5:.3f}")
    time, number = _played(browser, start + 5)
    assert number == pytest.approx(min((time - start) * RATE, NUM_FRAMES - 1), abs=1.5)
    assert number >= 5 * RATE - 2
    asked = browser.evaluate(
        "(document.querySelector('#player-moments li:nth-child(3) button').click(), video.currentTime)"
    )
    assert asked == pytest.approx(start + 2, abs=0.001)
    time, number = _played(browser, start + 2)
    assert number == pytest.approx(min((time - start) * RATE, NUM_FRAMES - 1), abs=1.5)
    assert number >= 2 * RATE - 2
    browser.wait_for(
        "Math.abs(parseFloat(document.querySelector('#player-timeline .playhead').style.left)"
        f" - {10 * (time - start)}) < 1"
    )


def test_a_picture_plays_from_its_moment_under_the_pointer(site: Site, browser: Browser) -> None:
    browser.open(f"{site.address}/?q=x&filter.id=late.mp4")
    browser.wait_for("document.querySelector('.card:not(.waiting) .picture')")
    sources = browser.evaluate(
        "Promise.all([...document.querySelectorAll('.card .picture')].map(async (picture) => {"
        " picture.dispatchEvent(new PointerEvent('pointerenter', {pointerType: 'mouse'}));"
        " await new Promise((rested) => setTimeout(rested, 400));"
        " return picture.querySelector('video')?.src }))"
    )
    expected = {f"/videos/{name}/media#t={start + 5:.3f}" for name, (_, start) in FILES.items()}
    assert {source.removeprefix(site.address) for source in sources} <= expected
