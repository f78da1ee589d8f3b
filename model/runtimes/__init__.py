"""What computes the towers on a processor in PyTorch's place: OpenVINO and a kernel, the extra `fast`.

`converted` decides and falls back. `tower_kernels` are for CLIP's towers, whose blocks `transformer_kernel`
computes; `openvino` is for all others, whose conversions `conversions` keeps.
"""

import os
from typing import Literal, get_args

# OpenVINO's TBB opens hwloc with RTLD_DEEPBIND: hwloc then calls libc's own `free` on memory that libc's
# functions got from the `malloc` that LD_PRELOAD put in its place (jemalloc, glibc's malloc checks), and the
# process dies there or later. With this variable, read when TBB opens hwloc, it does without that flag:
# https://github.com/uxlfoundation/oneTBB/issues/1636. Set here and not where OpenVINO is imported, because
# that happens beside other threads, which may be reading the environment.
os.putenv("TBB_ENABLE_SANITIZERS", "1")

Runtime = Literal["auto", "torch", "openvino", "openvino-bf16"]
"""What computes the towers. auto: on a processor a kernel for CLIP's towers and OpenVINO for others, where
they are installed and compute the same as PyTorch and the tower is not small; else PyTorch.
openvino-bf16: as auto, with frames in bfloat16, which are other features with a fingerprint of their own."""

UsedRuntime = Literal["torch", "numba", "openvino", "openvino-bf16"]
"""What a model or a tower is computed by."""

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
