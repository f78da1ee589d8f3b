"""What indexing a folder costs by model: videos per second, where the time goes, memory and disk.

    python -m benchmarks.indexing ~/Videos --models openclip:ViT-B-32-quickgelu/openai,demo

Runs `xclip-search index` as a user would, a process for each model. Without a folder a few videos are
drawn. By default the models have the true shapes and drawn weights, which cost the same as trained ones.
Memory is the peak of the largest process, the one that encodes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from indexer.ingest.library import find_videos
from indexer.store.store import open_store
from training.demo_corpus.corpus import write_corpus

MODELS = (
    "demo",
    "openclip:ViT-B-32-quickgelu/random?seed=0",
    "openclip:ViT-B-16-quickgelu/random?seed=0",
    "openclip:ViT-L-14-quickgelu/random?seed=0",
)
NUM_DRAWN = 16


def measure(folder: Path, model: str) -> dict[str, Any]:
    """Index `folder` in a process of its own; the report with wall seconds, memory and disk."""
    with tempfile.TemporaryDirectory() as directory:
        index, report = Path(directory) / "index", Path(directory) / "report.json"
        options = ["--index", str(index), "--model", model, "--report", str(report)]
        command = [sys.executable, "-m", "xclip_search", "index", str(folder), *options]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - started
        if not report.exists():
            raise SystemExit(f"indexing with {model} failed: {' '.join(command)}")
        with open_store(index) as catalog:
            size_bytes = catalog.size_bytes
        return {
            **json.loads(report.read_text(encoding="utf-8")),
            "wall_seconds": wall_seconds,
            "memory_mib": usage.ru_maxrss / 1024,
            "index_bytes": size_bytes,
        }


def measure_folder(folder: Path, models: list[str]) -> None:
    """Print a row for each model."""
    print(f"{len(find_videos([folder]))} videos, {os.cpu_count()} cores\n")
    print(
        "| model | whole command s | videos/s | encoding s a segment | decoding s a segment"
        " | memory MiB | index KB a segment |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for model in models:
        figures = measure(folder, model)
        segments = max(1, figures["num_segments"])
        print(
            f"| `{model}` | {figures['wall_seconds']:.1f} | {figures['num_added'] / figures['seconds']:.2f}"
            f" | {figures['encode_seconds'] / segments:.3f} | {figures['decode_seconds'] / segments:.3f}"
            f" | {figures['memory_mib']:,.0f} | {figures['index_bytes'] / segments / 1e3:.1f} |"
        )


def main() -> None:
    """Measure the given folder, or drawn videos."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="Videos; drawn ones where none is given.")
    parser.add_argument("--models", default=",".join(MODELS), help="Model specs, separated by commas.")
    choices = parser.parse_args()
    models = choices.models.split(",")
    if choices.folder is not None:
        measure_folder(choices.folder, models)
        return
    with tempfile.TemporaryDirectory() as drawn:
        write_corpus(Path(drawn), num_videos=NUM_DRAWN, seed=7)
        measure_folder(Path(drawn), models)


if __name__ == "__main__":
    main()
