"""From settings to a searcher: the model is loaded, the index opened, or made where there is none."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

from indexer.errors import IndexerError, IndexNotFoundError
from indexer.search.types import SearchQuery
from indexer.store.store import store_exists
from model.errors import ModelError
from service.settings import Settings, WorkerSettings

if TYPE_CHECKING:
    from indexer.index import Index
    from indexer.search.searcher import Searcher

logger = logging.getLogger("xclip_search.service")

DATABASE_SILENCE_SECONDS = 1.5
"""After which requests are answered that the database does not answer: within two seconds with the rest."""


def open_index(settings: WorkerSettings) -> Index:
    """The index of the settings with its model, or the one that they name; made where there is none.

    Raises:
        IndexNotFoundError: There is no index and no model is given to make one.
        FingerprintMismatchError: Index and model do not belong together.
        ModelError: The model cannot be loaded.
    """
    from indexer.index import Index

    address = settings.index_address
    places: dict[str, Any] = {"device": settings.device, "runtime": settings.runtime}
    if store_exists(address):
        return Index.open(address, settings.model, **places)
    model_spec = settings.model or settings.new_index_model
    if model_spec is None:
        raise IndexNotFoundError(f"there is no index in {address}, and no model is given to make one")
    index = Index.open_or_create(address, model_spec, **places)
    logger.info("made an empty index in %s", address)
    return index


def load_searcher(settings: Settings) -> Searcher:
    """A searcher that is ready to answer. Raises as `open_index` does."""
    from indexer.search.searcher import Searcher

    with open_index(settings) as index:
        if index.model.device.type == "cpu" and "feature_memory_bytes" in settings.model_fields_set:
            logger.warning(
                "XCLIP_FEATURE_MEMORY_BYTES has no effect without a GPU: features are read from a file that"
                " the operating system keeps in free memory"
            )
        searcher = Searcher(
            settings.searched_address,
            index.model,
            coarse_kind=settings.coarse_kind,
            feature_memory_bytes=settings.feature_memory_bytes,
            feature_file=settings.feature_file,
        )
    searcher.catalog.filter_limit_seconds = settings.filter_limit_seconds
    searcher.catalog.silence_limit_seconds = DATABASE_SILENCE_SECONDS
    try:
        if settings.warm_up:
            # So that the first client does not pay for what torch does once, nor the first filter.
            searcher.model.prepare("scores")
            searcher.search(SearchQuery(text="a warm-up"))
            searcher.catalog.check_records()
        catalog = searcher.catalog
        logger.info("loaded generation %d of the index: %d videos", catalog.generation, catalog.num_videos)
    except BaseException:
        searcher.close()
        raise
    return searcher


def freeze_loaded_objects() -> None:
    """Exempt everything that lives now from garbage collection.

    A full collection traverses the objects of torch and of the model for half a second, and all requests wait
    for it. To be called again when a model was closed: only then are its cycles collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def log_failure(message: str, error: Exception, advice: str = "") -> None:
    """Log what could not be done. Messages of our own errors say all that the operator needs; any other error
    is logged with its traceback."""
    known = isinstance(error, (IndexerError, ModelError))
    logger.error("%s: %s%s", message, error, advice, exc_info=None if known else error)
