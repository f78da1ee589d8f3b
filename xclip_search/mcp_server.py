"""The searches of a server as tools of the Model Context Protocol, for assistants: `xclip-search mcp`.

A thin layer over `xclip_search.client`: an assistant searches, looks at the moments that were found, and adds
files, through a program on the user's machine that speaks the protocol on standard input and output.
The SDK is the official one (github.com/modelcontextprotocol/python-sdk), the extra `mcp`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from indexer.search.types import Match

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from service.schemas.search import ResultAnswer
    from xclip_search.client import AsyncClient

MAX_RESULTS = 20
"""In one answer: an assistant reads each of them, and asks for the next page where it needs more."""

PICTURE_WIDTH = 640
"""Pixels of a moment's picture: a language model scales larger ones down, and is billed by their size."""

INSTRUCTIONS = """
Finds videos, and the moments in them, by a sentence that describes what is to be seen. Search first with
`search_videos`; look at a moment with `show_moment` before you tell the user what it shows, because a score
orders videos and is no proof. Sentences name what is visible ("a dog runs on the beach"); they do not
understand "not" or "without". Times are seconds from the start of the video.
""".strip()


class Moment(BaseModel):
    """A moment of a video that fits the sentence."""

    time_seconds: float
    score: float


class Found(BaseModel):
    """A video that was found, best first."""

    rank: int
    id: str
    title: str | None
    score: float
    percentile: float | None = Field(description="How much of the index scores lower, 0 to 100.")
    match: Match | None = Field(description="How surely it is what was asked for.")
    duration_seconds: float
    recorded_at: datetime | None
    metadata: dict[str, Any]
    moments: list[Moment] = Field(description="Best first; empty where videos are compared with a video.")
    copies: list[str] = Field(
        description="Ids of videos that look the same, which are not listed themselves."
    )


class FoundVideos(BaseModel):
    """The answer to a search."""

    num_videos: int = Field(description="Videos in the index.")
    warnings: list[str]
    results: list[Found]


class Added(BaseModel):
    """A video that was added."""

    id: str
    title: str | None
    was_known: bool = Field(description="Whether the same bytes were in the index already.")
    is_searchable: bool = Field(description="False while the server is still reading it.")


def make_server(client: AsyncClient, *, folders: Sequence[Path] = ()) -> MCPServer[Any]:
    """The tools, as an SDK's server.

    Args:
        client: Asks the service; closed when the server ends.
        folders: Absolute. Only files below them can be added; without one there is no such tool.
    """
    from mcp.server import MCPServer
    from mcp_types import ToolAnnotations

    @asynccontextmanager
    async def closing(_: MCPServer[Any]) -> AsyncIterator[None]:
        async with client:
            yield

    tools = Tools(client, folders)
    server: MCPServer[Any] = MCPServer(
        "xclip-search", instructions=INSTRUCTIONS, lifespan=closing, log_level="WARNING"
    )
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (tools.search_videos, tools.find_similar_videos):
        server.add_tool(tool, annotations=reads)
    # Pictures are content, not a structure.
    server.add_tool(tools.show_moment, annotations=reads, structured_output=False)
    if folders:
        adds = ToolAnnotations(
            read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False
        )
        server.add_tool(tools.add_video, annotations=adds)
    return server


class Tools:
    """What an assistant can do. The docstrings are what it reads.

    Every method raises ToolError with a message that says what to do.
    """

    def __init__(self, client: AsyncClient, folders: Sequence[Path]) -> None:
        self._client = client
        self._folders = tuple(folders)

    async def search_videos(
        self,
        query: Annotated[str, Field(description="What is to be seen, as a sentence.")],
        limit: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 5,
        offset: Annotated[int, Field(ge=0, description="Results to pass over: for the next page.")] = 0,
        filter: Annotated[
            dict[str, Any] | None,
            Field(
                description='Only videos that match, such as {"metadata.camera": "north"},'
                ' {"duration_seconds": {"gt": 60}} or {"recorded_at": {"gte": "2024-05-01"}}.'
            ),
        ] = None,
    ) -> FoundVideos:
        """Find videos, and the moments in them, by what is to be seen; best first."""
        with _errors_told():
            answer = await self._client.search(query, limit=limit, offset=offset, filter=filter, fold=True)
        return FoundVideos(
            num_videos=answer.num_videos,
            warnings=list(answer.warnings),
            results=[_found(result) for result in answer.results],
        )

    async def find_similar_videos(
        self,
        video_id: Annotated[str, Field(description="Of a video that a search found.")],
        limit: Annotated[int, Field(ge=1, le=MAX_RESULTS)] = 5,
    ) -> FoundVideos:
        """Find videos that look like a video of the index, best first; never that video itself."""
        with _errors_told():
            answer = await self._client.similar(video_id, limit=limit, fold=True)
        results = [_found(result) for result in answer.results]
        return FoundVideos(num_videos=answer.num_videos, warnings=[], results=results)

    async def show_moment(
        self,
        video_id: Annotated[str, Field(description="Of a video that a search found.")],
        time_seconds: Annotated[float, Field(ge=0, description="Seconds from the start of the video.")],
    ) -> Any:
        """Look at a picture of a moment of a video."""
        from mcp.server.mcpserver import Image

        with _errors_told():
            picture = await self._client.thumbnail(video_id, time_seconds=time_seconds, width=PICTURE_WIDTH)
        return Image(data=picture, format="jpeg")

    async def add_video(
        self,
        path: Annotated[str, Field(description="A video file on the user's machine, absolute.")],
        title: Annotated[str | None, Field(description="By default the file's name.")] = None,
    ) -> Added:
        """Add a video file to the index, and wait about a minute until it can be found."""
        file = self._allowed(path)
        with _errors_told():
            answer = await self._client.add_video(file, title=title, wait=True)
            job = None if answer.job is None else await self._client.get_job(answer.job.id)
        if job is not None and job.state in ("failed", "cancelled"):
            raise _tool_error(f"the file could not be added: {job.reason}")
        return Added(
            id=answer.video.id,
            title=title or file.name,
            was_known=answer.was_known,
            is_searchable=job is None or job.state == "done",
        )

    def _allowed(self, path: str) -> Path:
        """The file, where it lies in an allowed folder: an assistant may be told to send other files."""
        file = Path(path).expanduser().resolve()  # Of a link, what it leads to.
        folders = ", ".join(str(folder) for folder in self._folders)
        if not any(file.is_relative_to(folder) for folder in self._folders):
            raise _tool_error(f"only files in these folders can be added: {folders}")
        if not file.is_file():
            raise _tool_error(f"there is no file {file}")
        return file


def _found(result: ResultAnswer) -> Found:
    return Found(
        rank=result.rank,
        id=result.id,
        title=result.title,
        score=result.score,
        percentile=result.percentile,
        match=result.match,
        duration_seconds=result.duration_seconds,
        recorded_at=result.recorded_at,
        metadata=result.metadata,
        moments=[Moment(time_seconds=m.time_seconds, score=m.score) for m in result.moments],
        copies=[copy.id for copy in result.copies],
    )


@contextmanager
def _errors_told() -> Iterator[None]:
    """Let the assistant read why a request failed; anything else is a fault of this program."""
    from xclip_search.client_errors import ClientError

    try:
        yield
    except (ClientError, OSError, ValueError) as error:
        raise _tool_error(str(error)) from error


def _tool_error(message: str) -> Exception:
    from mcp.server.mcpserver.exceptions import ToolError

    return ToolError(message)
