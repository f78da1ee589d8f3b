"""Answers as a grid of pictures, for notebooks (Jupyter calls `_repr_html_`).

The pictures are taken from the files of the videos, in decoding children as everywhere, when the answer is
shown; a file that is not at hand has its title alone.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from concurrent.futures import Future
from html import escape
from typing import TYPE_CHECKING

from indexer.errors import MediaError
from indexer.ingest.video_files import local_path
from indexer.media.decode_pool import DecodePool

if TYPE_CHECKING:
    from indexer.search.types import SearchResult

MAX_PICTURES = 24
"""Of the best results; the others are shown without. A picture takes about 10 KB of the notebook."""

PICTURE_WIDTH = 240
PICTURE_SECONDS = 20.0
"""That taking one may last."""


def answer_as_html(heading: str, results: Sequence[SearchResult], warnings: Sequence[str] = ()) -> str:
    """A grid of results, best first: the picture of the best moment, title, score and time.

    heading, warnings: plain texts, shown above it.
    """
    notes = "".join(f"<p><em>{escape(warning)}</em></p>" for warning in warnings)
    cells = "".join(
        _cell(result, picture) for result, picture in zip(results, _pictures(results), strict=True)
    )
    return (
        f"<div><p><strong>{escape(heading)}</strong></p>{notes}"
        f'<div style="display:flex;flex-wrap:wrap;gap:12px">{cells or "nothing found"}</div></div>'
    )


def _pictures(results: Sequence[SearchResult]) -> list[bytes | None]:
    """JPEG of each result's best moment, None where there is none."""
    wanted = [(local_path(result.uri), _time_of(result)) for result in results[:MAX_PICTURES]]
    wanted = [(path if path is not None and path.is_file() else None, time) for path, time in wanted]
    pictures: list[bytes | None] = [None] * len(results)
    num_files = sum(path is not None for path, _ in wanted)
    if num_files == 0:
        return pictures
    with DecodePool(min(num_files, os.cpu_count() or 1), PICTURE_SECONDS) as pool:
        futures: list[Future[bytes] | None] = [
            None if path is None else pool.submit_picture(path, time, PICTURE_WIDTH) for path, time in wanted
        ]
        for row, future in enumerate(futures):
            try:
                pictures[row] = None if future is None else future.result()
            except MediaError:
                continue  # The file is damaged or another one by now: its title is shown.
    return pictures


def _cell(result: SearchResult, picture: bytes | None) -> str:
    title = escape(result.title or result.id)
    if picture is None:
        shown = f'<div style="width:{PICTURE_WIDTH}px;padding:40px 0;text-align:center">no picture</div>'
    else:
        data = base64.b64encode(picture).decode("ascii")
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{title}" width="{PICTURE_WIDTH}">'
    minutes, seconds = divmod(int(_time_of(result)), 60)
    return (
        f'<figure style="margin:0;width:{PICTURE_WIDTH}px">{shown}'
        f'<figcaption style="overflow-wrap:anywhere">{result.rank}. {title}<br>'
        f"{result.score:.2f} at {minutes}:{seconds:02d}</figcaption></figure>"
    )


def _time_of(result: SearchResult) -> float:
    """The best moment, or where the segment begins."""
    return result.moments[0].time_seconds if result.moments else result.segment.start_seconds
