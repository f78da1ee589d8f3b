"""How long a request may take: to arrive, and to be answered."""

from __future__ import annotations

import asyncio
import time

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceededError, RequestTimeoutError


class DeadlineMiddleware:
    """Answers 504 where no answer was begun in time, 408 where a body stops arriving or merely trickles.

    request_timeout_seconds: from the headers to the beginning of the answer, unless the endpoint declares
        WITHOUT_DEADLINE.
    body_timeout_seconds: longest silence while a body arrives. min_bytes_per_second: a body has
        body_timeout_seconds and on top the time that it takes at this rate; only waiting for it counts.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        request_timeout_seconds: float,
        body_timeout_seconds: float,
        min_bytes_per_second: int,
    ) -> None:
        self.app = app
        self._request_timeout_seconds = request_timeout_seconds
        self._body_timeout_seconds = body_timeout_seconds
        self._min_bytes_per_second = min_bytes_per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, as ASGI wants it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        deadline = asyncio.timeout(self._request_timeout_seconds)
        scope.setdefault("state", {})["deadline"] = deadline
        begun = False

        async def send_in_time(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and not begun:
                if deadline.expired():
                    await asyncio.sleep(0)  # The cancellation comes here: this answer is too late.
                begun = True
                deadline.reschedule(None)
            await send(message)

        try:
            async with deadline:
                await self.app(scope, self._watch(receive), send_in_time)
        except TimeoutError:
            if begun or not deadline.expired():
                raise
            await DeadlineExceededError().to_response()(scope, receive, send)

    def _watch(self, receive: Receive) -> Receive:
        waited_seconds, num_received, complete = 0.0, 0, False

        async def receive_in_time() -> Message:
            nonlocal waited_seconds, num_received, complete
            if complete:
                return await receive()
            left = self._body_timeout_seconds + num_received / self._min_bytes_per_second - waited_seconds
            started = time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left, self._body_timeout_seconds))):
                    message = await receive()
            except TimeoutError:
                raise RequestTimeoutError() from None
            waited_seconds += time.monotonic() - started
            num_received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            return message

        return receive_in_time


async def _end_without_deadline(request: Request) -> None:
    request.state.deadline.reschedule(None)


WITHOUT_DEADLINE = Depends(_end_without_deadline)
"""Declared by an endpoint that takes as long as its client keeps sending."""


def has_deadline(route: APIRoute) -> bool:
    """Whether a route has to begin its answer in time."""
    return all(dependant.call is not _end_without_deadline for dependant in route.dependant.dependencies)
