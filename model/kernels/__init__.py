"""Faster ways to the scores of `model.scoring`, each equal to its plain functions within rounding.

`attention` works in blocks within a processor's caches, in PyTorch's operators; `numba_attention` is a kernel
for processors, and `triton_attention` one for GPUs; `processor` and `gpu` know when they are used. They
import the features and the configuration of `model` alone.
"""
