"""Opens every video of a split once, before hours of training find out which of them cannot be decoded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import as_completed

from training.datasets.assembly import tell_of_missing
from training.datasets.split import MissingPolicy, Split

_PICTURE_WIDTH = 16


def check_readable(
    split: Split,
    num_processes: int = 2,
    *,
    missing: MissingPolicy = "error",
    timeout_seconds: float = 60.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Split:
    """The split, where every video opens and shows a frame at the start of its clip.

    Files are read in `num_processes` child processes, ended after `timeout_seconds`, so a decoder that hangs
    or dies is one unreadable video. `on_progress(num_done, num_clips)` is called from this thread.

    Raises DatasetError that lists the unreadable ones, or with missing="warn" leaves them out with one
    DatasetWarning.
    """
    from indexer.decode_pool import DecodePool
    from indexer.errors import MediaError

    problems: dict[str, str] = {}
    with DecodePool(num_processes, timeout_seconds) as pool:
        waiting = {
            pool.submit_picture(clip.path, clip.start_seconds or 0.0, _PICTURE_WIDTH): clip
            for clip in split.clips
        }
        for num_done, future in enumerate(as_completed(waiting), start=1):
            try:
                future.result()
            except MediaError as error:
                problems[waiting[future].id] = error.reason
            if on_progress is not None:
                on_progress(num_done, len(waiting))
    ordered = {clip.id: problems[clip.id] for clip in split.clips if clip.id in problems}
    tell_of_missing(str(split), ordered, len(split.clips), "", missing)
    return split.without(ordered) if ordered else split
