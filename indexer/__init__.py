"""Corpus to index directory: sample, decode, encode, store, search.

FAISS, decord, PyAV and SQLite live here. This room may import `model`; never `service` or `training`.
Importing the package is cheap: torch, FAISS and the decoders are loaded when a name below is first used.
Read in this order: `catalog` (the truth), `pipeline` (how videos get in), `searcher` (how they are found).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.errors import IndexerError as IndexerError
    from indexer.errors import MediaError as MediaError
    from indexer.ingest.encoding import index_fingerprint as index_fingerprint
    from indexer.ingest.manifest import VideoSource as VideoSource
    from indexer.ingest.manifest import find_videos as find_videos
    from indexer.ingest.manifest import read_manifest as read_manifest
    from indexer.ingest.pipeline import IndexingPipeline as IndexingPipeline
    from indexer.ingest.pipeline import IndexReport as IndexReport
    from indexer.media.decode_pool import DecodePool as DecodePool
    from indexer.media.decode_pool import DecodeRequest as DecodeRequest
    from indexer.media.frame_reader import probe as probe
    from indexer.media.frame_reader import read_frames as read_frames
    from indexer.media.probing import MediaInfo as MediaInfo
    from indexer.media.probing import MediaLimits as MediaLimits
    from indexer.media.sampling import Sampling as Sampling
    from indexer.search.searcher import SearchAnswer as SearchAnswer
    from indexer.search.searcher import Searcher as Searcher
    from indexer.search.searcher import SearchQuery as SearchQuery
    from indexer.search.searcher import SearchResult as SearchResult
    from indexer.search.types import SearchAnswers as SearchAnswers
    from indexer.search.types import SimilarAnswer as SimilarAnswer
    from indexer.search.types import TextsAnswer as TextsAnswer
    from indexer.store.sqlite.catalog import Catalog as Catalog
    from indexer.store.sqlite.catalog import patch_video as patch_video
    from indexer.store.sqlite.jobs import JobQueue as JobQueue

_HOMES = {
    "Catalog": "indexer.store.sqlite.catalog",
    "DecodePool": "indexer.media.decode_pool",
    "DecodeRequest": "indexer.media.decode_pool",
    "IndexReport": "indexer.ingest.pipeline",
    "IndexerError": "indexer.errors",
    "IndexingPipeline": "indexer.ingest.pipeline",
    "JobQueue": "indexer.store.sqlite.jobs",
    "MediaError": "indexer.errors",
    "MediaInfo": "indexer.media.probing",
    "MediaLimits": "indexer.media.probing",
    "Sampling": "indexer.media.sampling",
    "SearchAnswer": "indexer.search.searcher",
    "SearchAnswers": "indexer.search.types",
    "SearchQuery": "indexer.search.searcher",
    "SearchResult": "indexer.search.searcher",
    "Searcher": "indexer.search.searcher",
    "SimilarAnswer": "indexer.search.types",
    "TextsAnswer": "indexer.search.types",
    "VideoSource": "indexer.ingest.manifest",
    "find_videos": "indexer.ingest.manifest",
    "index_fingerprint": "indexer.ingest.encoding",
    "patch_video": "indexer.store.sqlite.catalog",
    "probe": "indexer.media.frame_reader",
    "read_frames": "indexer.media.frame_reader",
    "read_manifest": "indexer.ingest.manifest",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'indexer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
