"""Damage to every file of an index and of a backup: the answer is right or an error, and `verify` finds it.

    python -m tests.faults.damage_cases [--cases 600] [--seed N] [--large | --unchecked]

--large: as with a catalog too large to be read whole when it is opened; --unchecked: too large for its
indexes to be checked either. SQLite's write-ahead log is not among the files: SQLite reads it up to the first
frame that is not what was written.
"""

# ruff: noqa: T201, this is a program that prints its table.

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.coarse.index import CoarseIndex
from indexer.errors import (
    BackupDamagedError,
    ChangesForgottenError,
    FingerprintMismatchError,
    IndexDamagedError,
    IndexStorageError,
    IndexVersionError,
    VideoNotFoundError,
)
from indexer.maintenance.backup import backup, restore
from indexer.maintenance.verification import verify
from indexer.search.searcher import FilterCache
from indexer.store.filters import parse_filter
from indexer.store.records import Successor
from indexer.store.sqlite import integrity
from indexer.store.sqlite.catalog import Catalog
from indexer.store.sqlite.generations import name_generation
from tests.support.catalog_builders import FINGERPRINT, add_video, create_catalog, make_segment, sha256_of

D, F = 8, 4
NUM_VIDEOS = 60
MANY_SEGMENTS = 1_200
"""Enough for an approximate coarse index."""

PAGE_BYTES = 8192
NOTICED = (
    IndexDamagedError,
    IndexVersionError,
    IndexStorageError,
    FingerprintMismatchError,
    BackupDamagedError,
)
FILTERS = (
    {"metadata.n": {"lt": 20}},
    {"title": {"in": [f"title {number}" for number in range(0, NUM_VIDEOS, 3)]}},
    {"not": {"metadata.kind": "even"}, "duration_seconds": {"gte": 15}},
)
OUTCOMES = ("right", "noticed", "silently wrong", "unclear error", "missed by verify")

Answers = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """file: as a pattern, of the index (or backup) in the folder `of`. kind, seed: what is done to it."""

    of: str
    file: str
    kind: str
    seed: int

    def __str__(self) -> str:
        return f"{self.of}: {self.file}: {self.kind} {self.seed}"


SHARES = {
    ("index", "catalog.sqlite3"): 0.40,
    ("killed", "catalog.sqlite3"): 0.15,
    ("index", "coarse.json"): 0.06,
    ("index", "coarse-*.faiss"): 0.06,
    ("many", "coarse-*.faiss"): 0.05,
    ("many", "coarse.json"): 0.03,
    ("backup", "catalog.sqlite3"): 0.06,
    ("backup", "backup.json"): 0.08,
    ("backup", "media/*"): 0.02,
    ("reindexed", "current.json"): 0.03,
    ("reindexed", "catalog.sqlite3"): 0.02,
    ("reindexed", "generations/2/catalog.sqlite3"): 0.03,
    ("switching", "catalog.sqlite3"): 0.01,
}
"""Of all cases. index: one that was closed; killed: one whose process was killed; many: one with an
approximate coarse index; reindexed: one whose second generation is the current one; switching: one whose
process was killed when the switch to that was committed, and nothing after it."""

KINDS = {"bit": 0.5, "byte": 0.2, "zeros": 0.12, "noise": 0.1, "cut": 0.08}


def cases(num_cases: int, seed: int) -> Iterator[Case]:
    """About this many, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    for (of, file), share in SHARES.items():
        for _ in range(math.ceil(num_cases * share)):
            kind = str(random.choice(list(KINDS), p=list(KINDS.values())))
            yield Case(of, file, kind, int(random.integers(2**31)))


def damage(path: Path, case: Case) -> None:
    """Change a file; it is another one afterwards."""
    random = np.random.default_rng(case.seed)
    whole = path.read_bytes()
    content = bytearray(whole)
    while bytes(content) == whole:
        position = _position(random, len(content))
        if case.kind == "bit":
            content[position] ^= 1 << int(random.integers(8))
        elif case.kind == "byte":
            content[position] = int(random.integers(256))
        elif case.kind == "noise":
            content[position : position + 16] = random.bytes(len(content[position : position + 16]))
        elif case.kind == "zeros":
            size = int(random.choice([512, 4096, PAGE_BYTES]))
            start = position // size * size
            content[start : start + size] = bytes(len(content[start : start + size]))
        elif case.kind == "cut":
            del content[int(random.integers(len(content))) :]
    path.write_bytes(content)


def _position(random: np.random.Generator, size_bytes: int) -> int:
    """Anywhere; half of them in a page's header, at its start, or in its last rows."""
    position = int(random.integers(size_bytes))
    page = position // PAGE_BYTES * PAGE_BYTES
    way = random.random()
    if way < 0.3:
        return min(page + int(random.integers(120)), size_bytes - 1)
    if way < 0.5:
        return min(page + PAGE_BYTES - 1 - int(random.integers(300)), size_bytes - 1)
    return position


