"""Whether browsers play a video's own file: by its container and codec, before anybody tries."""

from __future__ import annotations

import threading
from collections.abc import Collection

from indexer.catalog import Catalog
from indexer.catalog_records import VideoRecord
from service.media_store import MediaStore

PLAYED_CODECS = {
    "video/mp4": frozenset({"h264", "vp9", "av1"}),
    "video/webm": frozenset({"vp8", "vp9", "av1"}),
}
"""Content type -> FFmpeg's names of the codecs that today's Chrome, Edge, Firefox and Safari play in it.
Depth and layout of the colours are not known here, so a player still has to be ready for a file that it
cannot play."""

MAX_REMEMBERED = 100_000


class Playability:
    """Answers for one catalog and its files, remembered until the catalog changes. Methods block, briefly."""

    def __init__(self, catalog: Catalog, media_store: MediaStore) -> None:
        self._catalog = catalog
        self._media_store = media_store
        self._lock = threading.Lock()
        self._sequence = -1
        self._remembered: dict[str, bool] = {}

    def of_record(self, record: VideoRecord) -> bool:
        """Whether browsers play this video's file; false too where the file is not at hand."""
        media = self._media_store.locate(record)
        return media is not None and record.codec in PLAYED_CODECS.get(media.content_type, ())

    def of_ids(self, video_ids: Collection[str]) -> dict[str, bool]:
        """The same for each id; false for those that the index does not hold."""
        sequence = self._catalog.sequence
        with self._lock:
            if self._sequence != sequence or len(self._remembered) > MAX_REMEMBERED:
                self._remembered, self._sequence = {}, sequence
            remembered = self._remembered
        unknown = [video_id for video_id in video_ids if video_id not in remembered]
        records = self._catalog.get_videos(unknown) if unknown else {}
        for video_id in unknown:
            remembered[video_id] = video_id in records and self.of_record(records[video_id])
        return {video_id: remembered[video_id] for video_id in video_ids}
