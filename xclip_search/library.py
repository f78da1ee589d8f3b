"""What `xclip-search index` does on an index here, and what it says of it; `relocate` and `kept-out`.

Heavy imports happen inside.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from xclip_search.console import (
    RESUMES,
    IndexOption,
    JsonOption,
    echo,
    errors_explained,
    index_address,
    make_app,
    print_json,
    progress_bars,
    stop,
    write_report,
)

if TYPE_CHECKING:
    from indexer.index import Index
    from indexer.ingest.cluster import ClusterOptions
    from indexer.ingest.library import Listing
    from indexer.ingest.manifest import VideoSource
    from indexer.ingest.pipeline import IndexEvent, IndexingPipeline
    from indexer.ingest.synchronisation import EncodeActions, Progress, SyncOptions, SyncReport
    from indexer.store.store import Store

app = make_app()

MAX_LISTED: Final = 20
"""Lines of one kind on the terminal; --report has all."""

_BAR_SECONDS: Final = 0.1


@dataclass(frozen=True)
class ModelChoice:
    """With which model an index is made or opened. sampling: what the user says of it."""

    spec: str | None
    new_index_spec: str | None
    device: str
    runtime: str
    sampling: Mapping[str, float]


class LocalLibrary:
    """Keeps an index on this machine in line with files. The model is loaded when it is first needed.

    Attributes:
        paths: files and folders, addresses too.
        sources: files of a manifest.
        options: of `Synchronisation`.
    """

    def __init__(
        self,
        address: str | Path,
        paths: Sequence[str],
        sources: Sequence[VideoSource],
        model: ModelChoice,
        encoding: Mapping[str, Any],
        cluster: ClusterOptions | None = None,
    ) -> None:
        self.paths = paths
        self.sources = sources
        self._address = address
        self._model = model
        self._encoding = encoding
        self._cluster = cluster
        self._index: Index | None = None

    def prepare(self, options: SyncOptions) -> None:
        """Check all that can be checked before files are read; make the index where there is none."""
        if self._cluster is not None:
            from indexer.ingest.cluster import require_cluster, require_shared_store

            require_shared_store(self._address)
            if not options.dry_run:
                require_cluster(self._cluster)
        from indexer.store.store import store_exists

        if not store_exists(self._address):
            self._check_new(options)
            if options.dry_run:
                return
        elif self._model.spec is None and not self._model.sampling:
            return  # It keeps its own.
        self._open()

    def synchronise(self, options: SyncOptions, progress: Progress) -> SyncReport:
        """Once. Goes on with the new model where the index is reindexed meanwhile."""
        from indexer.coarse.index import save_coarse_index
        from indexer.errors import IndexNotFoundError, IndexSupersededError
        from indexer.features.writing import save_feature_file
        from indexer.ingest.synchronisation import Synchronisation
        from indexer.store.store import open_store

        while True:
            try:
                with open_store(self._address) as catalog:
                    run = Synchronisation(
                        catalog, lambda: self._pipeline(catalog), options, progress, self._elsewhere(progress)
                    )
                    report = run.run(self.paths, self.sources)
                    if report.num_added and not options.dry_run:
                        save_coarse_index(catalog)
                        save_feature_file(catalog)
                    return report
            except IndexNotFoundError:
                if not options.dry_run:
                    raise
                run = Synchronisation(None, self._no_pipeline, options, progress)
                return run.run(self.paths, self.sources)
            except IndexSupersededError:
                echo("the index was reindexed meanwhile; continuing with its new model", err=True)
                self.close()

    def close(self) -> None:
        """Release the model."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def _open(self) -> Index:
        if self._index is None:
            from indexer.index import Index

            spec = self._model.spec
            from indexer.store.store import store_exists

            if not store_exists(self._address):
                spec = spec or self._model.new_index_spec
            self._index = Index.open_or_create(
                self._address,
                spec,
                device=self._model.device,
                runtime=self._model.runtime,
                **self._model.sampling,
            )
        return self._index

    def _pipeline(self, catalog: Store[Any]) -> IndexingPipeline:
        from indexer.errors import IndexSupersededError
        from indexer.ingest.pipeline import IndexingPipeline

        if self._index is not None and self._index.catalog.fingerprint != catalog.fingerprint:
            self.close()  # Reindexed since the last run of a watch.
        model = self._open().model
        if (successor := catalog.superseded_by) is not None:  # Reindexed since `catalog` was opened.
            raise IndexSupersededError(successor.generation)
        return IndexingPipeline(catalog, model, **self._encoding)

    def _elsewhere(self, progress: Progress) -> EncodeActions | None:
        """What encodes on the machines of a cluster; None where this one does."""
        if self._cluster is None:
            return None
        from indexer.ingest.cluster import ClusterEncoding

        return ClusterEncoding(self._cluster, progress.on_actors)

    def _no_pipeline(self) -> IndexingPipeline:
        raise AssertionError("a dry run encodes nothing")

    def _check_new(self, options: SyncOptions) -> None:
        """End the command where no index can be made for these files, or not in this folder."""
        from indexer.ingest.library import find_files, look_at
        from indexer.ingest.remote_files import is_remote

        here = [path for path in self.paths if not is_remote(path)]
        listing = find_files(here, options.exclude)
        is_any = len(here) < len(self.paths) or any(look_at(file).left_out is None for file in listing.files)
        if not is_any and not self.sources:
            stop(self.no_videos())
        if isinstance(self._address, Path):
            if self._address.exists() and not self._address.is_dir():
                stop(f"{self._address} is not a folder")
            self._refuse_a_folder_of_videos(self._address, listing)
        if not (self._model.spec or self._model.new_index_spec or options.dry_run):
            stop(f"there is no index in {self._address} yet: give its model with --model")

    def no_videos(self) -> str:
        """What is said where there is nothing to index."""
        return f"there are no videos in {', '.join(map(str, self.paths))}"

    def _refuse_a_folder_of_videos(self, directory: Path, listing: Listing) -> None:
        """End the command where the files of a new index would lie among the videos."""
        folders = {Path(file.path).parent for file in listing.files}
        folders |= {source.path.parent for source in self.sources if isinstance(source.path, Path)}
        if directory.resolve() in {folder.resolve() for folder in folders}:
            stop(f"{directory} is a folder of videos, and an index needs its own: --index my-index makes it")


