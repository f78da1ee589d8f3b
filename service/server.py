"""Runs the application in uvicorn until a signal ends it, and then answers all that was asked before.

At a signal: readiness goes at once; after the delay nothing new is accepted; connections that the kernel had
accepted by then are served too; requests under way are answered, with `Connection: close`; then the
application ends.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType

import uvicorn

from service.app import create_app
from service.http.middleware import HEADER_LIMIT_BYTES, URI_LIMIT_BYTES, is_loopback
from service.http.protocol import BoundedConfig, BoundedProtocol, ConnectionLimits
from service.observability.logs import start_logging
from service.observability.tracing import Tracing, TracingUnavailableError
from service.settings import ServiceSettings
from service.state import Drain

BACKLOG = 2048
"""Connections that the kernel keeps until we accept them."""

LAST_CONNECTIONS_SECONDS = 0.01
"""Before the door is shut, where no longer delay is set: asyncio makes a connection's transport one round of
its loop after it accepted it, and drops it where the door was shut between. A timer is due after that."""

LAST_REQUESTS_SECONDS = 0.3
"""After the door is shut: for requests that were sent before on connections that are open already."""

SPARE_FILES = 256
"""File descriptors for all that is no connection."""

logger = logging.getLogger("xclip_search.service")


def run_server(settings: ServiceSettings, host: str, port: int) -> int:
    """Serve until a signal; returns the exit status: 0, or 1 where it cannot serve."""
    start_logging(settings.log_format, settings.log_level)
    try:
        tracing = Tracing() if settings.tracing else None
    except TracingUnavailableError as error:
        logger.error("cannot serve: %s", error)
        return 1
    raise_file_limit(settings.max_connections)
    try:
        listeners = listen(host, port)
    except OSError as error:
        logger.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        return 1
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_load_failure=give_up, tracing=tracing)
    if not (is_loopback(host) or settings.allow_no_keys):
        app.state.access.ring.demand()
    config = BoundedConfig(
        app,
        ConnectionLimits(settings.max_connections, settings.header_timeout_seconds),
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_LIMIT_BYTES + URI_LIMIT_BYTES,
        forwarded_allow_ips=settings.trusted_proxies,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.drain_timeout_seconds,
    )
    server = DrainingServer(config, app.state.drain, settings.drain_delay_seconds)
    address, bound_port = listeners[0].getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    logger.info("running on http://%s:%d (press Ctrl+C to end)", shown, bound_port)
    server.run(sockets=listeners)
    status = 1 if failures or not server.started else 0
    if app.state.is_loading.is_set():
        # Python would wait for the thread that loads. What it writes, it writes so that a crash does no harm.
        logger.info("ended before the index was loaded")
        logging.shutdown()
        os._exit(status)
    return status


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drops nothing that came in before it closed its door."""

    def __init__(self, config: BoundedConfig, drain: Drain, delay_seconds: float) -> None:
        super().__init__(config)
        self._drain = drain
        self._delay_seconds = delay_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called for SIGTERM and SIGINT. A second Ctrl-C ends at once. Unlike uvicorn, exit 0 after all."""
        self._drain.begin()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what is at the door, shut it, and let uvicorn wait for what is inside."""
        self._drain.begin()
        if not self.force_exit:
            await asyncio.sleep(max(self._delay_seconds, LAST_CONNECTIONS_SECONDS))
        at_the_door = [connection for listener in sockets or [] for connection in accept_waiting(listener)]
        # Nothing is awaited between the last look and this, so that nobody comes in between unseen.
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in at_the_door:
            await loop.connect_accepted_socket(self._make_protocol, connection)
        await asyncio.sleep(LAST_REQUESTS_SECONDS)
        await super().shutdown(sockets)

    def _make_protocol(self) -> BoundedProtocol:
        assert isinstance(self.config, BoundedConfig)
        return BoundedProtocol(self.config, self.server_state, self.lifespan.state)


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address that `host` stands for; port 0: any, the same for all.

    Raises OSError where the port is taken or the address is none of this machine's.
    """
    listeners: list[socket.socket] = []
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in dict.fromkeys(infos):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], listeners[0].getsockname()[1] if listeners else port, *address[2:]))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            # `localhost` stands for ::1 too, where there may be no IPv6.
            if listeners and error.errno == errno.EADDRNOTAVAIL:
                continue
            for other in listeners:
                other.close()
            raise
        listeners.append(listener)
    return listeners


def accept_waiting(listener: socket.socket) -> Sequence[socket.socket]:
    """The connections that the kernel has accepted and nobody took yet."""
    connections: list[socket.socket] = []
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # Nobody waits; or no descriptors are left.
            return connections
        connection.setblocking(False)
        connections.append(connection)


def raise_file_limit(max_connections: int) -> None:
    """Allow this process as many open files as so many connections may need, or as many as it may have."""
    import resource

    # Each may send or fetch a file, and as many again may be open until they are refused.
    wanted = 3 * max_connections + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        logger.warning(
            "this process may open %d files, and %d connections may need %d: raise the limit (ulimit -n), or "
            "lower XCLIP_MAX_CONNECTIONS",
            hard,
            max_connections,
            wanted,
        )
        wanted = hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
