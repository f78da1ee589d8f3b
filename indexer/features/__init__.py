"""The features that the full score reads, in a file derived from the store: one record a segment."""

from typing import Literal

Precision = Literal["float16", "int8"]
"""In which the file keeps frame features; int8 as `model.quantization.quantized` makes them."""
