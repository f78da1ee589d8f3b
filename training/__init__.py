"""Datasets, loss, training and evaluation, and the demo: its corpus and its model.

This room makes and judges checkpoints. It may import `indexer` (decoding) and `model`; nothing imports it but
the console command. Nothing here is needed to index or to serve.
"""
