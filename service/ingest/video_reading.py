"""From an untrusted file to what the catalog stores: decoded in a child process, encoded by the model."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from indexer.errors import MediaError
from indexer.ingest.encoding import encode_segments, new_video
from indexer.media.decode_pool import DecodedVideo, DecodePool, DecodeRequest
from indexer.media.sampling import Sampling
from indexer.search.cancellation import raise_if_cancelled
from indexer.store.records import NewVideo

if TYPE_CHECKING:
    from model import XClip

SEGMENTS_AT_ONCE = 4
"""Decoded and encoded together: bounds memory for films of hours, and lets a stop come through."""


class VideoReader:
    """Reads videos for one index. Use as a context manager: it owns a decoding process.

    sampling_json: the index's. timeout_seconds: for decoding SEGMENTS_AT_ONCE segments.
    """

    def __init__(self, model: XClip, sampling_json: str, timeout_seconds: float) -> None:
        self._model = model
        self._sampling = Sampling.from_json(sampling_json)
        self._pool = DecodePool(1, timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def read(self, path: Path) -> NewVideo:
        """What a file itself says of its video, encoded. Blocks.

        Raises MediaError, and SearchCancelledError where nobody waits any more
        (`indexer.search.cancellation`).
        """
        before = _stamp(path)
        first = self._decode(path, 0)
        records = encode_segments(self._model, first.segments)
        fraction_read = first.fraction_read
        while len(records) < first.num_segments:
            raise_if_cancelled()
            # The file is hashed once, not for each few segments of a film.
            more = self._decode(path, len(records), first.content_sha256)
            if (more.info, more.num_segments, _stamp(path)) != (first.info, first.num_segments, before):
                raise MediaError("the file changed while it was read")
            records += encode_segments(self._model, more.segments)
            fraction_read = min(fraction_read, more.fraction_read)
        return new_video(first, records, fraction_read)

    def _decode(self, path: Path, first_segment: int, content_sha256: str | None = None) -> DecodedVideo:
        request = DecodeRequest(
            str(path),
            self._sampling,
            self._model.config.image_size,
            trusted=False,
            first_segment=first_segment,
            max_segments=SEGMENTS_AT_ONCE,
            content_sha256=content_sha256,
        )
        return self._pool.submit(request).result()


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
