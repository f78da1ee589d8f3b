"""The page at /, the API's description at /docs, and their parts."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.auth.access import OPEN
from service.errors import RouteNotFoundError
from service.http.files import answer_file

router = APIRouter(include_in_schema=False, dependencies=[OPEN])

METHODS = ["GET", "HEAD"]
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


@router.api_route("/", methods=METHODS)
async def get_page(request: Request) -> Response:
    """The search page."""
    return await _answer(request, "index.html", "text/html; charset=utf-8")


@router.api_route("/docs", methods=METHODS)
async def get_docs(request: Request) -> Response:
    """The endpoints, for people; made from /openapi.json in the browser."""
    return await _answer(request, "docs.html", "text/html; charset=utf-8")


@router.api_route("/page/{name}", methods=METHODS)
async def get_part(request: Request, name: str) -> Response:
    """A script, style sheet or picture of the pages."""
    if name not in PARTS:
        raise RouteNotFoundError()
    return await _answer(request, name, PARTS[name])


async def _answer(request: Request, name: str, media_type: str) -> Response:
    path = PAGE_DIRECTORY / name
    # Asked for each time, and sent only where it has changed.
    return answer_file(request, path, await to_thread.run_sync(path.stat), media_type, "no-cache")
