"""`xclip-search mcp`: the tools of an assistant, called by the SDK's own client."""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexer.errors import NotAVideoError
from indexer.store.records import NewVideo
from tests.faults.dying_worker import read_by_rote
from tests.support.servers.service_fakes import Service, add_video, working
from tests.support.servers.serving_thread import served
from xclip_search.client import AsyncClient
from xclip_search.mcp_server import make_server

mcp = pytest.importorskip("mcp", reason="the MCP SDK is not installed")


MP4 = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 8


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with one video, whose worker takes every file that does not begin with `bad`."""

    def read(path: Path, cancelled: threading.Event) -> NewVideo:
        if path.read_bytes().startswith(b"bad"):
            raise NotAVideoError("text, not a video")
        return replace(read_by_rote(path), partial=False)

    service = Service(tmp_path_factory.mktemp("mcp") / "index")
    media = service.directory.parent / "beach.mp4"
    media.write_bytes(MP4)
    add_video(service.catalog, "beach", MP4, uri=media.as_uri())
    with working(service, read):
        yield service
    service.catalog.close()


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    with served(service.app) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


Ask = Callable[..., Any]


@pytest.fixture
def ask(address: str, folder: Path) -> Ask:
    """Calls a tool and returns the SDK's result."""

    def call(tool: str, server: str = address, **arguments: Any) -> Any:
        async def run() -> Any:
            tools = make_server(AsyncClient(server, max_attempts=1), folders=[folder])
            async with mcp.Client(tools) as client:
                return await client.call_tool(tool, arguments)

        return asyncio.run(run())

    return call


def message(result: Any) -> str:
    assert result.is_error
    return str(result.content[0].text)


def test_an_assistant_finds_videos_and_their_moments(ask: Ask, service: Service) -> None:
    found = ask("search_videos", query="a dog", limit=1).structured_content
    (result,) = found["results"]
    assert (result["id"], result["rank"]) == ("beach", 1)
    assert result["moments"] and set(result["moments"][0]) == {"time_seconds", "score"}
    assert service.searcher.queries[-1].text == "a dog"


def test_videos_that_look_the_same_are_one_result_that_names_the_others(ask: Ask, service: Service) -> None:
    for name in ("one", "other"):
        add_video(service.catalog, name, metadata={"looks": "a boat"})
    try:
        for tool, arguments in (
            ("search_videos", {"query": "a boat"}),
            ("find_similar_videos", {"video_id": "beach"}),
        ):
            found = ask(tool, **arguments).structured_content["results"]
            assert (found[0]["id"], found[0]["copies"]) == ("other", ["one"])
    finally:
        for name in ("one", "other"):
            service.catalog.delete_video(name)


def test_a_filter_reaches_the_service(ask: Ask, service: Service) -> None:
    ask("search_videos", query="a dog", filter={"metadata.camera": "north"})
    assert service.searcher.queries[-1].filter is not None


def test_a_moment_comes_as_a_picture(ask: Ask, service: Service) -> None:
    (picture,) = ask("show_moment", video_id="beach", time_seconds=1.5).content
    assert (picture.type, picture.mime_type) == ("image", "image/jpeg")
    assert base64.b64decode(picture.data) == b"a picture of beach.mp4"
    assert service.pictures[-1][1:] == (1.5, 640)


def test_videos_like_a_video_are_found(ask: Ask) -> None:
    assert ask("find_similar_videos", video_id="beach").structured_content["num_videos"] >= 1


def test_a_file_of_an_allowed_folder_is_added_once(ask: Ask, folder: Path) -> None:
    (folder / "new.mp4").write_bytes(b"a new video")
    first = ask("add_video", path=str(folder / "new.mp4")).structured_content
    again = ask("add_video", path=str(folder / "new.mp4")).structured_content
    assert first | {"was_known": True} == again | {"was_known": True}
    assert (first["was_known"], again["was_known"], first["is_searchable"]) == (False, True, True)


def test_no_other_file_is_sent_not_even_by_a_link(ask: Ask, folder: Path) -> None:
    secret = folder.parent / "secret.mp4"
    secret.write_bytes(b"private")
    (folder / "link.mp4").symlink_to(secret)
    for path in (secret, folder / "link.mp4", folder / ".." / "secret.mp4"):
        assert "only files in these folders" in message(ask("add_video", path=str(path)))


def test_without_folders_there_is_no_tool_that_adds(address: str) -> None:
    async def names() -> set[str]:
        async with mcp.Client(make_server(AsyncClient(address))) as client:
            return {tool.name for tool in (await client.list_tools()).tools}

    assert asyncio.run(names()) == {"search_videos", "find_similar_videos", "show_moment"}


def test_tools_say_whether_they_change_anything(address: str, folder: Path) -> None:
    async def hints() -> dict[str, bool]:
        async with mcp.Client(make_server(AsyncClient(address), folders=[folder])) as client:
            return {tool.name: tool.annotations.read_only_hint for tool in (await client.list_tools()).tools}

    assert asyncio.run(hints()) == {
        "search_videos": True,
        "find_similar_videos": True,
        "show_moment": True,
        "add_video": False,
    }


def test_an_error_says_what_to_do(ask: Ask, folder: Path) -> None:
    assert "404" in message(ask("find_similar_videos", video_id="unknown"))
    assert "no file" in message(ask("add_video", path=str(folder / "absent.mp4")))
    (folder / "bad.mp4").write_bytes(b"bad")
    assert "text, not a video" in message(ask("add_video", path=str(folder / "bad.mp4")))
    assert "less than or equal to 20" in message(ask("search_videos", query="a dog", limit=1000))
    assert "127.0.0.1:9" in message(ask("search_videos", "http://127.0.0.1:9", query="a dog"))


def test_the_command_speaks_the_protocol_on_its_streams(address: str) -> None:
    from mcp.client.stdio import StdioServerParameters, stdio_client

    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "xclip_search", "mcp", "--server", address],
        env=dict(os.environ),
    )

    async def search() -> Any:
        async with mcp.Client(stdio_client(command)) as client:
            return await client.call_tool("search_videos", {"query": "a dog"})

    found: Coroutine[Any, Any, Any] = search()
    assert asyncio.run(found).structured_content["num_videos"] >= 1
