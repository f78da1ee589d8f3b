"""Switching to another generation of the index while requests are answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from anyio import to_thread
from fastapi import FastAPI

from indexer.errors import FingerprintMismatchError, IndexerError
from indexer.store.records import Successor
from service.errors import is_full_memory
from service.loading import freeze_loaded_objects, log_failure
from service.state import ReadyService

POLL_SECONDS = 0.5
"""Pause between two polls for a new current generation."""

RETRY_SECONDS = 10.0
"""Pause after the new generation could not be loaded."""

logger = logging.getLogger("xclip_search.service")


async def watch_generations(
    app: FastAPI, load: Callable[[], Awaitable[ReadyService]], retire_seconds: float
) -> None:
    """Replace `app.state.service` by what `load` returns whenever its catalog is superseded.

    Until cancelled. The former service goes on answering the requests that have it, and is closed
    `retire_seconds` later. Where loading fails, it goes on for all: searches are answered, changes are not;
    `app.state.is_outdated` is true meanwhile, and the log says why.
    """
    retiring: set[asyncio.Task[None]] = set()
    try:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            former: ReadyService = app.state.service
            try:
                successor = await to_thread.run_sync(_read_successor, former)
            except Exception as error:
                log_failure("cannot check whether the index was reindexed", error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            app.state.is_outdated = successor is not None
            if successor is None:
                continue
            logger.info("the index was reindexed: loading generation %d", successor.generation)
            try:
                service = await load()
            except Exception as error:
                if is_full_memory(error):
                    raise  # No room for both generations at once. A restarted server loads the new one alone.
                log_failure(
                    "cannot switch to the new generation of the index, still serving the previous one",
                    error,
                    _advice(former) if isinstance(error, FingerprintMismatchError) else "",
                )
                await asyncio.sleep(RETRY_SECONDS)
                continue
            # From here on new requests get the new one; those under way keep the former, which is closed when
            # none of them can be left.
            app.state.service, app.state.is_outdated = service, False
            logger.info(
                "switched to generation %d of the index, fingerprint %s",
                service.catalog.generation,
                service.catalog.fingerprint,
            )
            task = asyncio.create_task(_retire(former, retire_seconds))
            retiring.add(task)
            task.add_done_callback(retiring.discard)
    finally:
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)


def _read_successor(service: ReadyService) -> Successor | None:
    return service.catalog.superseded_by


def _advice(former: ReadyService) -> str:
    spec = former.settings.model
    return "" if spec is None else f"; start again without --model {spec}, which the new generation is not of"


async def _retire(service: ReadyService, seconds: float) -> None:
    """Close a service that no new request gets any more."""
    # A thread may keep what it was given for a moment after it has reported that it is done: the one that
    # closes gets a list and empties it.
    last = [service]
    del service
    try:
        await asyncio.sleep(seconds)
    finally:
        with contextlib.suppress(IndexerError):
            await asyncio.shield(to_thread.run_sync(_close, last))
    freeze_loaded_objects()


def _close(last: list[ReadyService]) -> None:
    last.pop().searcher.close()
