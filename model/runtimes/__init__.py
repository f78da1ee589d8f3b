"""Other programs than PyTorch that compute the towers on a processor: OpenVINO, the extra `fast`.

`converted` decides and falls back, `conversions` keeps what was converted, `openvino` is the runtime.
"""
