"""Where the milliseconds of `POST /search` go, over real HTTP against a real server process.

`python benchmarks/search_http.py --index DIR` measures that index; without it, one of 16 drawn videos is made
with the demo model.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

NUM_VIDEOS, NUM_WARM_UP, NUM_REQUESTS = 16, 10, 100
QUERIES = (
    "a red car moves right, then a blue boat grows, on the beach",
    "a dog runs in the snow",
    "a white bird rises at night",
    "someone cooks in a kitchen",
)


@contextmanager
def running_server(index: Path) -> Iterator[str]:
    """Start `xclip-search serve` on a free port; yields its address once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xclip_search", "serve", "--index", str(index), "--port", str(port)]
    server = subprocess.Popen([*command, "--no-worker"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if server.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def measure(url: str) -> None:
    """Print the table."""
    stages: dict[str, list[float]] = {
        "encode": [],
        "coarse": [],
        "rerank": [],
        "page and moments": [],
        "HTTP": [],
    }
    whole = []
    with httpx.Client(base_url=url) as client:
        num_videos = client.get("/stats").json()["num_videos"]
        for number in range(NUM_WARM_UP + NUM_REQUESTS):
            started = time.perf_counter()
            answer = client.post("/search", json={"query": QUERIES[number % len(QUERIES)]})
            elapsed = time.perf_counter() - started
            answer.raise_for_status()
            if number < NUM_WARM_UP:
                continue
            timings = answer.json()["timings"]
            named = {name: timings[f"{name}_seconds"] for name in ("encode", "coarse", "rerank")}
            for name, seconds in named.items():
                stages[name].append(seconds)
            stages["page and moments"].append(timings["total_seconds"] - sum(named.values()))
            stages["HTTP"].append(elapsed - timings["total_seconds"])
            whole.append(elapsed)
    print(f"{num_videos} videos, {NUM_REQUESTS} requests one after the other, milliseconds")
    print("| stage | median | 95th percentile |\n| --- | ---: | ---: |")
    for name, values in [*stages.items(), ("whole request", whole)]:
        percentile = statistics.quantiles(values, n=20)[-1]
        print(f"| {name} | {statistics.median(values) * 1e3:.1f} | {percentile * 1e3:.1f} |")


def main() -> None:
    """Measure the given index, or one made for the occasion."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = arguments.index
        if index is None:
            index = Path(folder) / f"{NUM_VIDEOS}-videos-seed-1" / "index"
            demo = [sys.executable, "-m", "xclip_search", "demo", "--directory", folder, "--no-serve"]
            subprocess.run([*demo, "--num-videos", str(NUM_VIDEOS)], check=True, stdout=subprocess.DEVNULL)
        with running_server(index) as url:
            measure(url)


if __name__ == "__main__":
    main()
