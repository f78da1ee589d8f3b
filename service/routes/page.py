"""The page at /, the API's description at /docs, and their parts."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

from service.access import OPEN
from service.errors import RouteNotFoundError

router = APIRouter(include_in_schema=False, dependencies=[OPEN])

PAGE_DIRECTORY = Path(__file__).parent.parent / "page"
CONTENT_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
PARTS = {
    path.name: CONTENT_TYPES[path.suffix]
    for path in sorted(PAGE_DIRECTORY.iterdir())
    if path.suffix in CONTENT_TYPES
}
"""What may be asked for by name, and what it is; nothing that a client says becomes a path."""


@router.get("/")
async def get_page() -> Response:
    """The search page."""
    return _file("index.html", "text/html; charset=utf-8")


@router.get("/docs")
async def get_docs() -> Response:
    """The endpoints, for people; made from /openapi.json in the browser."""
    return _file("docs.html", "text/html; charset=utf-8")


@router.get("/page/{name}")
async def get_part(name: str) -> Response:
    """A script, style sheet or picture of the pages."""
    if name not in PARTS:
        raise RouteNotFoundError()
    return _file(name, PARTS[name])


def _file(name: str, media_type: str) -> Response:
    return FileResponse(PAGE_DIRECTORY / name, media_type=media_type, headers={"Cache-Control": "no-cache"})
