"""Features of a shortlist and of everything: from the feature file, and from rows of the store; and what a
shortlist costs that is scored where it lies.

`--index DIR` takes an index of any size, for example of `benchmarks/synthetic_index.py`; without it one is
drawn. Its feature file is made where there is none.
"""

from __future__ import annotations

import functools
import os
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.report import PAUSE_SECONDS, Report, arguments, interleaved
from benchmarks.synthetic_index import make_index
from indexer.features.reader import FeatureReader
from indexer.features.scorable import ScorableSegments
from indexer.features.writing import save_feature_file
from indexer.store.store import open_store
from model import XClip

NUM_CANDIDATES, NUM_LONGER, BLOCK_SIZE, NUM_DRAWN = 200, 5_000, 1_024, 10_000
CPU = torch.device("cpu")
MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"


class Asked:
    """Another random shortlist at each call."""

    def __init__(self, ids: NDArray[np.int64], count: int) -> None:
        self._ids, self._count, self._random = ids, min(count, len(ids)), np.random.default_rng(0)

    def __call__(self) -> NDArray[np.int64]:
        """Of ids."""
        return self._random.choice(self._ids, self._count, replace=False)


def readers(catalog: Any, count: int) -> Iterator[FeatureReader]:
    """Readers that have looked at nothing yet."""
    return iter([FeatureReader(catalog, device=CPU) for _ in range(count)])