@contextmanager
def sync_progress() -> Iterator[Progress]:
    """Bars for what is read and for what is indexed, with videos/s, failures and time left."""
    from indexer.ingest.synchronisation import Progress

    started = last_shown = time.monotonic()
    num_done = num_failed = num_total = num_encoded = 0
    with progress_bars() as on_progress:

        def set_total(num_files: int) -> None:
            nonlocal num_total, started
            num_total, started = num_done + num_files, time.monotonic()

        def count(event: IndexEvent) -> None:
            nonlocal num_done, num_failed, num_encoded, last_shown
            num_done += 1
            num_failed += event.outcome == "failed"
            num_encoded += event.outcome == "added"
            now = time.monotonic()
            if now - last_shown >= _BAR_SECONDS or num_done == num_total:
                last_shown = now
                rate = num_encoded / max(1e-6, now - started)
                facts = f"{rate:.1f} videos/s {num_failed} failed"
                on_progress("indexing", num_done, max(num_total, num_done), facts)

        def show_actors(num_started: int, num_actors: int) -> None:
            nonlocal started
            if not num_encoded:  # The speed is that of work, not of the start of the actors.
                started = time.monotonic()
            on_progress("actors at work", num_started, num_actors)

        yield Progress(
            on_reading=lambda num_read, num_to_read: on_progress("reading", num_read, num_to_read),
            on_total=set_total,
            on_event=count,
            on_actors=show_actors,
        )


