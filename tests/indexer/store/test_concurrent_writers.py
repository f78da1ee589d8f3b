"""Several processes write to one index while it is searched: every video once, searchable, and no errors.

The tests with the real command and the real server import torch in several processes and are slow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.coarse.index import CoarseIndex
from indexer.maintenance.verification import verify
from indexer.store.sqlite.catalog import Catalog
from tests.support.catalog_builders import add_video, create_catalog, make_segment, sha256_of
from tests.support.servers.server_process import START_SECONDS, ServerProcess
from tests.support.video_files import write_coloured_video

REPOSITORY = Path(__file__).resolve().parents[3]
FOUND_WITHIN_SECONDS = 2.0

ADD_EVERYTHING = """
import sys
import numpy as np
from tests.support.catalog_builders import add_video, make_segment
from indexer.store.sqlite.catalog import Catalog
random = np.random.default_rng(int(sys.argv[2]))
with Catalog.open(sys.argv[1]) as catalog:
    for number in random.permutation(40).tolist():
        outcome = add_video(catalog, number, [make_segment(random)], id=f"{sys.argv[2]}-{number}")
        sys.stdout.write(f"{number} {outcome.video_id} {outcome.created}\\n")
"""


def test_two_writing_processes_add_every_video_once_while_a_third_searches(tmp_path: Path) -> None:
    with create_catalog(tmp_path) as catalog:
        index = CoarseIndex.build(catalog)
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", ADD_EVERYTHING, str(tmp_path), name],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in "12"
        ]
        sizes = [0]
        query = np.ones((1, catalog.embedding_dim), np.float32)
        while any(writer.poll() is None for writer in writers):
            index.follow()
            before = index.num_segments
            _, ids = index.search(query, 100)
            sizes.append(len(set(ids[0].tolist()) - {-1}))
            assert sizes[-1] >= before >= sizes[-2], "nothing that was found is lost again"
        lines = [line.split() for writer in writers for line in writer.communicate()[0].splitlines()]
        assert [writer.returncode for writer in writers] == [0, 0]
        index.follow()
        assert index.num_segments == catalog.num_videos == catalog.sequence == 40
        assert len(lines) == 80 and sum(created == "True" for _, _, created in lines) == 40
        for number, video_id, _ in lines:
            record = catalog.find_by_sha256(sha256_of(int(number)))
            assert record is not None and record.id == video_id, "both got the same id"
    assert verify(tmp_path).is_clean


def test_a_writer_that_is_killed_blocks_no_other(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from indexer.store.sqlite.catalog import Catalog\n"
        "with Catalog.open(sys.argv[1]).connections.transaction() as connection:\n"
        "    connection.execute('UPDATE totals SET num_videos = 99')\n"
        "    sys.stdout.write('inside\\n')\n"
        "    sys.stdout.flush()\n"
        "    time.sleep(600)\n"
    )
    with create_catalog(tmp_path) as catalog:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "inside\n"
        assert catalog.num_videos == 0, "readers are not blocked"
        process.kill()
        process.communicate()
        started = time.monotonic()
        add_video(catalog, 1, [make_segment(np.random.default_rng(0))])
        assert time.monotonic() - started < 5 and catalog.num_videos == 1


# The command and the server as a user starts them


@pytest.fixture(scope="module")
def drawn_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clips")
    for number in range(12):
        colour = (number * 20, 255 - number * 20, 90)
        write_coloured_video(directory / f"clip-{number}.mp4", colour, seconds=2 + number % 3)
    return directory


def start(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "xclip_search", *map(str, arguments)]
    with log.open("wb") as output:
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )


def start_indexing(clips: Path, index: Path, model: Path, name: str) -> subprocess.Popen[bytes]:
    report, log = index.parent / f"{name}.json", index.parent / f"{name}.log"
    options = ("--index", index, "--model", model, "--device", "cpu", "--workers", 1, "--batch-size", 2)
    return start("index", clips, *options, "--report", report, log=log)


class Searches:
    """A client that searches on and on, and notes when each video was found for the first time."""

    def __init__(self, server: ServerProcess) -> None:
        self.directory = server.index
        self.client = server.client
        self.first_seen: dict[str, float] = {}
        self.num_searches = 0

    def once(self, mode: str = "rerank") -> None:
        response = self.client.post("/search", json={"query": "a bar", "limit": 100, "mode": mode})
        assert response.status_code == 200, response.text
        now = time.time()
        ids = [result["id"] for result in response.json()["results"]]
        assert len(ids) == len(set(ids)) and set(self.first_seen) <= set(ids), "what was found is found again"
        self.num_searches += 1
        for video_id in ids:
            self.first_seen.setdefault(video_id, now)

    def delays_seconds(self) -> list[float]:
        """Between the moment that each video was added and the one at which a search found it."""
        videos: list[dict[str, Any]] = self.client.get("/videos?limit=200").json()["videos"]
        assert {video["id"] for video in videos} == set(self.first_seen)
        with Catalog.open(self.directory) as catalog:
            added = {record.id: record.added_at for record in catalog.list_videos(1000)}
        return [self.first_seen[video_id] - added[video_id] for video_id in added]


@pytest.fixture
def searches(tmp_path: Path, model_directory: Path) -> Iterator[Searches]:
    """A server on an empty index, without a worker, and its client."""
    log = tmp_path / "server.log"
    server = ServerProcess(
        tmp_path / "index", "--model", model_directory, "--device", "cpu", "--no-worker", log=log
    )
    try:
        yield Searches(server)
    finally:
        server.stop()
    assert "Traceback" not in log.read_text() and "ERROR" not in log.read_text(), log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_runs", [1, 2])
def test_what_index_runs_add_is_found_by_a_server_within_two_seconds(
    searches: Searches, drawn_clips: Path, model_directory: Path, tmp_path: Path, num_runs: int
) -> None:
    index, num_clips = searches.directory, len(list(drawn_clips.iterdir()))
    names = [f"run-{number}" for number in range(num_runs)]
    runs = [start_indexing(drawn_clips, index, model_directory, name) for name in names]
    modes = ["rerank", "coarse", "exhaustive"]
    deadline = time.monotonic() + START_SECONDS
    while any(run.poll() is None for run in runs):
        searches.once(modes[searches.num_searches % 3])
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for name, run in zip(names, runs, strict=True):
        assert run.returncode == 0, (tmp_path / f"{name}.log").read_text()
    for mode in modes:
        searches.once(mode)
    assert len(searches.first_seen) == num_clips
    assert max(searches.delays_seconds()) < FOUND_WITHIN_SECONDS
    reports = [json.loads((tmp_path / f"{name}.json").read_text()) for name in names]
    assert sum(report["num_added"] for report in reports) == num_clips, "every video once"
    for report in reports:
        assert report["num_added"] + report["num_unchanged"] == num_clips and report["num_failed"] == 0
    assert searches.client.get("/stats").json()["num_videos"] == num_clips
    assert verify(index).is_clean
