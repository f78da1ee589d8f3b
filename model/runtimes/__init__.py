"""Other programs than PyTorch that compute the towers on a processor: OpenVINO, the extra `fast`.

`converted` decides and falls back, `conversions` keeps what was converted, `openvino` is the runtime.
"""

from typing import Literal, get_args

Runtime = Literal["auto", "torch", "openvino"]
"""What computes the towers. auto: on a processor OpenVINO, where it is installed and computes the same as
PyTorch and the tower is not small; else PyTorch."""

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
