"""Writes the pictures of the page that README and docs show: python -m tests.support.servers.screenshots
--output docs/images

Searches the demo corpus with the demo model: `xclip-search demo --no-serve` makes it where it is missing.
Needs a Chromium.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.support.servers.browser import Browser, find_browser

QUERY = "?q=a+red+guitar+appears+in+a+city"
PICTURES_ARE_THERE = (
    "[...document.querySelectorAll('.card img')].slice(0, 8).every(image => image.naturalWidth)"
)
NUM_COLOURS = 256
"""Enough for the page's flat colours and drawn scenes; a third of the bytes."""


@dataclass(frozen=True)
class Shot:
    """A picture: of which address, how large, in which colours, after which script."""

    name: str
    address: str
    width: int
    height: int
    dark: bool = False
    script: str = ""


SHOTS = (
    Shot("page", QUERY, 1360, 860),
    Shot("page-dark", QUERY, 1360, 860, dark=True),
    Shot("page-phone", QUERY, 390, 844),
    Shot(
        "page-player",
        QUERY,
        1360,
        900,
        script="document.querySelector('.picture').click();"
        "document.querySelector('#player-words button').click()",
    ),
)


def main() -> None:
    """Make the corpus where it is missing, serve it, and take each picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the PNG files")
    parser.add_argument("--demo", type=Path, default=Path("demo-data"), help="folder of the demo corpus")
    parser.add_argument("--port", type=int, default=8971)
    arguments = parser.parse_args()
    program = find_browser()
    if program is None:
        parser.error("there is no Chromium on this machine")
    arguments.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "xclip_search"]
    subprocess.run([*command, "demo", "--no-serve", "--directory", str(arguments.demo)], check=True)
    (index,) = arguments.demo.glob("*/index")
    serve = [*command, "serve", "--index", str(index), "--port", str(arguments.port)]
    with (
        served(serve, arguments.port),
        tempfile.TemporaryDirectory() as profile,
        Browser(program, Path(profile)) as browser,
    ):
        for shot in SHOTS:
            path = arguments.output / f"{shot.name}.png"
            take(browser, shot, f"http://127.0.0.1:{arguments.port}/", path)
            sys.stdout.write(f"{path}: {path.stat().st_size // 1000} kB\n")
        assert not browser.problems, browser.problems


@contextmanager
def served(command: list[str], port: int) -> Iterator[None]:
    """A server, ready, until the end of the block."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stderr=log)
        try:
            deadline = time.monotonic() + 300
            while not is_ready(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"the server did not start:\n{log.read().decode()}")
                time.sleep(0.2)
            yield
        finally:
            server.terminate()
            server.wait(30)


def is_ready(port: int) -> bool:
    """Whether searches are answered."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except OSError:
        return False


def take(browser: Browser, shot: Shot, address: str, path: Path) -> None:
    """Write one picture, its colours reduced."""
    browser.set_viewport(shot.width, shot.height, dark=shot.dark, still=True)
    browser.open(address + shot.address)
    browser.wait_for(f"document.querySelectorAll('.card:not(.waiting)').length && {PICTURES_ARE_THERE}")
    if shot.script:
        browser.evaluate(shot.script)
        browser.wait_for("document.querySelector('#player-words table') && video.readyState >= 2")
        browser.evaluate("video.pause()")
    browser.evaluate("document.activeElement.blur(); document.querySelector('#player').scrollTop = 0")
    browser.evaluate("new Promise(resolve => setTimeout(resolve, 500))")
    browser.screenshot(path)
    picture = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    picture.quantize(NUM_COLOURS, kmeans=4, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
