"""Build an index again from the same videos, with another model or sampling, and switch to the result.

`reindex` makes a new generation next to the current one (`generations` of both stores say where it lies),
encodes every video into it, and applies what was added, changed or deleted meanwhile. One commit,
made while writers wait, is the switch. The former generation stays as it was at that moment: `roll_back`
makes it the current one again, `discard_others` removes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from indexer.coarse.index import CoarseIndex
from indexer.errors import ChangesForgottenError, IndexNotFoundError
from indexer.features.writing import save_feature_file
from indexer.ingest.manifest import VideoSource
from indexer.ingest.pipeline import IndexEvent, IndexingPipeline
from indexer.ingest.video_files import fetched_from, find_video_file, local_path
from indexer.store.records import IndexFacts, VideoRecord
from indexer.store.store import IndexGenerations, Store, generations_of, open_store
from indexer.store.video_rows import CHANGEABLE_FIELDS

MAX_ROUNDS: Final = 10
"""Times that what changed meanwhile is encoded while others go on writing. After that they wait until the
few videos of the last round are encoded."""

NO_FILE_REASON: Final = "its file is not there"
_IDS_AT_ONCE: Final = 500


MakePipeline = Callable[[Store[Any]], IndexingPipeline]


@dataclass(frozen=True)
class Progress:
    """Callbacks of a run.

    Attributes:
        on_total: called with the number of videos to encode, and again with how many more there are.
        on_event: called once for each of them.
    """

    on_total: Callable[[int], None] = lambda num_videos: None
    on_event: Callable[[IndexEvent], None] = lambda event: None


@dataclass
class ReindexReport:
    """What a run did.

    Attributes:
        generation: the number that is current now.
        fingerprint: of the current generation.
        former_generation: the number that was current before.
        former_fingerprint: of that generation.
        num_encoded: videos that were encoded.
        num_segments: their segments.
        num_kept: videos that were there already, from an interrupted run or from before.
        num_deleted: videos removed from the new generation, because the index has them no longer.
        num_jobs: jobs carried over, ended ones included.
        num_hidden: after going back, videos that only the generation switched away from has.
        num_returned: after going back, videos that the generation switched away from did not have.
        missing: (id, reason) of videos that could not be encoded.
        switched: whether another generation is the current one than before.
    """

    generation: int
    fingerprint: str
    former_generation: int
    former_fingerprint: str
    num_encoded: int = 0
    num_segments: int = 0
    num_kept: int = 0
    num_deleted: int = 0
    num_jobs: int = 0
    num_hidden: int = 0
    num_returned: int = 0
    missing: list[tuple[str, str]] = field(default_factory=list)
    switched: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        missing = [{"id": video_id, "reason": reason} for video_id, reason in self.missing]
        return {**vars(self), "missing": missing}


@dataclass(frozen=True)
class RollbackEffect:
    """What going back to a generation, as it was at the switch, would change.

    Attributes:
        generation: the number that would be current.
        num_hidden: videos that it does not have, added since; they would not be found any more.
        num_returned: videos that only it has, deleted since or not encoded at the switch.
    """

    generation: int
    num_hidden: int
    num_returned: int


def reindex(
    index: str | Path,
    facts: IndexFacts,
    make_pipeline: MakePipeline,
    *,
    allow_missing: bool = False,
    progress: Progress = Progress(),
) -> ReindexReport:
    """Encode all videos into a new generation and make it the current one. The index may be in use meanwhile.

    A run that was interrupted is continued: what it encoded is kept. One that was begun with another
    fingerprint is removed. Where the index has this fingerprint already, nothing is done.

    Args:
        index: the address of the index.
        facts: the model and sampling of the new generation, from `indexer.ingest.encoding.index_facts`.
        make_pipeline: gives the pipeline that encodes into a catalog of these facts.
        allow_missing: switch although some videos cannot be encoded; they stay in the former generation only,
            as those do in any case whose files were found to be missing before (`VideoRecord.missing_since`).
        progress: callbacks.

    Raises:
        IndexBusyError: another run is at work.
        IndexNotFoundError: there is no index.
        IndexDamagedError: what is stored is not what was written.
        IndexStorageError: the disk refused a write. Whatever is raised before the switch leaves the index as
            it was.
    """
    generations = generations_of(index)
    with generations.locked(), generations.open_current() as source:
        report = _new_report(source)
        if source.fingerprint == facts.fingerprint:
            report.num_kept = source.num_videos
            return report
        with _open_unfinished(generations, source, facts) as target:
            _Build(source, target, make_pipeline(target), progress, report).run(allow_missing)
        if report.switched:
            _finish_switch(generations, report)
    return report


def roll_back(index: str | Path) -> ReindexReport:
    """Make the generation that was current before current again, as it was at the switch.

    What was added, changed or deleted since stays in the generation that is left; the next `roll_back` makes
    that one current again. See `rollback_effect`. Jobs are carried over.

    Raises:
        IndexNotFoundError: there is no former generation.
        IndexBusyError: a run is at work.
        IndexDamagedError: what is stored is not what was written.
    """
    generations = generations_of(index)
    with generations.locked(), generations.open_current() as source:
        report = _new_report(source)
        former = _require_former_generation(generations, source)
        with generations.open(former, although_superseded=True) as target:
            with source.transaction() as transaction:
                effect = _effect_of_going_back(source, target)
                report.num_jobs = _hand_over(source, target, transaction)
            report.num_hidden, report.num_returned = effect.num_hidden, effect.num_returned
            report.num_kept = target.num_videos
        _finish_switch(generations, report)
    return report


def rollback_effect(index: str | Path) -> RollbackEffect:
    """What `roll_back` would change now.

    Raises:
        IndexNotFoundError: there is no former generation.
    """
    generations = generations_of(index)
    with open_store(index) as source:
        former = _require_former_generation(generations, source)
        with generations.open(former) as target:
            return _effect_of_going_back(source, target)


def discard_others(index: str | Path) -> list[int]:
    """Remove all generations but the current one; there is no way back then.

    Processes that still serve one of them answer with errors until they have changed to the current one.

    Returns:
        Numbers of the generations that were removed.

    Raises:
        IndexBusyError: a run is at work.
    """
    generations = generations_of(index)
    # Opening names the current one, so that the way to it does not lead through one that is removed.
    with generations.locked(), generations.open_current() as current:
        others = [number for number in generations.numbers() if number != current.generation]
        for number in others:
            generations.remove(number)
    return others


def _new_report(source: Store[Any]) -> ReindexReport:
    number, fingerprint = source.generation, source.fingerprint
    return ReindexReport(number, fingerprint, former_generation=number, former_fingerprint=fingerprint)


def _finish_switch(generations: IndexGenerations, report: ReindexReport) -> None:
    with generations.open_current() as current:
        report.switched = True
        report.generation, report.fingerprint = current.generation, current.fingerprint


def _open_unfinished(generations: IndexGenerations, source: Store[Any], facts: IndexFacts) -> Store[Any]:
    """The generation that an interrupted run with these facts left, or a new one."""
    for number, successor in generations.successors().items():
        if successor is None or successor.epoch > 0:  # The current one, or one that was current once.
            continue
        target = generations.open(number, although_superseded=True)
        if target.fingerprint == facts.fingerprint:
            return target
        target.close()
        generations.remove(number)
    return generations.create(facts, successor_of=source.generation)


def _require_former_generation(generations: IndexGenerations, current: Store[Any]) -> int:
    """The generation that was the current one before `current`: the one that handed over last."""
    former = [
        (successor.epoch, number)
        for number, successor in generations.successors().items()
        if number != current.generation and successor is not None and successor.epoch > 0
    ]
    if not former:
        raise IndexNotFoundError(f"the index in {current.address} has no former generation to go back to")
    return max(former)[1]


def _hand_over(source: Store[Any], target: Store[Any], transaction: Any) -> int:
    """Carry jobs, known files and kept-out content over, and make `target` the current generation.

    Returns:
        How many jobs there are.
    """
    num_jobs = source.carry_over(target, transaction)
    source.hand_over(target, transaction)
    return num_jobs


def _effect_of_going_back(source: Store[Any], target: Store[Any]) -> RollbackEffect:
    now, then = set(source.video_ids()), set(target.video_ids())
    return RollbackEffect(target.generation, num_hidden=len(now - then), num_returned=len(then - now))


class _Build:
    """Brings `target`, a new generation, in line with `source`, the current one, and switches to it."""

    def __init__(
        self,
        source: Store[Any],
        target: Store[Any],
        pipeline: IndexingPipeline,
        progress: Progress,
        report: ReindexReport,
    ) -> None:
        self._source = source
        self._target = target
        self._pipeline = pipeline
        self._progress = progress
        self._report = report
        self._missing: dict[str, str] = {}
        self._gone: set[str] = set()  # Those that were known to be missing: they do not prevent the switch.

    def run(self, allow_missing: bool) -> None:
        """Fill in the report; its `switched` says whether the target is the current generation now."""
        sequence = self._source.sequence
        ids = self._source.video_ids()
        to_encode = self._synchronize([*self._target.video_ids(), *ids])
        self._report.num_kept = len(ids) - len(to_encode)
        self._encode(to_encode)
        with contextlib.suppress(OSError):  # Without a saved one, servers build it at start.
            coarse = CoarseIndex.open(self._target)
            coarse.compact()
            coarse.save()
        save_feature_file(self._target)
        num_rounds = 0
        while allow_missing or self._missing.keys() <= self._gone:
            # Other writers wait while this transaction is open: what they have written by now is all that the
            # target has to hold. Where that takes encoding, the transaction ends first and they go on.
            with self._source.transaction() as transaction:
                changed, sequence = self._changes_since(sequence)
                to_encode = self._synchronize(changed)
                if not to_encode or num_rounds == MAX_ROUNDS:
                    self._encode(to_encode)
                    if allow_missing or self._missing.keys() <= self._gone:
                        self._report.num_jobs = _hand_over(self._source, self._target, transaction)
                        self._report.switched = True
                    break
            self._encode(to_encode)
            num_rounds += 1
        self._report.missing = sorted(self._missing.items())

    def _changes_since(self, sequence: int) -> tuple[list[str], int]:
        """Ids of the videos that changed after the change `sequence`, and the number of the last change."""
        last = self._source.sequence
        try:
            changed: dict[str, None] = {}
            while changes := self._source.changes_since(sequence):
                changed.update((change.video_id, None) for change in changes)
                sequence = changes[-1].sequence
            return list(changed), sequence
        except ChangesForgottenError:
            return [*self._target.video_ids(), *self._source.video_ids()], last

    def _synchronize(self, video_ids: Sequence[str]) -> list[str]:
        """Update and delete these videos in the target as in the source; returns ids of those to encode."""
        to_encode: list[str] = []
        unique = list(dict.fromkeys(video_ids))
        for first in range(0, len(unique), _IDS_AT_ONCE):
            some = unique[first : first + _IDS_AT_ONCE]
            wanted, present = self._source.get_videos(some), self._target.get_videos(some)
            self._synchronize_transcripts([video_id for video_id in some if video_id in present])
            for video_id in some:
                self._missing.pop(video_id, None)
                self._gone.discard(video_id)
                if self._needs_encoding(video_id, wanted.get(video_id), present.get(video_id)):
                    to_encode.append(video_id)
        return to_encode

    def _synchronize_transcripts(self, video_ids: Sequence[str]) -> None:
        wanted = self._source.transcripts.of_videos(video_ids)
        present = self._target.transcripts.of_videos(video_ids)
        for video_id in wanted.keys() | present.keys():
            before = {transcript.track: transcript for transcript in present.get(video_id, ())}
            now = {transcript.track: transcript for transcript in wanted.get(video_id, ())}
            for track in before.keys() - now.keys():
                self._target.transcripts.delete(video_id, track)
            for track, transcript in now.items():
                if before.get(track) != transcript:
                    self._target.transcripts.put(video_id, transcript)

    def _needs_encoding(self, video_id: str, wanted: VideoRecord | None, present: VideoRecord | None) -> bool:
        if present is not None and (wanted is None or present.content_sha256 != wanted.content_sha256):
            self._delete(video_id)  # It was deleted, or its id was given to other bytes.
            present = None
        if wanted is None:
            return False
        if present is None:
            same_bytes = self._target.find_by_sha256(wanted.content_sha256)
            if same_bytes is not None:  # Deleted, and added again under another id.
                self._delete(same_bytes.id)
            return True
        changed = {
            name: getattr(wanted, name)
            for name in CHANGEABLE_FIELDS
            if getattr(wanted, name) != getattr(present, name)
        }
        if changed:
            self._target.update_video(video_id, **changed)
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
            transcripts = self._source.transcripts.of_videos(some)
            for video_id in some:
                record = records.get(video_id)
                if record is None:  # Deleted meanwhile; the next round sees that change.
                    self._take(IndexEvent(VideoSource(Path(video_id)), "skipped"))
                    continue
                found = find_video_file(self._source.index_directory, record) or self._find_elsewhere(record)
                remote = None if found is not None else fetched_from(self._source.files, record)
                path, trusted = found or (remote or Path(video_id), False)
                source = VideoSource(
                    path,
                    id=video_id,
                    trusted=trusted,
                    record=record,
                    transcripts=transcripts.get(video_id, ()),
                )
                if found is None and remote is None:
                    self._take(IndexEvent(source, "failed", None, NO_FILE_REASON))
                else:
                    yield source

    def _find_elsewhere(self, record: VideoRecord) -> tuple[Path, bool] | None:
        """Another file that held the same content when it was last read."""
        for known in self._source.files.with_content([record.content_sha256]):
            path = local_path(known.uri)
            if path is not None and path.is_file():
                return path, record.trusted
        return None

    def _take(self, event: IndexEvent) -> None:
        if event.outcome == "failed" and event.source.record is not None:
            record = event.source.record
            self._missing[record.id] = event.reason or "it could not be read"
            if event.reason == NO_FILE_REASON and record.missing_since is not None:
                self._gone.add(record.id)
        self._progress.on_event(event)
