"""Faster ways to the scores of `model.scoring`, each equal to its plain functions within rounding.

`attention` works in blocks within a processor's caches. Imports the features and the configuration of `model`
alone.
"""
