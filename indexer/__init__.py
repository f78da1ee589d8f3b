"""Corpus to index directory: sample, decode, encode, store, search.

FAISS, decord, PyAV and SQLite live here. This room may import `model`; never `service` or `training`.
Importing the package is cheap: torch, FAISS and the decoders are loaded when a name below is first used.
Read in this order: `catalog` (the truth), `pipeline` (how videos get in), `searcher` (how they are found).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.catalog import Catalog as Catalog
    from indexer.decode_pool import DecodePool as DecodePool
    from indexer.decode_pool import DecodeRequest as DecodeRequest
    from indexer.errors import IndexerError as IndexerError
    from indexer.errors import MediaError as MediaError
    from indexer.fingerprint import index_fingerprint as index_fingerprint
    from indexer.frame_reader import probe as probe
    from indexer.frame_reader import read_frames as read_frames
    from indexer.job_queue import JobQueue as JobQueue
    from indexer.manifest import VideoSource as VideoSource
    from indexer.manifest import find_videos as find_videos
    from indexer.manifest import read_manifest as read_manifest
    from indexer.media import MediaInfo as MediaInfo
    from indexer.media import MediaLimits as MediaLimits
    from indexer.metadata_patch import patch_video as patch_video
    from indexer.pipeline import IndexingPipeline as IndexingPipeline
    from indexer.pipeline import IndexReport as IndexReport
    from indexer.sampling import Sampling as Sampling
    from indexer.search_types import SearchAnswers as SearchAnswers
    from indexer.search_types import SimilarAnswer as SimilarAnswer
    from indexer.search_types import TextsAnswer as TextsAnswer
    from indexer.searcher import SearchAnswer as SearchAnswer
    from indexer.searcher import Searcher as Searcher
    from indexer.searcher import SearchQuery as SearchQuery
    from indexer.searcher import SearchResult as SearchResult

_HOMES = {
    "Catalog": "indexer.catalog",
    "DecodePool": "indexer.decode_pool",
    "DecodeRequest": "indexer.decode_pool",
    "IndexReport": "indexer.pipeline",
    "IndexerError": "indexer.errors",
    "IndexingPipeline": "indexer.pipeline",
    "JobQueue": "indexer.job_queue",
    "MediaError": "indexer.errors",
    "MediaInfo": "indexer.media",
    "MediaLimits": "indexer.media",
    "Sampling": "indexer.sampling",
    "SearchAnswer": "indexer.searcher",
    "SearchAnswers": "indexer.search_types",
    "SearchQuery": "indexer.searcher",
    "SearchResult": "indexer.searcher",
    "Searcher": "indexer.searcher",
    "SimilarAnswer": "indexer.search_types",
    "TextsAnswer": "indexer.search_types",
    "VideoSource": "indexer.manifest",
    "find_videos": "indexer.manifest",
    "index_fingerprint": "indexer.fingerprint",
    "patch_video": "indexer.metadata_patch",
    "probe": "indexer.frame_reader",
    "read_frames": "indexer.frame_reader",
    "read_manifest": "indexer.manifest",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'indexer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
