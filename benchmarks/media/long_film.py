"""What indexing a film of two hours takes, compared with one of two minutes: time, and peak memory.

    python -m benchmarks.media.long_film [--minutes 2 120] [--model SPEC] [--frame-rate 24]
        [--segment-seconds 60] [--keep FOLDER] [--json]

One process encodes, another decodes. The films are drawn: every second shows other colours. Each is indexed
by processes of its own, so that their peaks are its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFAULT_MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"
SIDE_PIXELS, NUM_BLOCKS = 128, 4
POLL_SECONDS = 0.05
"""Pause between two samples of the processes' memory. VmHWM keeps a peak until its process ends."""

MIB = 1 << 20


def picture_of(second: int) -> NDArray[np.uint8]:
    """What a drawn film shows in this second: uint8 [128, 128, 3], 4 x 4 blocks of random colours."""
    colours = np.random.default_rng(second).integers(0, 256, (NUM_BLOCKS, NUM_BLOCKS, 3), np.uint8)
    side = SIDE_PIXELS // NUM_BLOCKS
    return colours.repeat(side, axis=0).repeat(side, axis=1)


def draw_film(path: Path, num_seconds: int, frame_rate: int) -> None:
    """Write a film, frame by frame. path: ends in `.mp4`, `.mkv` or the like."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=frame_rate, options={"preset": "ultrafast", "crf": "26"}
        )
        stream.width = stream.height = SIDE_PIXELS
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 10 * frame_rate
        for second in range(num_seconds):
            picture = av.VideoFrame.from_ndarray(picture_of(second), format="rgb24").reformat(
                format="yuv420p"
            )
            for number in range(frame_rate):
                picture.pts = second * frame_rate + number
                container.mux(stream.encode(picture))
        container.mux(stream.encode())


def index_film(film: Path, index: Path, model_spec: str, segment_seconds: float) -> dict[str, Any]:
    """Index one film in this process and return the figures. Call once a process: peaks do not fall."""
    from indexer.ingest.manifest import VideoSource
    from xclip_search import Index

    peaks: dict[str, int] = {}
    stop = threading.Event()
    watch = threading.Thread(target=_watch_children, args=(peaks, stop))
    with Index.create(index, model_spec, device="cpu", max_segment_seconds=segment_seconds) as opened:
        watch.start()
        try:
            report = opened.add_all([VideoSource(film, id="film")], num_workers=1)
        finally:
            stop.set()
            watch.join()
    if report.num_added != 1:
        raise RuntimeError(f"the film was not indexed: {report.failures}")
    return {
        "num_segments": report.num_segments,
        "seconds": report.seconds,
        "decode_seconds": report.decode_seconds,
        "encode_seconds": report.encode_seconds,
        "encoder_peak_bytes": _peak_bytes("self"),
        "decoder_peak_bytes": max(peaks.values()),
    }


def _watch_children(peaks: dict[str, int], stop: threading.Event) -> None:
    """Note the peak of every child. Not by getrusage: a forked child is charged with its parent's there."""
    while not stop.wait(POLL_SECONDS):
        for child in _children():
            peaks[child] = max(peaks.get(child, 0), _peak_bytes(child))


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        yield from (task / "children").read_text().split()


def _peak_bytes(process: str) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:  # It has just ended.
        return 0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(peaks[0]) if peaks else 0


def measure(minutes: int, folder: Path, frame_rate: int, *arguments: str) -> dict[str, Any]:
    """Draw a film and index it in a fresh process. arguments: for that process."""
    film = folder / f"film-{minutes}.mp4"
    started = time.perf_counter()
    draw_film(film, 60 * minutes, frame_rate)
    drawn_seconds = time.perf_counter() - started
    command = [sys.executable, "-m", "benchmarks.media.long_film", "--film", str(film)]
    command += ["--index", str(folder / f"index-{minutes}")]
    found = subprocess.run([*command, *arguments], capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(found.stderr)
    facts = {"minutes": minutes, "size_bytes": film.stat().st_size, "drawing_seconds": drawn_seconds}
    return {**facts, **json.loads(found.stdout)}


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=int, nargs="+", default=[2, 120])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--frame-rate", type=int, default=24)
    parser.add_argument("--segment-seconds", type=float, default=60.0)
    parser.add_argument("--keep", type=Path, help="an empty folder for the films and their indexes")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--film", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.film is not None:
        print(json.dumps(index_film(options.film, options.index, options.model, options.segment_seconds)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        arguments = ("--model", options.model, "--segment-seconds", str(options.segment_seconds))
        rows = [measure(minutes, folder, options.frame_rate, *arguments) for minutes in options.minutes]
    if options.json:
        print(json.dumps(rows))
        return
    print("| film | file | segments | indexing | decoding | encoding | encoder's peak | decoder's peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        times = " | ".join(f"{row[name]:.1f} s" for name in ("seconds", "decode_seconds", "encode_seconds"))
        peaks = " | ".join(f"{row[f'{name}_peak_bytes'] / MIB:.0f} MiB" for name in ("encoder", "decoder"))
        size = f"{row['size_bytes'] / MIB:.1f} MiB"
        print(f"| {row['minutes']} min | {size} | {row['num_segments']} | {times} | {peaks} |")


if __name__ == "__main__":
    main()
