"""POST, GET and DELETE /session: how a browser logs in and out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.auth.access import COOKIE, OPEN, AccessControl, make_session
from service.errors import TooManyRequestsError, UnauthorizedError
from service.http.openapi import problems
from service.schemas.operation import SessionAnswer, SessionRequest
from service.settings import Settings

router = APIRouter(prefix="/session", tags=["session"], dependencies=[OPEN])


@router.post(
    "",
    status_code=204,
    responses={
        **problems(UnauthorizedError, TooManyRequestsError),
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
        path=_path(request),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.get("")
async def get_session(request: Request) -> SessionAnswer:
    """What whoever asks may do here, and whether a key is needed at all."""
    control = _control(request)
    if not control.ring.required:
        return SessionAnswer(scopes=["read", "write"], keys_required=False)
    key = control.identify(request)
    if key is None:
        return SessionAnswer(scopes=[], keys_required=True)
    return SessionAnswer(scopes=["read", "write"] if key.allows("write") else ["read"], keys_required=True)


@router.delete("", status_code=204)
async def log_out(request: Request) -> Response:
    """Log a browser out: its cookie is taken away."""
    response = Response(status_code=204)
    response.delete_cookie(
        COOKIE, path=_path(request), secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return response


def _control(request: Request) -> AccessControl:
    control = request.app.state.access
    assert isinstance(control, AccessControl)
    return control


def _path(request: Request) -> str:
    return request.scope.get("root_path", "") or "/"
