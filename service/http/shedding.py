"""Searches that would find the queue full are refused before anything else is done about them.

Where ten times as many searches come as can be answered, nine of ten are refused, and what refusing costs is
taken from the one that is answered. So it is done before routing and before the body is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from service.admission import SearchGate
from service.auth.access import AccessControl
from service.auth.limits import CLIENT
from service.errors import OverloadedError, TooManyRequestsError

SEARCHES: Final = {
    "/search": ("POST", re.compile(r"/search")),
    "/videos/{video_id}/similar": ("GET", re.compile(r"/videos/[^/]+/similar")),
    "/videos/{video_id}/texts": ("POST", re.compile(r"/videos/[^/]+/texts")),
}
"""Endpoints that go through the gate: template -> method and path."""


class SheddingMiddleware:
    """Answers what `SearchGate.run` would raise at once.

    A request that will be refused for another reason, such as a wrong key, goes on to where that is found.

    get_gate: the gate, or None while nothing is loaded.
    """

    def __init__(
        self, app: ASGIApp, *, get_gate: Callable[[], SearchGate | None], access: AccessControl
    ) -> None:
        self.app = app
        self._get_gate = get_gate
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI wants it."""
        gate = self._get_gate() if scope["type"] == "http" else None
        if gate is not None and gate.is_full and (template := search_template(scope)) is not None:
            client = self._client(scope)
            if client is not None:
                try:
                    gate.check_room(client)
                except (OverloadedError, TooManyRequestsError) as problem:
                    scope["state"]["route_template"] = template
                    await problem.to_response()(scope, receive, send)
                    return
        await self.app(scope, receive, send)

    def _client(self, scope: Scope) -> str | None:
        """Who asks, as the gate knows them; None for somebody who may not search."""
        if not self._access.ring.required:
            return CLIENT.get()
        key = self._access.find_key(HTTPConnection(scope))
        if key is None:
            return None
        scope["state"]["key_name"] = key.name
        return key.client


def search_template(scope: Scope) -> str | None:
    """The template of the endpoint that a request goes to, where it is one of SEARCHES."""
    for template, (method, path) in SEARCHES.items():
        if scope["method"] == method and path.fullmatch(scope["path"]):
            return template
    return None
