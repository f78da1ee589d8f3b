"""Training with workers where /dev/shm has 64 MB, as in a container that was given no more.

    python -m tests.faults.small_shared_memory [--megabytes 64] [--num-workers 2]

Mounts a file system of its own over /dev/shm, for this process and its children alone, and trains with
batches of 32 MB. Prints how it ended; exit 1 where training did not come to its end.
"""

# ruff: noqa: T201, this is a program that prints what it sees.

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model import XClip, XClipConfig
from tests.faults.full_disk_worker import CLONE_NEWNS
from tests.support.training_runs.small_training import small_config, write_small_corpus

WITHIN_SECONDS = 500.0

SIDE = 768
"""Of a frame: three frames of six clips are 32 MB."""


def mount_shared_memory(megabytes: int) -> str:
    """Why it cannot be done; empty where it was."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        return "this process may not have mounts of its own"
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", "/dev/shm"],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            return result.stderr
    return ""


def write_clip(directory: Path) -> Path:
    """A tiny CLIP that sees large frames."""
    clip = XClipConfig.tiny().clip
    vision = {**clip["vision_cfg"], "image_size": SIDE, "patch_size": SIDE // 8}
    sizes = {"num_words": 12, "num_frames": 3, "temporal_layers": 0}
    XClip(XClipConfig.tiny(clip={**clip, "vision_cfg": vision}, **sizes)).save(directory)
    return directory


def main() -> int:
    """Train; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    arguments = parser.parse_args()
    if reason := mount_shared_memory(arguments.megabytes):
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workers = f"data.num_workers={arguments.num_workers}"
        corpus, clip = write_small_corpus(root / "corpus"), write_clip(root / "clip")
        config = small_config(corpus, clip, workers, "training.epochs=1")
        (root / "config.toml").write_text(config.to_toml(), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "xclip_search",
            "train",
            str(root / "config.toml"),
            "--device",
            "cpu",
        ]
        started = time.monotonic()
        result = subprocess.run([*command, "--output", str(root / "run")], timeout=WITHIN_SECONDS)
        seconds = time.monotonic() - started
        print(f"{arguments.megabytes} MB of shared memory: status {result.returncode} after {seconds:.0f} s")
        return result.returncode


if __name__ == "__main__":
    sys.exit(main())
