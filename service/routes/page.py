"""The page at /, the API's description at /docs, their parts, and a browser's /session."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.auth.access import COOKIE, OPEN, AccessControl, make_session
from service.errors import KeyNeededError, RouteNotFoundError, TooManyRequestsError, UnauthorizedError
from service.http.files import answer_file
from service.http.openapi import problems
from service.schemas.operation import SessionAnswer, SessionRequest
from service.settings import Settings

router = APIRouter(dependencies=[OPEN])

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


@router.api_route("/", methods=METHODS, include_in_schema=False)
async def get_page(request: Request) -> Response:
    """The search page."""
    return await _answer(request, "index.html", "text/html; charset=utf-8")


@router.api_route("/docs", methods=METHODS, include_in_schema=False)
async def get_docs(request: Request) -> Response:
    """The endpoints, for people; made from /openapi.json in the browser."""
    return await _answer(request, "docs.html", "text/html; charset=utf-8")


@router.api_route("/page/{name}", methods=METHODS, include_in_schema=False)
async def get_part(request: Request, name: str) -> Response:
    """A script, style sheet or picture of the pages."""
    if name not in PARTS:
        raise RouteNotFoundError()
    return await _answer(request, name, PARTS[name])


async def _answer(request: Request, name: str, media_type: str) -> Response:
    path = PAGE_DIRECTORY / name
    # Asked for each time, and sent only where it has changed.
    return answer_file(request, path, await to_thread.run_sync(path.stat), media_type, "no-cache")


@router.post(
    "/session",
    tags=["session"],
    status_code=204,
    responses={
        **problems(UnauthorizedError, KeyNeededError, TooManyRequestsError),
        204: {"description": "Logged in: a cookie is set"},
    },
)
async def log_in(request: Request, body: SessionRequest) -> Response:
    """Log a browser in: a cookie that its scripts cannot read then stands for the key."""
    settings: Settings = request.app.state.settings
    key = _control(request).check_secret(request, body.key)
    response = Response(status_code=204)
    response.set_cookie(
        COOKIE,
        make_session(key, settings.session_seconds),
        max_age=int(settings.session_seconds),
        path=_cookie_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.get("/session", tags=["session"])
async def get_session(request: Request) -> SessionAnswer:
    """What this client may do, and whether a key is needed at all."""
    control = _control(request)
    if not control.ring.required:
        return SessionAnswer(scopes=["read", "write"], keys_required=False)
    key = control.identify(request)
    if key is None:
        return SessionAnswer(scopes=[], keys_required=True)
    return SessionAnswer(scopes=["read", "write"] if key.allows("write") else ["read"], keys_required=True)


@router.delete("/session", tags=["session"], status_code=204)
async def log_out(request: Request) -> Response:
    """Log a browser out: its cookie is taken away."""
    response = Response(status_code=204)
    response.delete_cookie(
        COOKIE,
        path=_cookie_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


def _control(request: Request) -> AccessControl:
    control = request.app.state.access
    assert isinstance(control, AccessControl)
    return control


def _cookie_path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"