def watch_library(
    library: LocalLibrary, options: SyncOptions, settle_seconds: float, report_file: Path | None
) -> None:
    """Follow the folders until a signal; say what is done."""
    from indexer.ingest.synchronisation import Progress, SyncReport
    from indexer.ingest.watching import Settling, follow

    settling = Settling(settle_seconds)
    ended = threading.Event()
    said: set[str] = set()

    def say(text: str) -> None:
        echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}")

    def say_once(text: str) -> None:
        """A condition that persists is reported once."""
        if text not in said:
            said.add(text)
            say(text)

    def on_event(event: IndexEvent) -> None:
        if event.outcome not in ("unchanged", "left out"):
            text = f"{event.outcome}: {event.source.path}" + (f" ({event.reason})" if event.reason else "")
            (say_once if event.outcome in ("duplicate", "failed") else say)(text)

    def synchronise() -> SyncReport:
        try:
            report = library.synchronise(options, Progress(on_event=on_event, is_settled=settling.is_settled))
        except FileNotFoundError as error:  # A disk was taken away; it may come back.
            say_once(f"waiting: {error}")
            return SyncReport()
        write_report(report_file, report.to_dict())
        for video_id, uri in report.missing:
            say_once(f"missing: {_shown(uri)} ({video_id})")
        for note in report.notes:
            say_once(f"note: {note}")
        if _has_changed_something(report):
            say(summary(report.to_dict()))
        return report

    def end(*_: object) -> None:
        ended.set()
        raise SystemExit(0)

    former = signal.signal(signal.SIGTERM, end) if _is_main_thread() else None
    try:
        with errors_explained(RESUMES):
            say(f"watching {', '.join(map(str, library.paths))}")
            try:
                follow([Path(path) for path in library.paths], synchronise, settling, ended)
            except KeyboardInterrupt:  # What watchfiles makes of any signal that comes while it waits.
                if not ended.is_set():
                    raise
    finally:
        if former is not None:
            signal.signal(signal.SIGTERM, former)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _has_changed_something(report: SyncReport) -> bool:
    return any(getattr(report, f"num_{name}") for name in ("added", "moved", "updated", "pruned", "replaced"))


def summary(done: Mapping[str, Any]) -> str:
    """One line of numbers; those that are 0 are left out, but for the usual ones."""
    segments = times = ""
    if done["num_segments"] is not None and not done["dry_run"]:
        segments = f" ({done['num_segments']} segments)"
        if done["num_added"]:
            encoding, decoding = done["encode_seconds"], done["decode_seconds"]
            times = f" (encoding {encoding:.1f} s, decoding {decoding:.1f} s in all workers)"
    parts = [f"{done['num_added']} added{segments}"]
    parts += [
        f"{done[f'num_{name}']} {name}" for name in ("moved", "updated", "duplicate") if done[f"num_{name}"]
    ]
    parts += [f"{done['num_unchanged']} unchanged", f"{done['num_failed']} failed"]
    if done["num_missing"]:
        pruned = f" ({done['num_pruned']} of them deleted)" if done["num_pruned"] else ""
        parts.append(f"{done['num_missing']} missing{pruned}")
    parts += [f"{done[f'num_{name}']} {word}" for name, word in _OTHERS if done[f"num_{name}"]]
    return f"{', '.join(parts)}; {done['seconds']:.1f} s{times}"


_OTHERS: Final = (
    ("transcripts", "transcripts read"),
    ("left_out", "left out"),
    ("waiting", "still being written"),
)


