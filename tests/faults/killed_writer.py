"""A process that adds and deletes videos of an index in PostgreSQL until it is killed.

    python -m tests.faults.killed_writer ADDRESS SHARE NUM_SHARES SEED

Before each operation it says `begin add 7`, and `end add 7` as soon as that has come back: the second is the
acknowledgement. Of several such processes each changes only the videos of its share.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from indexer.errors import IndexBusyError, IndexStorageError, VideoNotFoundError
from indexer.store.records import SegmentRecord
from indexer.store.store import open_store
from tests.support.catalog_builders import add_video, make_segment

NUM_VIDEOS = 40
"""Of each share: few enough for most to be deleted and added again many times."""


def segments_of(number: int) -> list[SegmentRecord]:
    """One to four segments, always the same ones for the video of this number."""
    random = np.random.default_rng(number)
    return [make_segment(random) for _ in range(1 + number % 4)]


def main() -> None:
    address, share, num_shares, seed = sys.argv[1], *map(int, sys.argv[2:])
    random = np.random.default_rng(seed)
    with open_store(address) as store:
        sys.stdout.write("ready\n")
        while True:
            number = share + num_shares * int(random.integers(NUM_VIDEOS))
            operation = "add" if random.random() < 0.6 else "delete"
            sys.stdout.write(f"begin {operation} {number}\n")
            sys.stdout.flush()
            try:
                if operation == "add":
                    add_video(store, number, segments_of(number))  # Again: it changes nothing.
                else:
                    store.delete_video(f"video-{number}")
            except VideoNotFoundError:
                pass
            except (IndexStorageError, IndexBusyError):
                time.sleep(0.05)
                continue
            sys.stdout.write(f"end {operation} {number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
