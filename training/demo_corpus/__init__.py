"""The demo corpus: small captioned videos drawn by code, for the demo model to learn from and to search.

NumPy, PIL and PyAV only: no torch, so that worker processes of a training run start quickly. Read in this
order: `scene` (what is in a video), `motion` (where it is when), `pictograms`, `backgrounds` and `rendering`
(pixels), `captions`, `held_out` (sets to evaluate a model on), `corpus` (mp4 files and their manifest).
"""

from __future__ import annotations