def forget(paths: list[Path]) -> None:
    """Let the operating system drop its copy of these files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rows(catalog: Any, ids: NDArray[np.int64]) -> ScorableSegments:
    """The same features from the store."""
    return ScorableSegments.of(catalog.segment_features(ids), CPU)


def same(ours: ScorableSegments, theirs: ScorableSegments) -> bool:
    """To the last bit."""
    pairs = zip(ours.videos.tensors(), theirs.videos.tensors(), strict=True)
    return bool(np.array_equal(ours.segment_ids, theirs.segment_ids)) and all(
        torch.equal(a, b) for a, b in pairs
    )


def shortlists(report: Report, catalog: Any, ids: NDArray[np.int64]) -> None:
    """200 random segments: copied in memory, by a warm file, at first touch, by rows."""
    ask, reader, rounds = Asked(ids, NUM_CANDIDATES), FeatureReader(catalog, device=CPU), 30
    reader.check()  # As a server does in the background.
    some = ask()
    report.check(
        "features from the file equal those of the store to the bit",
        same(reader.get(some), rows(catalog, some)),
    )
    held = reader.get(ids[:NUM_DRAWN])
    frames, videos = held.videos.frames.numpy(), held.videos.video.numpy()
    in_memory = Asked(np.arange(len(frames)), NUM_CANDIDATES)

    def copy() -> None:
        chosen = in_memory()
        frames.take(chosen, axis=0), videos.take(chosen, axis=0)

    fresh = readers(catalog, rounds + 2)
    timings = interleaved(
        {
            "copy in memory": copy,
            "file": lambda: reader.get(ask()),
            "file, first touch": lambda: next(fresh).get(ask()),
            "rows": lambda: rows(catalog, ask()),
        },
        rounds=rounds,
    )
    title = f"{NUM_CANDIDATES} random of {len(ids):,} segments"
    table = report.comparison(title, "copy in memory", "file", ["file, first touch", "rows"])
    table.add("in memory", timings)
    report.target("200 at first touch, ms", 1e3 * timings["file, first touch"].median, at_most=1.5)
    longer = Asked(ids, NUM_LONGER)
    timings = interleaved(
        {
            "file": lambda: reader.video_features(longer()),
            "rows": lambda: catalog.video_features(longer()),
        }
    )
    alone = report.table("Video features alone", {"segments": ",", "file, ms": ".2f", "rows, ms": ".2f"})
    alone.add(min(NUM_LONGER, len(ids)), *(1e3 * timings[name].median for name in ("file", "rows")))


def scored(report: Report, catalog: Any, ids: NDArray[np.int64], model: XClip) -> None:
    """200 random segments found and scored: where they lie in the file, and from copies."""
    ask, reader = Asked(ids, NUM_CANDIDATES), FeatureReader(catalog, device=CPU)
    text, wanted = model.encode_text(["a dog runs along the beach"]), model.config.score_names
    reader.check()  # As a server does in the background.
    some = ask()
    held = reader.get(some)
    with torch.inference_mode():
        found, expected = (model.score(text, of.videos, wanted).total for of in (reader.to_score(some), held))
        report.check("scores are the same to the bit where features lie", torch.equal(found, expected))
        timings = interleaved(
            {
                "scoring alone": lambda: model.score(text, held.videos, wanted),
                "in place": lambda: model.score(text, reader.to_score(ask()).videos, wanted),
                "copied": lambda: model.score(text, reader.get(ask()).videos, wanted),
            },
            rounds=30,
            pause_seconds=PAUSE_SECONDS,
        )
    title = f"{NUM_CANDIDATES} random of {len(ids):,} segments, scored; scoring alone: the same ones again"
    report.comparison(title, "scoring alone", "in place", ["copied"]).add("one query of 8 words", timings)
    more = 1e3 * (timings["in place"].median - timings["scoring alone"].median)
    report.target("200 candidates at hand, more than scoring alone, ms", more, at_most=1.5)


def cold(report: Report, catalog: Any, ids: NDArray[np.int64]) -> None:
    """200 random segments whose files are not in memory."""
    directory = catalog.directory
    of_features, of_rows = list(directory.glob("features-*")), [directory / "catalog.sqlite3"]
    ask, taken = Asked(ids, NUM_CANDIDATES), {"file": list[float](), "rows": list[float]()}
    for _ in range(7):
        (reader,) = readers(catalog, 1)
        reads: dict[str, tuple[list[Path], Callable[[Any], object]]] = {
            "file": (of_features, reader.get),
            "rows": (of_rows, functools.partial(rows, catalog)),
        }
        for name, (paths, read) in reads.items():
            some = ask()
            forget(paths)
            taken[name].append(seconds(functools.partial(read, some)))
    table = report.table("Not in memory", {"segments": ",", "file, ms": ".1f", "rows, ms": ".1f"})
    table.add(NUM_CANDIDATES, *(1e3 * float(np.median(values)) for values in taken.values()))


def scans(report: Report, catalog: Any, ids: NDArray[np.int64]) -> None:
    """Everything once, without scoring it: bytes read, first and later passes over the file, rows."""
    rounds = 3
    reader, fresh = FeatureReader(catalog, device=CPU), readers(catalog, rounds + 2)
    buffer = bytearray(16 << 20)
    paths = [path for path in catalog.directory.glob("features-*") if path.suffix != ".rows"]

    def read_bytes() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def scan(reader: FeatureReader) -> None:
        for _ in reader.blocks(ids, BLOCK_SIZE):
            pass

    def scan_rows() -> None:
        for first in range(0, len(ids), BLOCK_SIZE):
            rows(catalog, ids[first : first + BLOCK_SIZE])

    functions: dict[str, Callable[[], object]] = {
        "read": read_bytes,
        "blocks": lambda: scan(reader),
        "first blocks": lambda: scan(next(fresh)),
        "rows": scan_rows,
    }
    timings = interleaved(functions, rounds=rounds)
    table = report.comparison(
        f"All {len(ids):,} segments", "read", "blocks", ["first blocks", "rows"], unit="s"
    )
    table.add("no scoring", timings)


def seconds(function: Callable[[], object]) -> float:
    """How long it takes once."""
    return interleaved({"": function}, rounds=1, warm_up=0)[""].median


@contextmanager
def index(choices: Namespace) -> Iterator[Path]:
    """The index asked for, or a drawn one for this run."""
    if choices.index is not None:
        yield choices.index
        return
    with tempfile.TemporaryDirectory() as folder:
        make_index(Path(folder) / "index", MODEL, 2_000 if choices.short else NUM_DRAWN)
        yield Path(folder) / "index"


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--index", type=Path, help="an index; by default a drawn one of 10,000 segments")
    choices = parser.parse_args()
    with (
        Report("features_at_hand", choices) as report,
        index(choices) as directory,
        open_store(directory) as catalog,
    ):
        made = seconds(lambda: save_feature_file(catalog))
        report.note(f"feature file brought in line in {made:.1f} s")
        opened = seconds(lambda: FeatureReader(catalog, device=CPU))
        report.note(f"opened in {1e3 * opened:.0f} ms")
        ids = catalog.segment_ids()
        shortlists(report, catalog, ids)
        model = XClip.load(catalog.model_spec, "cpu")
        model.prepare("scores")
        scored(report, catalog, ids, model)
        cold(report, catalog, ids)
        if len(ids) <= 100_000:
            scans(report, catalog, ids)


if __name__ == "__main__":
    main()
