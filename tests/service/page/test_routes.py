"""The page's files as they are served: what they are, and a HEAD for the same without the content."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.routes.page import PAGE_DIRECTORY, PARTS
from tests.support.servers.service_fakes import running


@pytest.mark.parametrize("address", ["/", "/docs", "/page/app.js", "/page/style.css", "/page/icon.svg"])
def test_a_head_is_answered_as_a_get_without_the_content(tmp_path: Path, address: str) -> None:
    with running(tmp_path) as service:
        whole, head = service.client.get(address), service.client.head(address)
    assert (head.status_code, head.content) == (200, b"") and whole.content
    for name in ("content-type", "content-length", "etag", "cache-control", "content-security-policy"):
        assert head.headers[name] == whole.headers[name], name


def test_every_part_that_the_pages_name_is_served_and_every_part_is_named() -> None:
    named = {
        name
        for path in PAGE_DIRECTORY.iterdir()
        for name in re.findall(r'"(?:page|[.])/([a-z]+[.](?:js|css|svg))"', path.read_text(encoding="utf-8"))
    }
    assert named == set(PARTS)
