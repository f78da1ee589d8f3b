"""From settings to a searcher: the model is loaded, the index opened, or made where there is none."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

from indexer.errors import IndexerError, IndexNotFoundError
from indexer.ingest.encoding import index_facts, index_fingerprint
from indexer.media.sampling import Sampling
from indexer.search.types import SearchQuery
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.generations import index_exists
from model.errors import ModelError
from service.settings import Settings

if TYPE_CHECKING:
    from indexer.search.searcher import Searcher
    from model import XClip

logger = logging.getLogger("xclip_search.service")


def load_model(settings: Settings) -> XClip:
    """The model of an index, or the one of the settings; the index is made where there is none.

    Raises:
        IndexNotFoundError: There is no index and no model to make one with.
        FingerprintMismatchError: Index and model do not belong together.
        ModelError: The model cannot be loaded.
    """
    from model import XClip

    index_directory, device = settings.index_directory, settings.device
    if not index_exists(index_directory):
        model_spec = settings.model or settings.new_index_model
        if model_spec is None:
            raise IndexNotFoundError(f"there is no index in {index_directory}, and no model to make one with")
        model = XClip.load(model_spec, device)
        sampling = Sampling(num_frames=model.config.num_frames)
        with Catalog.open_or_create(index_directory, index_facts(model, model_spec, sampling)):
            logger.info("made an empty index in %s", index_directory)
        return model
    with Catalog.open(index_directory) as catalog:
        spec = settings.model or catalog.model_spec
        sampling_json = catalog.sampling_json
    model = XClip.load(spec, device)
    Catalog.open(index_directory, fingerprint=index_fingerprint(model, sampling_json)).close()
    return model


def load_searcher(settings: Settings) -> Searcher:
    """A searcher that is ready to answer. Raises as `load_model` does."""
    from indexer.search.searcher import Searcher

    model = load_model(settings)
    searcher = Searcher(
        settings.index_directory,
        model,
        coarse_kind=settings.coarse_kind,
        feature_memory_bytes=settings.feature_memory_bytes,
    )
    searcher.catalog.filter_limit_seconds = settings.filter_limit_seconds
    try:
        if settings.warm_up:
            # So that the first client does not pay for what torch does once, nor the first filter.
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
