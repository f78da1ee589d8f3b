"""Corpus to index directory: sample, decode, encode, store, search.

FAISS, decord, PyAV and SQLite live here. This package may import `model`; never `service` or `training`.
`indexer.index.Index` joins its parts: `search` and `maintenance`, `ingest` and `coarse`, `store`, `media`;
each imports only what stands to its right. Importing the package itself loads nothing.
"""
