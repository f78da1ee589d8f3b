"""From settings to a searcher: the model is loaded, the index opened, or made where there is none."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import IndexerError, IndexNotFoundError
from indexer.ingest.encoding import index_facts, index_fingerprint
from indexer.media.sampling import Sampling
from indexer.search.types import SearchQuery
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.generations import index_exists
from model.errors import ModelError
from service.settings import CoarseKindChoice

if TYPE_CHECKING:
    from indexer.search.searcher import Searcher
    from model import XClip

logger = logging.getLogger("xclip_search.service")


def load_model(
    index_directory: Path, model_spec: str | None, device: str, *, new_index_model: str | None = None
) -> XClip:
    """The model of an index, or the one of `model_spec`; the index is made where there is none.

    new_index_model: of an index that is made here, where `model_spec` is None.
    Raises IndexNotFoundError where there is no index and no spec, FingerprintMismatchError where index and
    model do not belong together, and whatever loading a model raises.
    """
    from model import XClip

    if not index_exists(index_directory):
        model_spec = model_spec or new_index_model
        if model_spec is None:
            raise IndexNotFoundError(f"there is no index in {index_directory}, and no model to make one with")
        model = XClip.load(model_spec, device)
        sampling = Sampling(num_frames=model.config.num_frames)
        with Catalog.open_or_create(index_directory, index_facts(model, model_spec, sampling)):
            logger.info("made an empty index in %s", index_directory)
        return model
    with Catalog.open(index_directory) as catalog:
        spec = model_spec or catalog.model_spec
        sampling_json = catalog.sampling_json
    model = XClip.load(spec, device)
    Catalog.open(index_directory, fingerprint=index_fingerprint(model, sampling_json)).close()
    return model


def load_searcher(
    index_directory: Path,
    model_spec: str | None,
    device: str,
    *,
    new_index_model: str | None = None,
    warm_up: bool,
    coarse_kind: CoarseKindChoice = "auto",
    feature_memory_bytes: int = 0,
) -> Searcher:
    """A searcher that is ready to answer. Raises as `load_model` does.

    warm_up: run one search, so that the first client does not pay for what torch does once.
    """
    from indexer.search.searcher import Searcher

    model = load_model(index_directory, model_spec, device, new_index_model=new_index_model)
    searcher = Searcher(
        index_directory, model, coarse_kind=coarse_kind, feature_memory_bytes=feature_memory_bytes
    )
    try:
        if warm_up:
            searcher.search(SearchQuery(text="a warm-up"))
        catalog = searcher.catalog
        logger.info("loaded generation %d of the index: %d videos", catalog.generation, catalog.num_videos)
    except BaseException:
        searcher.close()
        raise
    return searcher


def freeze_loaded_objects() -> None:
    """Exempt everything that lives now from garbage collection.

    A full collection looks at the objects of torch and of the model for half a second, and all requests wait
    for it. To be called again when a model was closed: only then are its cycles collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def log_failure(message: str, error: Exception, advice: str = "") -> None:
    """Log what could not be done. Messages of our own errors say all that a person needs; of any other error
    the traceback is wanted."""
    known = isinstance(error, (IndexerError, ModelError))
    logger.error("%s: %s%s", message, error, advice, exc_info=None if known else error)
