"""Check that an index is what was written: every row, every feature, the change log, and what is derived."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from indexer.coarse.exact import KindChoice
from indexer.coarse.index import CoarseIndex
from indexer.coarse.snapshots import MANIFEST_FILE, SnapshotUnusableError, load_snapshot
from indexer.errors import IndexDamagedError
from indexer.features.writing import feature_file_problems, save_feature_file
from indexer.ingest.video_files import find_video_file, local_path
from indexer.maintenance.backup import MANIFEST_FILE as BACKUP_MANIFEST_FILE
from indexer.maintenance.backup import damages_of_backup
from indexer.store.postgres.address import is_postgres_address
from indexer.store.sqlite.catalog import Catalog, read_successors
from indexer.store.sqlite.generations import find_named_generation, name_generation, named_generation
from indexer.store.store import Store, open_store

DERIVED_PARTS = ("totals", "words", "coarse index", "feature file", "files", "jobs", "current.json")

MAX_FINDINGS = 1000
"""After this many findings `verify` stops."""


@dataclass(frozen=True)
class Finding:
    """Something that is not what was written.

    Attributes:
        part: what it is a part of. `catalog` and `change log` are the truth: restore a backup, or delete the
            videos named and index them again. `totals`, `words`, `coarse index`, `feature file` and
            `current.json` are derived: `rebuild` builds them again. `files` spare reading: `rebuild` forgets
            those that are damaged, and they are read again. `jobs` are requests: `rebuild` removes those that
            are damaged, and the clients send them again. `backup`: a file of a backup; make another one.
            `missing files` and `changed files`: what `index` over their folder brings in line.
        problem: a sentence for the user.
    """

    part: str
    problem: str

    @property
    def is_derived(self) -> bool:
        """Whether `rebuild` repairs it."""
        return self.part in DERIVED_PARTS


@dataclass
class VerifyReport:
    """What was checked, and what was found to be wrong; `complete` is false after MAX_FINDINGS."""

    num_videos: int = 0
    num_segments: int = 0
    findings: list[Finding] = field(default_factory=list)
    complete: bool = True

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def verify(
    index: str | Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    files: bool = False,
) -> VerifyReport:
    """Read an index whole and check it against its checksums and against itself. It may be in use meanwhile.

    Args:
        index: its address; or a backup, whose files are compared with their sha256 as well.
        on_progress: called with the number of segments checked and of all segments.
        files: whether to look for the files of the videos too: that they are there, and of the size that was
            indexed.

    Raises:
        IndexNotFoundError: there is no index.
        IndexVersionError: it is of a format that this version does not read.
        IndexStorageError: the database does not answer.
    """
    report = VerifyReport()
    if is_postgres_address(index):
        try:
            catalog = open_store(index)
        except IndexDamagedError as error:
            report.findings.append(Finding("catalog", str(error)))
            return report
        with catalog:
            _check(catalog, report, on_progress, files)
        return report
    directory = Path(index)
    if (directory / BACKUP_MANIFEST_FILE).is_file():
        report.findings += [Finding("backup", problem) for problem in damages_of_backup(directory)]
        if report.findings:
            return report
    try:
        named = named_generation(directory)
        embedded = Catalog.open(directory, check=False)
    except IndexDamagedError as error:
        report.findings.append(Finding("catalog", str(error)))
        return report
    with embedded:
        if embedded.generation != named:  # A switch was cut short: opening reads this one first.
            try:
                Catalog.open_generation(directory, named).close()
            except IndexDamagedError as error:
                report.findings.append(Finding("current.json", f"it names generation {named}: {error}"))
        _check(embedded, report, on_progress, files)
    return report


def _check(
    catalog: Store[Any], report: VerifyReport, on_progress: Callable[[int, int], None], files: bool
) -> None:
    """Put into the report what is wrong with an open index."""
    try:
        report.num_videos, report.num_segments = catalog.totals()
        of_files = _file_findings(catalog) if files else iter(())
        for finding in chain(_findings(catalog, report.num_segments, on_progress), of_files):
            if len(report.findings) == MAX_FINDINGS:
                report.complete = False
                break
            report.findings.append(finding)
    except IndexDamagedError as error:  # So damaged that the database cannot go on reading.
        report.findings.append(Finding("catalog", str(error)))
    except MemoryError:  # A damaged page may claim a row of any size.
        report.findings.append(Finding("catalog", "reading it ran out of memory"))


def _findings(
    catalog: Store[Any], num_segments: int, on_progress: Callable[[int, int], None]
) -> Iterator[Finding]:
    for damage in catalog.damages(lambda num_done: on_progress(num_done, num_segments)):
        yield Finding(damage.part, damage.problem)
    for uri in catalog.files.damaged():
        yield Finding("files", f"the record of the file {uri} does not match its checksum")
    for number in catalog.jobs.damaged():
        yield Finding("jobs", f"job number {number} does not match its checksum")
    yield from _coarse_findings(catalog)
    for problem in feature_file_problems(catalog):
        yield Finding("feature file", problem)


def _file_findings(catalog: Store[Any]) -> Iterator[Finding]:
    """Videos whose files are gone, or are of another size. Those that lie elsewhere than here are not looked
    for."""
    for block in catalog.iterate_videos():
        for video in block:
            found = find_video_file(catalog.index_directory, video)
            if found is None:
                if video.uri is None or local_path(video.uri) is not None:
                    yield Finding("missing files", f"the file of video {video.id} is gone: {video.uri}")
            elif found[0].stat().st_size != video.size_bytes:
                yield Finding("changed files", f"video {video.id}: {found[0]} has another size than indexed")


def _coarse_findings(catalog: Store[Any]) -> Iterator[Finding]:
    """Differences between the saved coarse index and the catalog.

    None saved is no damage: it is built at the next start. Nor is one of another history (the catalog was
    restored from a backup): the next start ignores it.
    """
    manifest = catalog.directory / MANIFEST_FILE
    if not manifest.exists():
        return
    written_at = manifest.stat().st_mtime_ns
    try:
        snapshot = load_snapshot(catalog.directory, catalog.fingerprint, catalog.embedding_dim)
    except SnapshotUnusableError as error:
        if manifest.exists() and manifest.stat().st_mtime_ns != written_at:
            yield from _coarse_findings(catalog)  # Another process has saved a newer one meanwhile.
        else:
            yield Finding("coarse index", str(error))
        return
    if catalog.change_token(snapshot.sequence) != snapshot.token:
        return
    index = CoarseIndex.open(catalog)
    wrong: list[int] = []
    num_right = 0
    try:
        for ids, vectors in index.blocks():
            expected_ids, expected = catalog.video_features(ids)
            wrong += ids[~np.isin(ids, expected_ids)].tolist()
            num_right += len(expected_ids)
            if vectors is not None:
                differ = (vectors[np.isin(ids, expected_ids)] != expected).any(axis=1)
                wrong += expected_ids[differ].tolist()
    except IndexDamagedError:
        return  # Reported already.
    if catalog.sequence != index.sequence:
        return  # The index changed during the comparison.
    for segment_id in wrong:
        yield Finding("coarse index", f"segment {segment_id} is not what the catalog holds")
    if not wrong and num_right < catalog.num_segments:
        missing = catalog.num_segments - num_right
        yield Finding("coarse index", f"{missing} segments of the catalog are missing")


def _restore_pointer(directory: Path) -> None:
    """Write current.json where it is damaged, or is gone although it is needed."""
    try:
        named_generation(directory)
    except IndexDamagedError:
        name_generation(directory, find_named_generation(directory, read_successors(directory)))


def rebuild(index: str | Path, coarse_kind: KindChoice = "auto") -> tuple[int, int]:
    """Build again all that is derived: the database's indexes, the totals, the coarse index, the feature
    file. Remove damaged jobs.

    Args:
        index: its address.
        coarse_kind: of the coarse index.

    Returns:
        The number of videos and of segments.

    Raises:
        IndexNotFoundError: there is no index.
        IndexVersionError: it is of a format that this version does not read.
        IndexDamagedError: what it is derived from is damaged.
        IndexStorageError: the database does not answer.
        OSError: the disk refused a write.
    """
    if is_postgres_address(index):
        with open_store(index) as catalog:
            _rebuild(catalog, coarse_kind)
            return catalog.totals()
    directory = Path(index)
    _restore_pointer(directory)
    with Catalog.open(directory, check=False) as embedded:
        _rebuild(embedded, coarse_kind)
        if named_generation(directory) != embedded.generation:
            name_generation(directory, embedded.generation)
        return embedded.totals()


def _rebuild(catalog: Store[Any], coarse_kind: KindChoice) -> None:
    with catalog.transaction() as transaction:
        catalog.repair(transaction)
        catalog.jobs.forget_damaged(transaction)
        catalog.files.forget_damaged(transaction)
    CoarseIndex.build(catalog, kind=coarse_kind).save()
    save_feature_file(catalog, anew=True)
