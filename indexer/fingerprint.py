"""What features of an index depend on, as one number: features of different fingerprints never meet."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from indexer.sampling import Sampling
    from model import XClip


def index_fingerprint(model: XClip, sampling: Sampling | str) -> str:
    """sha256, 64 hex digits, over the model's fingerprint (weights, config, preprocessing) and the sampling.

    sampling: a `Sampling`, or the text that its `to_json` gave and a catalog stores.
    """
    sampling_json = sampling if isinstance(sampling, str) else sampling.to_json()
    return hashlib.sha256(f"{model.fingerprint}\n{sampling_json}".encode()).hexdigest()