def print_report(done: Mapping[str, Any]) -> None:
    """What was done, or in a dry run would be; a server does not say all of it."""
    if done["dry_run"]:
        echo("dry run, nothing was changed; it would be:")
    echo(summary(done))
    if done["num_replaced"]:
        echo(f"{done['num_replaced']} videos were replaced by the new content at their paths")
    if done["num_partial"]:
        echo(f"{done['num_partial']} of the added are damaged or truncated and were indexed in part")
    if done["left_out"] or done["folders_left_out"]:
        of_files = [f"{number} {reason}" for reason, number in done["left_out"].items()]
        num_folders = len(done["folders_left_out"])
        of_files += [f"{num_folders} folder{'s' * (num_folders > 1)}"] if num_folders else []
        echo(f"left out: {', '.join(of_files)}")
    _print_lines("folder left out: {path}: {reason}", done["folders_left_out"])
    _print_lines("moved: {path}, from {from}", done["moved"])
    _print_lines("duplicate: {path} has the content of {of}", done["duplicates"])
    _print_lines("missing: {uri} ({id})", done["missing"])
    _print_lines("partial: {path}: {reason}", done["partial"], err=True)
    for note in done.get("manifest", ()):
        echo(f"manifest: {note}")
    for note in done["notes"]:
        echo(f"note: {note}", err=True)
    for failure in done["failures"]:
        echo(f"failed: {failure['path']}: {failure['reason']}", err=True)


def _print_lines(line: str, values: Sequence[Mapping[str, str]], *, err: bool = False) -> None:
    for one in values[:MAX_LISTED]:
        echo(line.format_map({name: _shown(value) for name, value in one.items()}), err=err)
    if len(values) > MAX_LISTED:
        what = line.partition(":")[0]
        echo(f"{what}: {len(values) - MAX_LISTED} more; --report lists all", err=err)


def _shown(value: str) -> str:
    """An address of a file as its path; anything else as it is."""
    if not value.startswith("file:"):
        return value
    from indexer.ingest.video_files import local_path

    return str(local_path(value) or value)


@app.command()
def relocate(
    old: Annotated[str, typer.Argument(help="The folder, or URI, as recorded in the index.")],
    new: Annotated[str, typer.Argument(help="Where the same files are now.")],
    index: IndexOption,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would be done.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Change the paths recorded in an index: a moved folder, another mount point.

    Nothing is read; OLD need not exist, NEW need not exist here. Both may be addresses such as
    https://host/folder.

    Examples:

      xclip-search relocate /mnt/old-disk/films /mnt/films --index my-index --dry-run

      xclip-search relocate /home/me/videos /videos --index my-index
    """
    with errors_explained():
        from indexer.maintenance.relocation import relocate as relocate_index

        report = relocate_index(index_address(index), old, new, dry_run=dry_run)
    if as_json:
        print_json(report.to_dict())
        return
    would = "would be " if dry_run else ""
    echo(
        f"{report.num_videos} videos {would}relocated, of {report.num_all} in the index;"
        f" {report.num_there} of their files are there"
    )
    if not report.num_videos:
        echo(f"note: no video of the index lies below {old}", err=True)


@app.command("kept-out")
def kept_out(
    index: IndexOption,
    let_in: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Take the content of this deleted video again.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the content that was deleted with `delete --keep-out`, or let some of it in again.

    Examples:

      xclip-search kept-out --index my-index

      xclip-search kept-out --index my-index --let-in 0f5c2a7e9b31
    """
    with errors_explained():
        from indexer.errors import VideoNotFoundError
        from indexer.store.store import open_store

        with open_store(index_address(index)) as catalog:
            table = catalog.kept_out
            for video_id in let_in or ():
                try:
                    table.let_in_video(video_id)
                except VideoNotFoundError:
                    stop(f"no content of a video {video_id!r} is kept out")
            listed = table.list_all()
    if as_json:
        print_json([vars(one) for one in listed])
        return
    if let_in:
        echo(f"{len(let_in)} let in; the next `index` run over their files adds them")
        return
    for one in listed:
        echo(f"{one.video_id}  {one.title or ''}  {one.uri or ''}")
    echo(f"{len(listed)} kept out", err=True)
