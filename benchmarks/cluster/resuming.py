"""The second run over a library of which nothing changed: local files, and files in S3, in both stores.

    python -m benchmarks.cluster.resuming

Files hold a few bytes each and are known already, as after a finished run: what is timed is listing,
comparing and saying `unchanged`. S3 is moto's server on this machine, which answers a listing more slowly
than S3 itself.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cluster.places import DIMENSION, FACTS, NUM_FRAMES, database
from benchmarks.report import Report, arguments
from benchmarks.synthetic_index import draw_segments, drawn_video
from indexer.ingest.library import find_files
from indexer.ingest.synchronisation import Synchronisation
from indexer.store.records import KnownFile
from indexer.store.store import Store, create_store


def content(number: int) -> bytes:
    """Bytes whose first are those of an MP4."""
    return b"\x00\x00\x00\x18ftypisom" + f"{number:0100d}".encode()


def write_local(folder: Path, num_files: int) -> None:
    """The files in folders of 1000."""
    for number in range(num_files):
        path = folder / f"{number // 1000:04}/{number:07}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(number))


@contextmanager
def bucket(num_files: int) -> Iterator[str]:
    """The address of a bucket that holds them."""
    import logging

    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # Else a line for each request.
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client("s3")
    client.create_bucket(Bucket="films")
    for number in range(num_files):
        client.put_object(Bucket="films", Key=f"{number // 1000:04}/{number:07}.mp4", Body=content(number))
    try:
        yield "s3://films"
    finally:
        server.stop()


def remember(store: Store[Any], source: str) -> int:
    """Let all files below `source` be videos of the store, as after a finished run; how many there are."""
    files = find_files([source]).files
    drawn = draw_segments(len(files), NUM_FRAMES, DIMENSION)
    segments = (segment for _, block in drawn for segment in block)
    for first in range(0, len(files), 500):
        known = []
        with store.transaction() as transaction:
            for file, segment in zip(files[first : first + 500], segments, strict=False):
                number = int(Path(file.path).stem)
                sha256 = hashlib.sha256(content(number)).hexdigest()
                video = replace(
                    drawn_video(number, segment),
                    content_sha256=sha256,
                    size_bytes=file.size_bytes,
                    uri=file.uri,
                )
                store.add_video(video, transaction)
                known.append(KnownFile(file.uri, file.size_bytes, file.modified_ns, sha256))
            store.files.remember(known, transaction)
    return len(files)


def no_pipeline() -> Any:
    """Nothing is new."""
    raise AssertionError("a known file was to be encoded")


def main() -> None:
    """Time the second run of each."""
    choices = arguments(__doc__).parse_args()
    num_files = 1_000 if choices.short else 10_000
    with (
        tempfile.TemporaryDirectory() as temporary,
        database() as server,
        Report("cluster.resuming", choices) as report,
        bucket(num_files) as address,
    ):
        write_local(Path(temporary) / "films", num_files)
        table = report.table(
            "A run in which nothing changed", {"source": "", "store": "", "files": ",", "s": ".2f"}
        )
        for source in (f"{temporary}/films", address):
            for kind in ("SQLite", "PostgreSQL"):
                where = server.address() if kind == "PostgreSQL" else f"{temporary}/{len(table.rows)}"
                with create_store(where, FACTS) as store:
                    remember(store, source)
                    started = time.perf_counter()
                    done = Synchronisation(store, no_pipeline).run([source])
                    seconds = time.perf_counter() - started
                name = "S3 (moto)" if source == address else "local"
                table.add(name, kind, num_files, seconds)
                report.check(f"{name}, {kind}: all are unchanged", done.num_unchanged == num_files)
                report.target(
                    f"{name}, {kind}: seconds of 10,000", seconds * 10_000 / num_files, at_most=30.0
                )


if __name__ == "__main__":
    main()
