"""Runs the application in uvicorn until a signal ends it."""

from __future__ import annotations

import logging

import uvicorn

from service.app import create_app
from service.settings import ServiceSettings

SHUTDOWN_SECONDS = 10
"""Requests under way have so long to end once a signal came."""


def run_server(settings: ServiceSettings, host: str, port: int) -> int:
    """Serve until a signal; returns the exit status: 0, or 1 where model or index cannot be loaded."""
    start_logging()
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_load_failure=give_up)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = uvicorn.Server(config)
    server.run()
    return 1 if failures or not server.started else 0


def start_logging() -> None:
    """Log lines of time, level, who and what, to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "faiss.loader"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
