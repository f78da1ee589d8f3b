"""Garbage collection beside a served model: it looks at what comes and goes, not at what stays."""

from __future__ import annotations

import atexit
import gc


def set_aside_what_stays() -> None:
    """Let later full collections pass over everything that lives now.

    What libraries and a model are made of takes a full collection some tenths of a second to look at, and
    every request waits for it. To be called again when a model was let go of: what was set aside is collected
    only here. Takes as long as one full collection.
    """
    # Python frees at its end what a collection finds. Libraries complain of what it could not find. Once, and
    # after whatever they have registered, for the last one is called first.
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)
    gc.unfreeze()
    gc.collect()
    gc.freeze()
