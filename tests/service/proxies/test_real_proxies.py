"""The page and the client behind nginx and Caddy, configured as the guide says, in a real browser.

Each case signs in, uploads a video and waits until it is read, searches, plays, filters, reads the API's
description and signs out. XCLIP_TEST_SCREENSHOTS names a folder for pictures of what was seen.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest

from service.auth.keys import add_key
from tests.support.servers.browser import Browser, find_browser
from tests.support.servers.page_site import click, text
from tests.support.servers.proxies import NAME, PASSWORD, USER, Front, proxied
from tests.support.servers.server_process import ServerProcess
from tests.support.video_files import write_numbered_video
from xclip_search import Client

pytestmark = [pytest.mark.proxy, pytest.mark.timeout(600)]

PREFIX = "/xclip"
FRONTS = {
    "nginx, http": Front(),
    "nginx, http, Host $host": Front(host="$host"),
    "nginx, https": Front(tls=True),
    "nginx, https, Host $host": Front(tls=True, host="$host"),
    "nginx, http, a password": Front(asks_password=True),
    "nginx, http, below a path": Front(prefix=PREFIX),
    "nginx, http, below a path, stripped": Front(prefix=PREFIX, strips=True),
    "nginx, https, below a path, stripped, said": Front(
        tls=True, prefix=PREFIX, strips=True, says_prefix=True
    ),
    "nginx, https, below a path, a password": Front(tls=True, prefix=PREFIX, asks_password=True),
    "caddy, http": Front("caddy"),
    "caddy, https": Front("caddy", tls=True),
    "caddy, http, below a path": Front("caddy", prefix=PREFIX),
    "caddy, https, below a path, stripped": Front("caddy", tls=True, prefix=PREFIX, strips=True),
    "caddy, http, a password": Front("caddy", asks_password=True),
}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, add_key(path, "me", "write")


@pytest.fixture(scope="module")
def servers(
    key_file: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, ServerProcess]]:
    """Servers with a key, by what XCLIP_ROOT_PATH says."""
    folder = tmp_path_factory.mktemp("servers")
    started = {}
    try:
        for prefix in ("", PREFIX):
            started[prefix] = ServerProcess(
                folder / f"index{len(started)}",
                "--model",
                "demo",
                log=folder / f"log{len(started)}",
                XCLIP_KEYS_FILE=str(key_file[0]),
                XCLIP_ROOT_PATH=prefix,
            )
        yield started
    finally:
        for server in started.values():
            server.stop()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A Chromium that finds the proxies by their name and takes their certificate."""
    program = find_browser()
    assert program is not None, "there is no Chromium on this machine: apt-get install chromium"
    options = [f"--host-resolver-rules=MAP {NAME} 127.0.0.1", "--ignore-certificate-errors"]
    with Browser(program, tmp_path / "profile", options=options) as browser:
        yield browser


