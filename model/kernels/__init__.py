"""Faster ways to scores and to the features of texts, each equal to the plain ones within rounding.

`attention` works in blocks within a processor's caches, in PyTorch's operators; `numba_attention` is a kernel
for processors, and `triton_attention` one for GPUs; `processor` and `gpu` know when they are used. They
import the features and the configuration of `model` alone. `numba_text_tower` is a kernel for CLIP's text
tower, used by `model.runtimes`. Both kernels for processors are made of `vectors`; `stages` and `threads`
divide their work.
"""
