"""Faster ways to the scores of `model.scoring`, each equal to its plain functions within rounding.

`attention` works in blocks within a processor's caches; `triton_attention` is for GPUs, and `gpu` knows when
it is used. They import the features and the configuration of `model` alone.
"""