@pytest.mark.parametrize("case", FRONTS)
def test_the_page_does_all_that_it_can_behind_a_proxy(
    case: str, servers: dict[str, ServerProcess], key_file: tuple[Path, str], browser: Browser, tmp_path: Path
) -> None:
    front = FRONTS[case]
    server = servers["" if front.says_prefix else front.prefix]
    clip = write_numbered_video(
        tmp_path / f"case {list(FRONTS).index(case)}.mp4", 100, rate=10, first_number=3
    )
    with clip.open("ab") as file:  # Other bytes in each case, or it would be known.
        file.write(b"\0\0\0\x08free" * (1 + list(FRONTS).index(case)))
    with proxied(front, server.client.base_url.port or 0, tmp_path / "proxy") as address:
        if front.asks_password:
            # A page whose own address has a password may fetch nothing.
            browser.open(address.replace("://", f"://{USER}:{quote(PASSWORD)}@"))
            browser.wait_for("document.querySelector('#sign-in')")
        browser.open(address.rstrip("/") if front.prefix else address)
        browser.wait_for(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")
        sign_in(browser, key_file[1])
        upload(browser, clip)
        search_and_play(browser, clip.stem, front.prefix)
        take_picture(browser, f"{case}, player")
        click(browser, "#player-close")
        filter_by_title(browser, clip.stem)
        take_picture(browser, case)
        browser.evaluate("document.querySelector('#log-out').click()")
        browser.wait_for("document.querySelector('#sign-in').open")
        read_description(browser, address, front.prefix)
        assert not browser.problems
        refused = "403" if front.asks_password else "401"  # Before and after the session.
        wrong = [request for request in browser.failed_requests if refused not in request]
        assert not wrong
        use_the_client(address, front, key_file[1], tmp_path / "proxy", clip.stem)


def sign_in(browser: Browser, key: str) -> None:
    browser.wait_for("document.querySelector('#sign-in').open")
    browser.evaluate("document.querySelector('#sign-in [name=key]').focus()")
    browser.write(key)
    browser.wait_for("document.querySelector('#sign-in [name=key]').value.length > 40")
    browser.press("Enter")
    browser.wait_for("!document.querySelector('#sign-in').open && !document.querySelector('#log-out').hidden")


def upload(browser: Browser, clip: Path) -> None:
    click(browser, "#open-upload")
    browser.choose_files("#files", [clip])
    browser.wait_for("document.querySelector('#uploads .done')?.innerText.includes('Searchable')", 180)
    click(browser, "#jobs [data-close]")


def search_and_play(browser: Browser, title: str, prefix: str) -> None:
    browser.evaluate("document.querySelector('#query').value = ''; document.querySelector('#query').focus()")
    browser.write("white numbers on a black ground")
    browser.press("Enter")
    card = f"[...document.querySelectorAll('.card:not(.waiting)')].find(c => c.innerText.includes({title!r}))"
    browser.wait_for(f"location.search.includes('q=white') && {card}")
    browser.evaluate(f"{card}.scrollIntoView()")
    browser.wait_for(f"{card}.querySelector('img').naturalWidth > 0")
    picture = browser.evaluate(f"{card}.querySelector('img').src")
    assert urlsplit(picture).path.startswith(f"{prefix}/videos/")
    browser.evaluate(f"{card}.querySelector('.picture').click()")
    browser.wait_for("document.querySelector('#player').open && video.readyState >= 2")
    browser.evaluate("video.muted = true; video.play()")
    browser.wait_for("video.currentTime > 1 && !video.error")
    assert urlsplit(browser.evaluate("video.currentSrc")).path.startswith(f"{prefix}/videos/")


def filter_by_title(browser: Browser, title: str) -> None:
    click(browser, "#open-filters")
    browser.evaluate("document.querySelector('#filters [name=title]').focus()")
    browser.write(title)
    browser.press("Enter")
    browser.wait_for("location.search.includes('title=')")
    browser.wait_for("document.querySelectorAll('.card:not(.waiting)').length === 1")
    assert title in text(browser, ".card .title")
    browser.wait_for("document.querySelector('.card img').naturalWidth > 0")


def read_description(browser: Browser, address: str, prefix: str) -> None:
    browser.open(f"{address}docs")
    browser.wait_for("document.querySelectorAll('#operations details').length > 10")
    paths = browser.evaluate("[...document.querySelectorAll('#operations code')].map(code => code.innerText)")
    assert f"{prefix}/search" in paths


def take_picture(browser: Browser, name: str) -> None:
    folder = os.environ.get("XCLIP_TEST_SCREENSHOTS")
    if folder:
        browser.screenshot(Path(folder) / f"{name.replace(', ', '-').replace(' ', '-')}.png")


def use_the_client(address: str, front: Front, key: str, folder: Path, title: str) -> None:
    """The Python client at the same address, with the proxy's password in it."""
    port = urlsplit(address).port
    context: ssl.SSLContext | bool = False
    if front.tls:
        context = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
    transport = _ByName(verify=context)
    user = f"{USER}:{quote(PASSWORD)}@" if front.asks_password else ""
    server = f"{urlsplit(address).scheme}://{user}{NAME}:{port}{front.prefix}/"
    with Client(server, key=key, transport=transport) as client:
        found = [video for video in client.videos() if (video.title or "").startswith(title)]
        assert len(found) == 1
        assert client.download_media(found[0].id, folder / "copy.mp4").stat().st_size == found[0].size_bytes
        answer = client.search("numbers", filter={"title": found[0].title})
        assert [result.id for result in answer.results] == [found[0].id]
        client.delete_video(found[0].id)


class _ByName(httpx.AsyncHTTPTransport):
    """Finds the proxies by their name, which no name server knows."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = NAME
        request.url = request.url.copy_with(host="127.0.0.1")  # The header Host is made already.
        return await super().handle_async_request(request)


def test_a_proxy_that_passes_another_host_on_is_refused_with_what_to_set(
    servers: dict[str, ServerProcess], key_file: tuple[Path, str], browser: Browser, tmp_path: Path
) -> None:
    front = Front(host="backend.test:81")
    with proxied(front, servers[""].client.base_url.port or 0, tmp_path / "proxy") as address:
        browser.open(address)
        browser.wait_for("document.querySelector('#sign-in').open")
        browser.evaluate("document.querySelector('#sign-in [name=key]').focus()")
        browser.write(key_file[1])
        browser.press("Enter")
        browser.wait_for("!document.querySelector('#sign-in [role=alert]').hidden")
        said = text(browser, "#sign-in [role=alert]")
        assert address.rstrip("/") in said and "backend.test:81" in said and "$http_host" in said
        take_picture(browser, "refused")


def test_a_page_of_a_named_origin_searches_with_a_key(
    key_file: tuple[Path, str], browser: Browser, tmp_path: Path
) -> None:
    """The page is nginx's own, at another port and so of another origin; it fetches through the browser."""
    server = ServerProcess(
        tmp_path / "index",
        "--model",
        "demo",
        "--no-worker",
        log=tmp_path / "log",
        XCLIP_KEYS_FILE=str(key_file[0]),
        XCLIP_CORS_ORIGINS=f"http://{NAME}:8123",
    )
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<title>other</title>")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "other"))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 8123), Handler)
    thread = Thread(target=other.serve_forever)
    thread.start()
    try:
        browser.open(f"http://{NAME}:8123/")
        browser.wait_for("document.title === 'other'")
        call = (
            "fetch('%s', {method: 'POST', headers: {'X-API-Key': %s, 'Content-Type': 'application/json'},"
            ' body: \'{"query": "x"}\'})'
            ".then(answer => [answer.status, answer.headers.get('X-Request-ID')])"
        )
        address = f"{server.client.base_url}/search".replace("//search", "/search")
        status, request_id = browser.evaluate(call % (address, json.dumps(key_file[1])))
        assert status == 200 and request_id
        status, _ = browser.evaluate(call % (address, json.dumps("wrong")))
        assert status == 401
        browser.open("http://127.0.0.1:8123/")
        browser.wait_for("document.title === 'other'")
        failed = browser.evaluate(f"({call % (address, json.dumps(key_file[1]))}).catch(error => error.name)")
        assert failed == "TypeError"
    finally:
        other.shutdown()
        thread.join()
        other.server_close()
        server.stop()
