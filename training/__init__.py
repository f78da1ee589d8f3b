"""Datasets, loss, training and evaluation, and the demo: its corpus and its model.

This package makes and evaluates checkpoints. It may import `indexer` (decoding) and `model`; only the console
command imports it. Nothing here is needed to index or to serve.
"""