def make_indexes(directory: Path) -> None:
    """A folder in `directory` for each name that SHARES has."""
    random = np.random.default_rng(7)
    with create_catalog(directory / "index", embedding_dim=D, num_frames=F) as catalog:
        for number in range(NUM_VIDEOS):
            _add(catalog, random, number)
            if number % 10 == 9:
                catalog.delete_video(f"video-{number - 4}")
                catalog.update_video(f"video-{number - 1}", title="another")
            if number == NUM_VIDEOS - 5:
                CoarseIndex.build(catalog).save()
    media = directory / "index" / "media"
    media.mkdir()
    (media / f"{'0' * 32}.mp4").write_bytes(random.bytes(3000))
    backup(directory / "index", directory / "backup")
    shutil.copytree(directory / "index", directory / "live")
    with Catalog.open(directory / "live") as catalog:
        for number in range(NUM_VIDEOS, NUM_VIDEOS + 12):
            _add(catalog, random, number)
        catalog.delete_video("video-3")
        catalog.update_video("video-61", title="another")
        # What a process that is killed now leaves: all is in the log, nothing in the database yet.
        shutil.copytree(directory / "live", directory / "killed")
    with create_catalog(directory / "many", embedding_dim=D, num_frames=F) as catalog:
        for number in range(MANY_SEGMENTS // 100):
            add_video(catalog, number, [make_segment(random, D, F) for _ in range(100)])
        CoarseIndex.build(catalog, kind="ivf-sq").save()
    _make_generations(directory)


def _make_generations(directory: Path) -> None:
    """Two catalogs with the same videos but the last one, and other features.

    Both are of the same fingerprint, which a reindexed index never has: it must not be what shows that an
    answer comes from the wrong one.
    """
    index = directory / "reindexed"
    with (
        create_catalog(index, embedding_dim=D, num_frames=F) as former,
        create_catalog(index, embedding_dim=D, num_frames=F, generation=2, successor_of=1) as current,
    ):
        for catalog, seed in ((former, 8), (current, 9)):
            random = np.random.default_rng(seed)
            for number in range(NUM_VIDEOS if catalog is current else NUM_VIDEOS - 1):
                _add(catalog, random, number)
        with former.transaction() as transaction:
            former.hand_over(current, transaction)
        shutil.copytree(index, directory / "switching")
        current.take_over(Successor(1, epoch=0))
        name_generation(index, 2)


def _add(catalog: Catalog, random: np.random.Generator, number: int) -> None:
    segments = [make_segment(random, D, F, num_real_frames=1 + number % F) for _ in range(1 + number % 3)]
    kind = "even" if number % 2 == 0 else "odd"
    metadata = {"n": number, "kind": kind}
    add_video(catalog, number, segments, title=f"title {number}", uri=f"/videos/{number}", metadata=metadata)


def answers(directory: Path) -> Answers:
    """All that can be asked of an index, each thing in every way that there is."""
    with Catalog.open(directory, fingerprint=FINGERPRINT) as catalog:
        facts = (catalog.embedding_dim, catalog.num_frames, catalog.model_spec, catalog.sampling_json)
        found: Answers = {
            "facts": (*facts, catalog.created_at, catalog.totals(), catalog.sequence),
            "records": catalog.list_videos(limit=1000),
            "pages": [record.id for after in (20, 40, 60) for record in catalog.list_videos(10, after)],
            "features": [_bits(block) for block in catalog.iterate_features(50)],
            "vectors": [_bits(block) for block in catalog.iterate_video_features(50)],
        }
        if catalog.num_videos > MANY_SEGMENTS // 100:
            numbers = range(NUM_VIDEOS + 12)
            ids = list(range(1, 160))
            found["by id"] = catalog.get_videos([f"video-{number}" for number in numbers])
            found["each by id"] = [_or_none(catalog.get_video, f"video-{number}") for number in numbers]
            found["by content"] = [catalog.find_by_sha256(sha256_of(number)) for number in numbers]
            found["segments"] = [
                _bits(_or_none(catalog.video_segments, f"video-{number}")) for number in numbers
            ]
            found["infos"] = {i: _bits(info) for i, info in catalog.segment_infos(ids).items()}
            found["features by id"] = _bits(catalog.segment_features(ids[::-1]))
            found["vectors by id"] = _bits(catalog.video_features(ids))
            found["changes"] = _changes(catalog)
        index = CoarseIndex.open(catalog, kind="auto" if len(found["records"]) > 20 else "ivf-sq")
        queries = np.random.default_rng(3).standard_normal((4, D)).astype(np.float32)
        found["search"] = _bits([index.search(queries, count) for count in (7, 2000)])
        matches = FilterCache(catalog)
        for position, chosen in enumerate(FILTERS):
            allowed = matches.matching(parse_filter(chosen))
            found[f"filter {position}"] = _bits([allowed, index.search(queries, 20, allowed)])
        return found


def _changes(catalog: Catalog) -> Any:
    try:
        return catalog.changes_since(0)
    except ChangesForgottenError as error:  # Followers take it for the request to read everything again.
        raise IndexDamagedError("the change log does not reach back") from error


def _or_none(read: Any, video_id: str) -> Any:
    try:
        return read(video_id)
    except VideoNotFoundError:
        return None


def _bits(value: Any) -> Any:
    """Something that is equal only to what is the same to the last bit."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, list | tuple):
        return [_bits(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _bits(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


class Judge:
    """Damages copies of the indexes in `directory` and asks them what it asked the whole ones."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._num_copies = 0
        make_indexes(directory)
        self._right: dict[str, Answers] = {}
        for of in dict.fromkeys(of for of, _ in SHARES if of != "backup"):
            self._right[of] = answers(self._copy(Case(of, "", "", 0)))
        self._right["backup"] = self._restored(self._copy(Case("backup", "", "", 0)))

    def outcome(self, case: Case) -> tuple[str, str]:
        """One of OUTCOMES, and what led to it."""
        damaged = self._copy(case)
        why = ""
        try:
            found = self._restored(damaged) if case.of == "backup" else answers(damaged)
            if found == self._right[case.of]:
                return "right", ""
            wrong = [name for name in found if found[name] != self._right[case.of].get(name)]
            outcome, why = "silently wrong", ", ".join(wrong)
        except NOTICED as error:
            outcome, why = "noticed", str(error)
        except Exception as error:
            outcome, why = "unclear error", repr(error)
        finally:
            shutil.rmtree(damaged)
        if case.of != "backup" and outcome != "unclear error":
            damaged = self._copy(case)
            try:
                if verify(damaged).is_clean:
                    return "silently wrong" if outcome == "silently wrong" else "missed by verify", why
            except NOTICED:
                pass
            except Exception as error:
                return "unclear error", f"verify: {error!r}"
            finally:
                shutil.rmtree(damaged)
        return outcome, why

    def _copy(self, case: Case) -> Path:
        self._num_copies += 1
        copy = self._directory / f"copy-{self._num_copies}"
        shutil.copytree(self._directory / case.of, copy)
        if case.file:
            (path,) = copy.glob(case.file)
            damage(path, case)
        return copy

    def _restored(self, source: Path) -> Answers:
        target = source.with_name(f"{source.name}-restored")
        try:
            restore(source, target)
            found = answers(target)
            found["media"] = sorted((path.name, path.read_bytes()) for path in (target / "media").iterdir())
            return found
        finally:
            shutil.rmtree(target, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--unchecked", action="store_true")
    options = parser.parse_args()
    if options.large:
        integrity.WHOLE_SIZE_BYTES = 0  # type: ignore[misc]
    if options.unchecked:
        integrity.CHECKED_SIZE_BYTES = 0  # type: ignore[misc]
    counts: dict[str, Counter[str]] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(Path(scratch))
        for case in cases(options.cases, options.seed):
            outcome, why = judge.outcome(case)
            counts.setdefault(f"{case.of}: {case.file}", Counter())[outcome] += 1
            if outcome not in ("right", "noticed"):
                bad.append(f"{outcome}: {case}: {why[:300]}")
    counts["all"] = sum(counts.values(), Counter())
    print(f"| {'damaged':<44} | cases | {' | '.join(OUTCOMES)} |")
    print(f"| {'---':<44} | ---: |{' ---: |' * len(OUTCOMES)}")
    for name, row in counts.items():
        numbers = " | ".join(f"{row[outcome]:>{len(outcome)}}" for outcome in OUTCOMES)
        print(f"| {name:<44} | {row.total():>5} | {numbers} |")
    print(*bad, sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
