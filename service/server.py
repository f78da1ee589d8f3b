"""Runs the application in uvicorn until a signal ends it.

At a signal `/readyz` answers 503 immediately; after the delay nothing new is accepted; requests under way are
answered, with `Connection: close`; then the application ends. Slow and half-open connections are for a proxy
in front to bound: see docs/operations.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.errors import is_full_memory
from service.http.middleware import SPARE_CONNECTIONS, BoundedProtocol, is_loopback
from service.observability.logs import start_logging
from service.observability.tracing import TracingUnavailableError, make_tracer_provider
from service.settings import Settings, is_service_link
from service.state import Drain

MAX_FILES = 65536
"""Open files and connections that this process allows itself, where it may."""

OWN_FILES = 256
"""Of them those that are no connections: 3 of the catalog for each of about 50 threads, videos, pipes of
child processes."""

MIN_CONNECTIONS = 8

logger = logging.getLogger("xclip_search.service")


def run_server(settings: Settings) -> int:
    """Serve until a signal; returns the exit status: 0, or 1 where it cannot serve."""
    start_logging(settings.log_format, settings.log_level)
    _warn_of_service_link(settings.port)
    try:
        tracing = make_tracer_provider() if settings.tracing else None
    except TracingUnavailableError as error:
        logger.error("cannot serve: %s", error)
        return 1
    failures: list[BaseException] = []

    def give_up(error: BaseException) -> None:
        if is_full_memory(error) and not failures:
            logger.error("memory is full: exiting with status 1, to be restarted")
        failures.append(error)
        server.should_exit = True

    def on_thread_failure(arguments: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(arguments)
        if is_full_memory(arguments.exc_value):
            give_up(arguments.exc_value or MemoryError())

    threading.excepthook = on_thread_failure
    app = create_app(settings, on_failure=give_up, tracing=tracing)
    if not (is_loopback(settings.host) or settings.allow_no_keys):
        app.state.access.ring.demand()
    config = _uvicorn_config(app, settings)
    server = DrainingServer(config, app.state.drain, settings.drain_delay_seconds)
    try:
        # Before anything is loaded: that a port is taken should be reported early.
        listener = listen_on(settings.host, settings.port)
    except OSError as error:
        reason = error.strerror or error
        logger.error("cannot listen on %s:%d: %s", settings.host, settings.port, reason)
        return 1
    address, bound_port = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    logger.info("running on http://%s:%d (press Ctrl+C to stop)", shown, bound_port)
    server.run(sockets=[listener])
    status = 1 if failures or not server.started else 0
    if app.state.is_loading.is_set():
        # Python would wait for the thread that loads. What it writes, it writes so that a crash does no harm.
        logger.info("stopped before the index was loaded")
        logging.shutdown()
        os._exit(status)
    return status


def _uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_connections_within_limits(settings.max_connections),
        proxy_headers=False,  # The application reads them, and keeps the peer's own address.
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.drain_timeout_seconds,
    )


def _warn_of_service_link(port: int) -> None:
    value = os.environ.get("XCLIP_PORT")
    if is_service_link(value):
        logger.warning(
            "XCLIP_PORT=%s was set by Kubernetes for a Service named xclip and is no port. It is"
            " ignored, and the port is %d; set enableServiceLinks: false, or rename the Service",
            value,
            port,
        )


def listen_on(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises OSError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # Accepted connections inherit it. asyncio sets it on sockets of its own making only, and uvicorn writes
    # an answer in two parts: the second would wait 40 ms for the client's delayed acknowledgement of the
    # first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which marks the application as draining and ends with status 0."""

    def __init__(self, config: uvicorn.Config, drain: Drain, delay_seconds: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._delay_seconds = delay_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGTERM and SIGINT. A second Ctrl-C ends immediately.

        uvicorn would note the signal and raise it again at the end, for an exit status of its own.
        """
        self._drain.begin()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Go on accepting for the delay, then let uvicorn answer what is under way."""
        self._drain.begin()
        if not self.force_exit:
            await asyncio.sleep(self._delay_seconds)
        await super().shutdown(sockets)


def _connections_within_limits(wanted: int) -> int:
    """How many connections there may be: `wanted`, or as many as this process may open files for.

    Its limit of open files is raised first as far as it may be. At the limit nothing works any more, not even
    what is under way: the catalog could not be opened, nor a video.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard > MAX_FILES:
        hard = MAX_FILES if soft == resource.RLIM_INFINITY else max(soft, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    possible = max(MIN_CONNECTIONS, hard - OWN_FILES - SPARE_CONNECTIONS)
    if wanted <= possible:
        return wanted
    logger.warning(
        "the limit of %d open files is too low for XCLIP_MAX_CONNECTIONS=%d: taking %d connections;"
        " raise the limit to %d (ulimit -n, LimitNOFILE= of systemd, ulimits of compose)",
        hard,
        wanted,
        possible,
        wanted + OWN_FILES + SPARE_CONNECTIONS,
    )
    return possible
