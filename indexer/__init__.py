"""Corpus to index directory: sample, decode, encode, store, search.

FAISS, decord, PyAV and SQLite live here. This room may import `model`; never `service` or `training`.
Importing the package is cheap: torch, FAISS and the decoders are loaded by the modules that need them.
Read in this order: `catalog` (the truth), `pipeline` (how videos get in), `searcher` (how they are found).
"""

from __future__ import annotations
