"""What proxies say of a request: whose it is, by which scheme, and below which path they show this server."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.settings import OWN_PATHS, parse_prefix


class ForwardingMiddleware:
    """Takes X-Forwarded-For, -Proto and -Prefix from trusted proxies, and puts every path below its prefix.

    The prefix is the setting's, or where there is none X-Forwarded-Prefix, which proxies send that strip one.
    A path that comes without the prefix was stripped of it, or asked for directly: both are answered. To the
    application `path` begins with `root_path`, as ASGI has it.

    In the scope's `state` it leaves `through_proxy`, whether the connection is a trusted proxy's.

    trusted_proxies: as `Settings.trusted_proxies`. root_path: as `Settings.root_path`.
    """

    def __init__(self, app: ASGIApp, *, trusted_proxies: str, root_path: str) -> None:
        # uvicorn's own has other names for the same types.
        self._app = ProxyHeadersMiddleware(app, trusted_proxies)  # type: ignore[arg-type]
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request: an ASGI application."""
        if scope["type"] == "http":
            scope = dict(scope)
            peer = scope["client"][0] if scope.get("client") else ""
            through_proxy = peer in self._app.trusted_hosts
            scope["state"] = {**scope.get("state", {}), "through_proxy": through_proxy}
            prefix = self._root_path
            if not prefix and through_proxy:
                prefix = forwarded_prefix(Headers(scope=scope))
            if prefix:
                _put_below(scope, prefix)
        await self._app(scope, receive, send)  # type: ignore[arg-type]


def forwarded_prefix(headers: Headers) -> str:
    """The prefix of X-Forwarded-Prefix, of several proxies one after the other; empty where it is none."""
    prefixes = ",".join(headers.getlist("x-forwarded-prefix")).split(",")
    try:
        return "".join(parse_prefix(prefix) for prefix in prefixes)
    except ValueError:
        return ""


def _put_below(scope: Scope, prefix: str) -> None:
    scope["root_path"] = prefix
    path: str = scope["path"]
    # A prefix that is called as a path of ours cannot be told from it. The setting does not take such a one,
    # and a proxy that sends the header has stripped it.
    is_below = path == prefix or path.startswith(f"{prefix}/")
    if not is_below or prefix.split("/")[1] in OWN_PATHS:
        scope["path"] = prefix + path
        if raw_path := scope.get("raw_path"):
            scope["raw_path"] = prefix.encode() + raw_path


def route_path(scope: Scope) -> str:
    """The path of a request as our routes have it: without the prefix."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
