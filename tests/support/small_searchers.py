"""Indexes of a tiny model for tests of searches, filled with drawn features."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from indexer.ingest.encoding import index_fingerprint
from indexer.search.searcher import Searcher
from indexer.store.sqlite.catalog import Catalog
from model import XClip, XClipConfig
from tests.support.catalog_builders import add_video, create_catalog, make_segment

D, F = 32, 8


@functools.cache
def tiny_model() -> XClip:
    """Away from the identity, or some mistakes would not show."""
    torch.manual_seed(0)
    model = XClip(XClipConfig.tiny()).eval()
    with torch.no_grad():
        for matrix in model.matrices.parameters():
            matrix += 0.05 * torch.randn_like(matrix)
    return model


def make_index(directory: Path) -> Path:
    """An empty index of `tiny_model`."""
    fingerprint = index_fingerprint(tiny_model(), "{}")
    create_catalog(
        directory, embedding_dim=D, num_frames=F, fingerprint=fingerprint, sampling_json="{}"
    ).close()
    return directory


def open_index(directory: Path) -> Searcher:
    """A searcher of an index that `make_index` made."""
    return Searcher(directory, tiny_model(), block_size=16)


def fill(catalog: Catalog, numbers: Iterable[int], *, segments_each: int = 1, num_looks: int = 0) -> None:
    """Add videos `video-NUMBER`. num_looks: distinct features of segments; 0: all differ."""
    with catalog.transaction() as transaction:
        for number in numbers:
            segments = []
            for position in range(segments_each):
                look = 100 * number + position
                random = np.random.default_rng(look % num_looks if num_looks else look)
                num_real = 1 + int(random.integers(F))
                segments.append(
                    make_segment(random, D, F, num_real_frames=num_real, start_seconds=10.0 * position)
                )
            said = {"title": f"title {number}", "metadata": {"number": number}}
            add_video(catalog, number, segments, transaction=transaction, **said)
