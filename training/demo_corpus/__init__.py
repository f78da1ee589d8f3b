"""The demo corpus: little captioned videos drawn by code, for the demo model to learn from and to search.

Numpy, PIL and PyAV only: no torch, so that worker processes of a training run start quickly. Nothing here is
imported by the other files of `training` except through these modules. Read in this order: `scene` (what is
in a video), `motion` (where it is when), `rendering` (pixels), `description` and `grammar` (captions),
`held_out` (sets to judge a model by), `corpus` (mp4 files and their manifest).
"""

from __future__ import annotations
