"""Encode the videos of an index anew, beside the index as it is, and then switch to what was made.

`synchronize` brings another generation up to date with the current one: every video is read again from its
file, those that are there already are left alone, and what is added, changed or deleted meanwhile is followed
by the change log. A switch forward and a switch back are the same: only which generation is made up to date
differs. `indexer.store.sqlite.generations` says what lies where.

What the generations of an index say that are not the current one.

Jobs from one generation of an index to the next.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from indexer.coarse.index import CoarseIndex
from indexer.errors import ChangesForgottenError, IndexNotFoundError
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import IndexEvent, IndexingPipeline
from indexer.ingest.video_files import find_video_file
from indexer.store.records import VideoRecord
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.generations import (
    FIRST_GENERATION,
    directory_of,
    generations,
    locked_for_reindexing,
    name_generation,
    named_generation,
    new_generation,
)
from indexer.store.sqlite.schema import CATALOG_FILE, LEFT_BEHIND, replace_fact
from indexer.store.sqlite.superseded import LeftBehind, Succession, write_succession
from model.atomic_files import synchronize_directory

if TYPE_CHECKING:
    from indexer.media.sampling import Sampling


def last_epoch(index: Path) -> int:
    """The highest epoch in any generation of an index; 0 before the first switch."""
    epochs = [0]
    for number in generations(index):
        with Catalog.open_generation(index, number) as catalog:
            succession = catalog.succession
        epochs.append(0 if succession is None else succession.epoch)
    return max(epochs)


def former_generation(index: Path, current: Catalog) -> int | None:
    """The generation that was the current one before `current`, or None."""
    found: list[tuple[int, int]] = []
    for number in generations(index):
        if number == current.generation:
            continue
        with Catalog.open_generation(index, number) as catalog:
            succession = catalog.succession
        if succession is not None and succession.epoch > 0:
            found.append((succession.epoch, number))
    return max(found)[1] if found else None


def find_in_others(catalog: Catalog, video_ids: Sequence[str]) -> set[str]:
    """Those of `video_ids` that another generation of the index has than `catalog`.

    Raises IndexDamagedError and what else opening a catalog raises: whose the videos are is not known then.
    """
    found: set[str] = set()
    index = catalog.index_directory
    for number in generations(index) if video_ids else ():
        if number == catalog.generation:
            continue
        try:
            with Catalog.open_generation(index, number) as other:
                found |= other.get_videos(video_ids).keys()
        except IndexNotFoundError:  # It was discarded just now.
            continue
    return found


_TABLES: Final = ("jobs",)


def carry_jobs(source: sqlite3.Connection, target: sqlite3.Connection) -> int:
    """Replace the jobs and keys of `target` by those of `source`, rows as they are; returns how many jobs.

    Within the callers' transactions. Running jobs are queued there: their workers can no longer end them. The
    attempt counts, so that what such a worker still does is told apart from what the next one does.
    """
    for table in reversed(_TABLES):
        target.execute(f"DELETE FROM {table}")
    for table in _TABLES:
        names = [name for (name,) in source.execute("SELECT name FROM pragma_table_info(?)", (table,))]
        columns, marks = ", ".join(names), ", ".join("?" * len(names))
        target.executemany(
            f"INSERT INTO {table} ({columns}) VALUES ({marks})",
            source.execute(f"SELECT {columns} FROM {table}"),
        )
    target.execute(
        "UPDATE jobs SET state = 'queued', worker_name = NULL, started_at = NULL, lease_expires_at = NULL"
        " WHERE state = 'running'"
    )
    # So that no number is given twice though the jobs that had the last ones are forgotten.
    target.execute("DELETE FROM sqlite_sequence WHERE name = 'jobs'")
    target.executemany(
        "INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)",
        source.execute("SELECT name, seq FROM sqlite_sequence WHERE name = 'jobs'"),
    )
    (num_jobs,) = target.execute("SELECT count(*) FROM jobs").fetchone()
    return int(num_jobs)


MAX_ROUNDS: Final = 10
"""Times that what came in meanwhile is encoded before others are kept from writing. After so many they wait
for what little came in during the last one."""

_IDS_AT_ONCE: Final = 500
NO_FILE_REASON: Final = "its file is not there"


@dataclass
class ReindexReport:
    """What a run did.

    generation: the number that is current now. fingerprint, former_fingerprint: of what is current now, and
    of what was. num_encoded, num_segments: videos that were encoded, and their segments. num_kept: videos
    that were there already, from an interrupted run or from the time when that generation was current.
    num_deleted: videos of that generation that are no longer in the index. num_jobs: carried over, ended ones
    included. missing: (id, reason) of videos that could not be encoded. switched: whether the generation is
    another one than before.
    """

    generation: int
    fingerprint: str
    former_fingerprint: str
    num_encoded: int = 0
    num_segments: int = 0
    num_kept: int = 0
    num_deleted: int = 0
    num_jobs: int = 0
    missing: list[tuple[str, str]] = field(default_factory=list)
    switched: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        missing = [{"id": video_id, "reason": reason} for video_id, reason in self.missing]
        return {**vars(self), "missing": missing}


@dataclass(frozen=True)
class Progress:
    """What a run says of how far it is. on_total: so many videos are to be encoded, from now on or in
    addition. on_event: called once for each of them."""

    on_total: Callable[[int], None] = lambda num_videos: None
    on_event: Callable[[IndexEvent], None] = lambda event: None


MakePipeline = Callable[[Catalog], IndexingPipeline]


def reindex(
    index: str | Path,
    *,
    fingerprint: str,
    model_spec: str,
    embedding_dim: int,
    sampling: Sampling,
    make_pipeline: MakePipeline,
    allow_missing: bool = False,
    progress: Progress = Progress(),
) -> ReindexReport:
    """Make a generation of this fingerprint the current one of the index in `index`, which may be in use.

    Goes on from where a run was interrupted, and uses a former generation of this fingerprint where there is
    one. One that was begun with another fingerprint and never became current is removed.
    make_pipeline: gives what encodes into a catalog of this fingerprint.
    allow_missing: switch though there are videos that cannot be encoded; they stay in the generation before,
    and are there again after going back to it.
    Raises IndexBusyError where another run is at work, IndexNotFoundError, IndexDamagedError,
    IndexStorageError; whatever is raised before the switch leaves the index as it was.
    """
    index = Path(index)
    with locked_for_reindexing(index), Catalog.open(index) as source:
        _end_last_switch(index, source)
        if source.fingerprint == fingerprint:
            return _nothing_to_do(source)
        number = _find_target(index, source, fingerprint)
        if number is None:
            number = new_generation(index)
            target = Catalog.create(
                index,
                fingerprint=fingerprint,
                model_spec=model_spec,
                embedding_dim=embedding_dim,
                num_frames=sampling.num_frames,
                sampling_json=sampling.to_json(),
                generation=number,
                successor_of=source.generation,
            )
        else:
            target = Catalog.open_generation(index, number, although_superseded=True)
        with target:
            return _Switch(source, target, make_pipeline(target), allow_missing, progress).run()


def roll_back(
    index: str | Path,
    *,
    make_pipeline: MakePipeline,
    allow_missing: bool = False,
    progress: Progress = Progress(),
) -> ReindexReport:
    """Make the generation that was current before current again; see `reindex` for what is said there.

    What was added since is encoded into it, what was deleted since is deleted from it.
    make_pipeline: gives what encodes into that catalog, whose `model_spec` says with which model.
    Raises IndexNotFoundError where there is no former generation, FingerprintMismatchError where the model is
    not the one that made it, and as `reindex` does.
    """
    index = Path(index)
    with locked_for_reindexing(index), Catalog.open(index) as source:
        _end_last_switch(index, source)
        former = former_generation(index, source)
        if former is None:
            raise IndexNotFoundError(f"the index in {index} has no former generation to go back to")
        with Catalog.open_generation(index, former, although_superseded=True) as target:
            return _Switch(source, target, make_pipeline(target), allow_missing, progress).run()


def discard_others(index: str | Path) -> list[int]:
    """Remove all generations but the current one; returns their numbers. There is no way back then.

    Processes that still serve one of them answer with errors until they have changed to the current one.
    Raises IndexBusyError where a run is at work, and whatever opening an index raises.
    """
    index = Path(index)
    with locked_for_reindexing(index), Catalog.open(index) as current:
        # First, so that no way to the current one leads over one that goes away.
        name_generation(index, current.generation)
        others = [number for number in generations(index) if number != current.generation]
        for number in others:
            _remove(index, number)
    return others


def _end_last_switch(index: Path, current: Catalog) -> None:
    """Name the current generation, where a switch was cut short before it did."""
    if named_generation(index) != current.generation:
        name_generation(index, current.generation)


def _nothing_to_do(catalog: Catalog) -> ReindexReport:
    return ReindexReport(
        catalog.generation, catalog.fingerprint, catalog.fingerprint, num_kept=catalog.num_videos
    )


def _find_target(index: Path, source: Catalog, fingerprint: str) -> int | None:
    """The generation of this fingerprint, if there is one; unfinished ones of another one are removed."""
    found = None
    for number in generations(index):
        if number == source.generation:
            continue
        with Catalog.open_generation(index, number) as catalog:
            is_wanted = catalog.fingerprint == fingerprint
            succession = catalog.succession
        if is_wanted:
            found = number
        elif succession is not None and succession.epoch == 0:
            _remove(index, number)
    return found


def _remove(index: Path, number: int) -> None:
    directory = directory_of(index, number)
    # The catalog first: without it the rest is no generation.
    (directory / CATALOG_FILE).unlink()
    if number != FIRST_GENERATION:
        shutil.rmtree(directory)
        return
    for path in itertools.chain(directory.glob(f"{CATALOG_FILE}-*"), directory.glob("coarse*")):
        path.unlink(missing_ok=True)


class _Switch:
    """From `source`, the current generation, to `target`."""

    def __init__(
        self,
        source: Catalog,
        target: Catalog,
        pipeline: IndexingPipeline,
        allow_missing: bool,
        progress: Progress,
    ) -> None:
        self._source = source
        self._target = target
        self._pipeline = pipeline
        self._allow_missing = allow_missing
        self._progress = progress
        self._missing: dict[str, str] = {}
        self._left_behind = _still_left_behind(source, target)
        self._report = ReindexReport(source.generation, source.fingerprint, source.fingerprint)

    def run(self) -> ReindexReport:
        sequence = self._source.sequence
        ids = self._source.video_ids()
        known = self._left_behind.union(ids)
        gone = [video_id for video_id in self._target.video_ids() if video_id not in known]
        wanted = self._reconcile(gone + ids)
        self._report.num_kept = len(ids) - len(wanted)
        self._encode(wanted)
        self._save_coarse_index()
        for round_number in itertools.count(1):
            if self._missing and not self._allow_missing:
                break
            # What others have written by now is all that this one must hold: they wait until it is done.
            with self._source.connections.transaction() as connection:
                changed = self._changed_since(sequence)
                sequence = self._source.sequence
                wanted = self._reconcile(changed)
                if not wanted or round_number >= MAX_ROUNDS:
                    self._encode(wanted)
                    if self._allow_missing or not self._missing:
                        self._hand_over(connection)
                        self._report.switched = True
                        break
            self._encode(wanted)
        self._report.missing = sorted(self._missing.items())
        if self._report.switched:
            outdated = self._target.succession
            if outdated is not None:
                self._target.take_over(outdated)
            name_generation(self._source.index_directory, self._target.generation)
            self._report.generation = self._target.generation
            self._report.fingerprint = self._target.fingerprint
        return self._report

    def _hand_over(self, connection: sqlite3.Connection) -> None:
        """Within the last transaction of the source: its commit is the switch."""
        index = self._source.index_directory
        with self._target.connections.transaction() as into:
            self._report.num_jobs = carry_jobs(connection, into)
        left_behind = LeftBehind(tuple(sorted(self._missing)), self._target.generation, self._target.sequence)
        replace_fact(connection, LEFT_BEHIND, left_behind.to_json())
        for directory in (self._target.directory, self._target.directory.parent, index):
            synchronize_directory(directory)
        write_succession(connection, Succession(self._target.generation, 1 + last_epoch(index)))

    def _changed_since(self, sequence: int) -> list[str]:
        """Ids of videos that were added, changed or deleted since, each once."""
        try:
            changed: dict[str, None] = {}
            while changes := self._source.changes_since(sequence):
                changed.update((change.video_id, None) for change in changes)
                sequence = changes[-1].sequence
            return list(changed)
        except ChangesForgottenError:
            of_target = [i for i in self._target.video_ids() if i not in self._left_behind]
            return list(dict.fromkeys(of_target + self._source.video_ids()))

    def _reconcile(self, video_ids: Sequence[str]) -> list[str]:
        """Make the target's records of these videos those of the source; returns ids of those to encode."""
        wanted: list[str] = []
        for first in range(0, len(video_ids), _IDS_AT_ONCE):
            some = video_ids[first : first + _IDS_AT_ONCE]
            records, known = self._source.get_videos(some), self._target.get_videos(some)
            for video_id in some:
                self._missing.pop(video_id, None)
                if self._is_wanted(video_id, records.get(video_id), known.get(video_id)):
                    wanted.append(video_id)
        return wanted

    def _is_wanted(self, video_id: str, record: VideoRecord | None, known: VideoRecord | None) -> bool:
        if known is not None and (record is None or known.content_sha256 != record.content_sha256):
            self._delete(video_id)
            known = None
        if record is None:
            return False
        if known is None:
            same_bytes = self._target.find_by_sha256(record.content_sha256)
            if same_bytes is not None:  # The id that they had before.
                self._delete(same_bytes.id)
            return True
        if _told(known) != _told(record):
            self._target.update_video(video_id, title=record.title, uri=record.uri, metadata=record.metadata)
        return False

    def _delete(self, video_id: str) -> None:
        self._target.delete_video(video_id)
        self._report.num_deleted += 1

    def _encode(self, video_ids: Sequence[str]) -> None:
        if not video_ids:
            return
        self._progress.on_total(len(video_ids))
        done = self._pipeline.run(self._sources(video_ids), self._take)
        self._report.num_encoded += done.num_added
        self._report.num_segments += done.num_segments

    def _sources(self, video_ids: Sequence[str]) -> Iterator[VideoSource]:
        """Files of videos, read from the catalog as they are needed; those without one are noted."""
        for first in range(0, len(video_ids), _IDS_AT_ONCE):
            some = video_ids[first : first + _IDS_AT_ONCE]
            records = self._source.get_videos(some)
            for video_id in some:
                record = records.get(video_id)
                if record is None:  # Deleted meanwhile: the change log tells of it.
                    self._take(IndexEvent(VideoSource(Path(video_id)), "skipped"))
                    continue
                found = find_video_file(self._source.index_directory, record)
                path, trusted = (Path(video_id), False) if found is None else found
                source = VideoSource(path, id=video_id, trusted=trusted, record=record)
                if found is None:
                    self._take(IndexEvent(source, "failed", None, NO_FILE_REASON))
                else:
                    yield source

    def _take(self, event: IndexEvent) -> None:
        if event.outcome == "failed" and event.source.record is not None:
            self._missing[event.source.record.id] = event.reason or "it could not be read"
        self._progress.on_event(event)

    def _save_coarse_index(self) -> None:
        """So that whoever serves the new generation starts at once. They make their own where this fails."""
        with contextlib.suppress(OSError):
            coarse = CoarseIndex.open(self._target)
            coarse.compact()
            coarse.save()


def _still_left_behind(source: Catalog, target: Catalog) -> set[str]:
    """Videos of the target that the source lacks though nobody deleted them: they could not be encoded when
    the target's place was taken. One that was added to the source and deleted since is not among them."""
    left_behind = set(target.left_behind.video_ids)
    if target.left_behind.generation != source.generation:
        return left_behind
    sequence = target.left_behind.sequence
    with contextlib.suppress(ChangesForgottenError):
        while left_behind and (changes := source.changes_since(sequence)):
            left_behind.difference_update(change.video_id for change in changes if change.kind == "delete")
            sequence = changes[-1].sequence
    return left_behind


def _told(record: VideoRecord) -> tuple[Any, ...]:
    """What a client may change of a record."""
    return record.title, record.uri, record.metadata
