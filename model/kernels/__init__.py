"""Faster ways to scores and to features, each equal to the plain ones within rounding.

`attention` works in blocks within a processor's caches, in PyTorch's operators; `numba_attention` is a kernel
for processors, and `triton_attention` one for GPUs; `processor` and `gpu` know when they are used. They
import the features and the configuration of `model` alone. `numba_transformer` is a kernel for CLIP's towers,
used by `model.runtimes`. Both kernels for processors are made of `vectors`, and of `products` of float32 and
those of `fixed_point`; `stages` and `threads` divide their work.
"""
