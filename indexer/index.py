"""`Index`: a store, the model that made it and its search engine, as one object."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from indexer.errors import IndexExistsError, IndexNotFoundError, MediaError
from indexer.ingest.encoding import index_facts, index_fingerprint
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import IndexEvent, IndexingPipeline
from indexer.ingest.remote_files import RemoteFile, is_remote
from indexer.ingest.synchronisation import Progress, Synchronisation, SyncOptions, SyncReport
from indexer.media.decode_pool import DecodePool
from indexer.media.sampling import Sampling
from indexer.search.types import SearchAnswer, SearchQuery, SimilarAnswer
from indexer.store.store import Store, create_store, open_store
from model.features import VideoFeatures
from model.xclip import XClip

if TYPE_CHECKING:
    from indexer.search.searcher import Searcher


class Index:
    """A directory of videos that can be searched by text. Several processes may have the same one open.

    Made by `create`, `open` or `open_or_create`; a context manager.

    >>> with Index.create("my-index", "demo") as index:
    ...     video_id = index.add("videos/clip.mp4", title="A clip", metadata={"camera": "north"})
    ...     answer = index.search("a red circle", limit=1, filter={"metadata.camera": "north"})
    ...     text, video = index.model.encode_text(["a red circle"]), index.encode("videos/clip.mp4")
    ...     scores = index.model.score(text, video)
    >>> answer.results[0].title, answer.num_videos, scores.total.shape
    ('A clip', 1, torch.Size([1, 1]))

    model: that encodes texts and videos. catalog: the truth about the videos. sampling: which moments of a
    video the model sees.
    """

    def __init__(self, catalog: Store[Any], model: XClip) -> None:
        self.catalog = catalog
        self.model = model
        self.sampling = Sampling.from_json(catalog.sampling_json)
        self._searcher: Searcher | None = None
        self._has_grown = False

    @classmethod
    def create(
        cls,
        directory: str | Path,
        model: str | XClip,
        *,
        device: str = "auto",
        runtime: str = "auto",
        **sampling: float,
    ) -> Self:
        """An empty index in `directory`, which is made where there is none.

        Args:
            directory: A folder of the index's own.
            model: A model spec, see `XClip.load`; or a model, which `open` must then be given again.
            device: cpu, cuda, cuda:1, ...; auto: a GPU where there is one.
            runtime: What computes the model's towers on a processor, see `XClip.load`.
            **sampling: `frames_per_second` and `max_segment_seconds` of `Sampling`.

        Raises:
            IndexExistsError: An index is there.
            ModelError: The model cannot be loaded.
        """
        spec = "" if isinstance(model, XClip) else model
        loaded = model if isinstance(model, XClip) else XClip.load(model, device, runtime)
        chosen = Sampling(loaded.config.num_frames, **sampling)  # type: ignore[arg-type]
        return cls(create_store(directory, index_facts(loaded, absolute_spec(spec), chosen)), loaded)

    @classmethod
    def open(
        cls,
        directory: str | Path,
        model: str | XClip | None = None,
        *,
        device: str = "auto",
        runtime: str = "auto",
        **sampling: float,
    ) -> Self:
        """The index in `directory`. model: by default the one that made it.

        Raises:
            IndexNotFoundError: There is none.
            FingerprintMismatchError: It was made with another model or sampling.
            IndexDamagedError: It is not what was written.
        """
        with open_store(directory) as catalog:
            spec, sampling_json = catalog.model_spec, catalog.sampling_json
        loaded = model if isinstance(model, XClip) else XClip.load(model or spec, device, runtime)
        if sampling:
            sampling_json = replace(Sampling.from_json(sampling_json), **sampling).to_json()  # type: ignore[arg-type]
        return cls(open_store(directory, fingerprint=index_fingerprint(loaded, sampling_json)), loaded)

    @classmethod
    def open_or_create(
        cls,
        directory: str | Path,
        model: str | XClip | None = None,
        *,
        device: str = "auto",
        runtime: str = "auto",
        **sampling: float,
    ) -> Self:
        """`open` where there is an index, else `create`. Raises what they raise."""
        try:
            return cls.open(directory, model, device=device, runtime=runtime, **sampling)
        except IndexNotFoundError:
            if model is None:
                raise
        try:
            return cls.create(directory, model, device=device, runtime=runtime, **sampling)
        except IndexExistsError:  # Another process was quicker.
            return cls.open(directory, model, device=device, runtime=runtime, **sampling)

    def close(self) -> None:
        """Save what makes the next start quick, and close the files."""
        if self._searcher is not None:
            self._searcher.close()
        if self._has_grown:
            from indexer.coarse.index import save_coarse_index
            from indexer.features.writing import save_feature_file

            save_coarse_index(self.catalog)
            save_feature_file(self.catalog)
        self.catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_grown = self._has_grown and kind is None  # The caller waits to hear of the error.
        self.close()

    def __len__(self) -> int:
        """Number of videos."""
        return self.catalog.num_videos

    def add(
        self,
        path: str | Path,
        *,
        id: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Add a video file, which stays where it is; its id, also where the same bytes were there already.

        Args:
            path: The file, or its address: s3://bucket/clip.mp4.
            id: By default one is made.
            title: By default the file's name.
            metadata: JSON values by name, for filters.

        Raises:
            MediaError: It cannot become a video of this index; `reason` says why.
        """
        events: list[IndexEvent] = []
        place = RemoteFile(str(path)) if is_remote(path) else Path(path)
        source = VideoSource(place, id=id, title=title, metadata=metadata or {})
        self.add_all([source], events.append, num_workers=1)
        if events[0].video_id is None:
            raise MediaError(events[0].reason or "it could not be read")
        return events[0].video_id

    def add_folder(
        self, folder: str | Path, on_event: Callable[[IndexEvent], None] = lambda event: None
    ) -> SyncReport:
        """Bring the index in line with a folder, as `sync` does.

        on_event: called for each file. Raises FileNotFoundError where there is no such folder.
        """
        return self.sync([folder], progress=Progress(on_event=on_event))

    def add_all(
        self,
        sources: Iterable[VideoSource],
        on_event: Callable[[IndexEvent], None] = lambda event: None,
        **encoding: Any,
    ) -> SyncReport:
        """Add files with their ids, titles and metadata. encoding: arguments of `IndexingPipeline`."""
        return self.sync(sources=sources, progress=Progress(on_event=on_event), encoding=encoding)

    def sync(
        self,
        paths: Iterable[str | Path] = (),
        *,
        sources: Iterable[VideoSource] = (),
        progress: Progress | None = None,
        encoding: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> SyncReport:
        """Bring the index in line with files and folders; a file that fails is reported, never raised.

        New content is encoded, content at another path moves, and content in place of other content replaces
        it. Videos whose files are gone are counted and, with `prune=True`, deleted.

        Args:
            paths: Files and folders; addresses of them too.
            sources: Files of which something is said: ids, titles, metadata.
            progress: Callbacks.
            encoding: Arguments of `IndexingPipeline`.
            **options: `exclude`, `prune`, `dry_run` and `rehash` of `SyncOptions`.

        Raises:
            FileNotFoundError: A path does not exist.
        """
        run = Synchronisation(
            self.catalog,
            lambda: self.pipeline(**encoding),
            SyncOptions(num_workers=encoding.get("num_workers"), **options),
            progress,
        )
        report = run.run(paths, sources)
        self._has_grown |= report.num_added > 0 and not report.dry_run
        return report

    def pipeline(self, **options: Any) -> IndexingPipeline:
        """What reads and encodes videos for this index. options: of `IndexingPipeline`."""
        return IndexingPipeline(self.catalog, self.model, **options)

    def delete(self, video_id: str, *, keep_out: bool = False) -> None:
        """Remove a video; its file stays. Raises VideoNotFoundError.

        keep_out: Whether the same content shall not come in again, until `let_in`.
        """
        self.catalog.delete_video(video_id, keep_out=keep_out)

    def let_in(self, video_id: str) -> None:
        """Take the content of a video again that was deleted with `keep_out`.

        Raises VideoNotFoundError where no content is kept out that was of a video of this id.
        """
        self.catalog.kept_out.let_in_video(video_id)

    def search(self, text: str, *, limit: int = 10, **options: Any) -> SearchAnswer:
        """Find videos, and the moments in them, by what is to be seen; best first.

        options: other fields of `SearchQuery`, such as `filter={"metadata.camera": "north"}`. Raises
        InvalidQueryError where one is out of its range.
        """
        return self.searcher.search(SearchQuery(text, limit=limit, **options))

    def search_media(self, path: str | Path, **options: Any) -> SimilarAnswer:
        """Find videos that look like a picture or a clip, best first; nothing is added.

        options: the fields of `SimilarQuery`. Raises MediaError where the file is neither, InvalidQueryError.
        """
        from indexer.search.query_media import read_media

        with DecodePool(1) as pool:
            media = read_media(pool, Path(path), self.model.config.resizing, self.sampling)
        return self.searcher.search_media(media, **options)

    @property
    def searcher(self) -> Searcher:
        """The search engine; started, and FAISS loaded, by the first search."""
        if self._searcher is None:
            from indexer.search.searcher import Searcher

            self._searcher = Searcher(self.catalog.address, self.model)
        return self._searcher

    def encode(self, path: str | Path) -> VideoFeatures:
        """The features of a video file's S segments, as they would be stored; nothing is added.

        Returns:
            video [S, D], frames [S, F, D] and frame_mask [S, F], on the model's device.

        Raises:
            MediaError: It is not a video that can be read.
        """
        with self.pipeline(num_workers=1).encoder() as encoder:
            records = encoder.encode_file(Path(path), trusted=True).segments
        counts = torch.tensor([record.num_frames for record in records])
        return VideoFeatures(
            torch.from_numpy(np.stack([record.video_feature for record in records])),
            torch.from_numpy(np.stack([record.frame_features for record in records])).float(),
            torch.arange(self.model.config.num_frames) < counts[:, None],
        ).to(self.model.device)


def absolute_spec(spec: str) -> str:
    """A model spec as an index keeps it: a path whole, so that it is found again from any folder."""
    is_named = spec == "demo" or spec.startswith(("openclip:", "hf-hub:"))
    path = Path(spec).expanduser()
    return str(path.resolve()) if spec and not is_named and path.exists() else spec
