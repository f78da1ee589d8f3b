"""Ingest: lists of files, decoding and encoding, one transaction a video."""
