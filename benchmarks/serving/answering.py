"""What a search over HTTP takes beside its text tower, with one client, with many, and while indexing.

    python -m benchmarks.serving.answering --index INDEX [--clips FOLDER] [--servers 2] [--runtime openvino]

A real server, on an index of the ViT-B/32 shape: the one given, or a drawn one of 10,000 videos. In each
round the text tower encodes one text, with PyTorch, with OpenVINO and as the server's own model does, and
then the server answers a text that it has not seen, and one that it has. Then 1 and 16 clients take turns,
with that server and with several that share the index (`--servers`), among which the clients are divided as a
proxy would do it. The answers are compared with those of a searcher that encodes each text alone and keeps
none.

`--clips` names a folder of videos. A copy of the index is then served with a worker, and searched while it
waits, while it indexes copies of the videos, and while it waits again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.machine import num_cores
from benchmarks.report import Report, Timing, arguments
from benchmarks.serving.http_load import (
    Connection,
    Outcome,
    ask_in_turn,
    percentiles,
    processor_seconds,
    search_request,
    serving,
)
from benchmarks.synthetic_index import make_index
from indexer.search.searcher import Searcher, SearchQuery
from indexer.search.text_encoding import TextEncoder
from model import XClip
from model.runtimes import RUNTIMES

MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"
WORDS = """
    dog cat car runs jumps beach snow red blue person man woman kitchen cooks plays ball river tree night
    sings dances guitar road bike plane walks train horse rides talks crowd street rain window boat child
"""
NUM_WORDS = 6
"""With its marks a text of eight tokens."""

MANY = 16
SCORE_TOLERANCE = 5e-3
"""Of scores up to 100; features differ by less than 1e-5. Results closer than this may change places."""

PAUSE_SECONDS = 0.02
"""After a tower: threads of OpenMP go on spinning for a moment, on the processors that the server needs."""


def new_texts(seed: int) -> Iterator[str]:
    """Texts, none twice but by chance: some billions are possible."""
    draw = random.Random(seed)
    while True:
        yield " ".join(draw.sample(WORDS.split(), NUM_WORDS))


def take(texts: Iterator[str], count: int) -> list[str]:
    """The next texts."""
    return list(itertools.islice(texts, count))


# One client beside the tower


def beside_the_tower(report: Report, port: int, runtime: str, texts: Iterator[str], num_rounds: int) -> None:
    """Print whole requests beside the tower alone, all in each round. runtime: the server's."""
    towers = {
        "PyTorch": XClip.load(MODEL, "cpu", runtime="torch"),
        "OpenVINO": XClip.load(MODEL, "cpu", runtime="openvino"),
        "server's": XClip.load(MODEL, "cpu", runtime=runtime),
    }
    seconds: dict[str, list[float]] = {}
    stages: list[dict[str, float]] = []

    def note(name: str, started: float) -> None:
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    async def measure() -> None:
        connection = await Connection.open(port)
        known = search_request(next(texts))
        for _ in range(num_rounds):
            for name, model in towers.items():
                ids = model.tokenize([next(texts)])
                started = time.perf_counter()
                with torch.inference_mode():
                    model.encode_tokens(ids)
                note(name, started)
                await asyncio.sleep(PAUSE_SECONDS)
            for name, request in (("new text", search_request(next(texts))), ("known text", known)):
                started = time.perf_counter()
                outcome = await connection.ask(request)
                note(name, started)
                if name == "new text":
                    stages.append(json.loads(outcome.body)["timings"])
        connection.close()

    asyncio.run(measure())
    timings = {name: Timing(tuple(values[1:])) for name, values in seconds.items()}
    rows = report.comparison(
        "One client, and the text tower alone", "server's", "new text", ["PyTorch", "OpenVINO", "known text"]
    )
    rows.add("POST /search", timings)
    table = report.table("A new text by stage, medians", dict.fromkeys((*_STAGES, "page", "HTTP"), ".2f"))
    medians = {name: 1e3 * statistics.median(part[f"{name}_seconds"] for part in stages) for name in _STAGES}
    total = 1e3 * statistics.median(part["total_seconds"] for part in stages)
    http = 1e3 * timings["new text"].median - total
    table.add(*medians.values(), total - sum(medians.values()), http)
    ratio = timings["new text"].ratio_to
    report.target("search / PyTorch's text tower", ratio(timings["PyTorch"]), at_most=0.75)
    report.target("search / OpenVINO's text tower", ratio(timings["OpenVINO"]), at_most=1.8)


_STAGES = ("encode", "coarse", "rerank")


# Many clients


def many_clients(
    report: Report, ports: Sequence[int], texts: Iterator[str], num_rounds: int
) -> list[Outcome]:
    """Print throughput, latency and processor time of 1 and of MANY clients, by turns; the outcomes for new
    texts.

    ports: of the servers, among which the clients are divided; one client has the first.
    """
    servers = "a server" if len(ports) == 1 else f"{len(ports)} servers"
    columns = {"texts": "", "clients": ""}
    numbers = ("searches/s", "p50 ms", "p95 ms", *(f"{name} ms" for name in _STAGES), "processor ms")
    columns |= dict.fromkeys(numbers, ".1f")
    table = report.table(f"Many clients of {servers}", columns)
    everything: list[Outcome] = []
    for kind in ("new", "known"):
        rates: dict[int, list[float]] = {1: [], MANY: []}
        outcomes: dict[int, list[Outcome]] = {1: [], MANY: []}
        used = {1: 0.0, MANY: 0.0}
        known = take(texts, 4)
        for _ in range(num_rounds):
            for clients, count in ((1, 24), (MANY, 6 * MANY)):
                asked = take(texts, count) if kind == "new" else (known * count)[:count]
                before = sum(map(processor_seconds, ports))
                done, seconds = asyncio.run(
                    ask_in_turn(ports, clients, [search_request(one) for one in asked])
                )
                used[clients] += sum(map(processor_seconds, ports)) - before
                rates[clients].append(count / seconds)
                outcomes[clients] += done
        for clients, done in outcomes.items():
            answers = [json.loads(one.body)["timings"] for one in done if one.status == 200]
            medians = (
                1e3 * statistics.median(part[f"{name}_seconds"] for part in answers) for name in _STAGES
            )
            each = 1e3 * used[clients] / len(done)
            rate = statistics.median(rates[clients])
            table.add(kind, str(clients), rate, *percentiles(done)[:2], *medians, each)
            report.check(
                f"every search of {clients} clients of {servers} is answered", len(answers) == len(done)
            )
        gain = statistics.median(many / one for one, many in zip(rates[1], rates[MANY], strict=True))
        if kind == "new":
            most = num_cores() * len(outcomes[MANY]) / used[MANY]
            times = most / statistics.median(rates[1])
            report.note(
                f"{MANY} clients of {servers}: at this processor time a search the machine can answer "
                f"{most:.0f} new texts a second, {times:.2f} times those of one client"
            )
            report.target(f"throughput of {MANY} clients of {servers} / of one", gain, at_least=2.5)
            everything = outcomes[1] + outcomes[MANY]
        else:
            report.note(f"known texts: {MANY} clients of {servers} get {gain:.2f} times the searches of one")
    return everything


def check_answers(report: Report, index: Path, runtime: str, outcomes: Sequence[Outcome]) -> None:
    """Compare answers with those to each text alone."""
    model = XClip.load(MODEL, "cpu", runtime=runtime)
    with Searcher(index, model) as searcher:
        searcher.text_encoder = TextEncoder(model, num_recent=0)
        farthest, num_equal = 0.0, 0
        for outcome in outcomes:
            answer = json.loads(outcome.body)
            alone = searcher.search(SearchQuery(answer["query"])).results
            pairs = list(zip(answer["results"], alone, strict=True))
            farthest = max(farthest, *(abs(found["score"] - right.score) for found, right in pairs))
            places = {right.id: right.score for right in alone}
            num_equal += all(
                found["id"] == right.id
                or abs(places.get(found["id"], alone[-1].score) - right.score) <= SCORE_TOLERANCE
                for found, right in pairs
            )
    report.check(
        "answers to texts that were encoded together are those to each text alone",
        num_equal == len(outcomes) and farthest <= SCORE_TOLERANCE,
        f"{num_equal} of {len(outcomes)}, scores at most {farthest:.1e} apart",
    )


# While a worker indexes


def while_indexing(
    report: Report, index: Path, clips: Path, runtime: str, texts: Iterator[str], seconds: float
) -> None:
    """Print how long searches take while the server's worker waits, and while it indexes."""
    found = sorted(path for path in clips.iterdir() if path.suffix == ".mp4")
    if not found:
        raise SystemExit(f"there is no .mp4 in {clips}")
    columns = {"the worker": "", **dict.fromkeys(("searches/s", "p50 ms", "p95 ms"), ".1f"), "videos": ",d"}
    table = report.table("One client while a worker indexes", columns)
    with (
        tempfile.TemporaryDirectory(dir=index.parent) as folder,
        contextlib.ExitStack() as stack,
    ):
        copy = Path(shutil.copytree(index, Path(folder) / "index"))
        _, port = stack.enter_context(serving(copy, "--runtime", runtime, with_worker=True))
        http = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60))
        slowest: dict[str, list[float]] = {}
        _search_for(port, texts, 2.0)
        for state in ("waits", "indexes", "waits"):
            if state == "indexes":
                for number in range(int(seconds * 4)):
                    _upload(http, found[number % len(found)])
                _wait_for_first(http)
            before = http.get("/stats").json()["num_videos"]
            outcomes, rate = _search_for(port, texts, seconds)
            p50, p95, _ = percentiles(outcomes)
            table.add(state, rate, p50, p95, http.get("/stats").json()["num_videos"] - before)
            slowest.setdefault(state, []).append(p95)
            if state == "indexes":
                for job in http.get("/jobs", params={"state": "queued", "limit": 100}).json()["jobs"]:
                    http.delete(f"/jobs/{job['id']}")
                _wait_until_idle(http)
    ratio = statistics.median(slowest["indexes"]) / statistics.median(slowest["waits"])
    report.target("p95 while a worker indexes / idle", ratio, at_most=2.0)


def _search_for(port: int, texts: Iterator[str], seconds: float) -> tuple[list[Outcome], float]:
    """One client's searches for so long, and how many a second."""

    async def search() -> list[Outcome]:
        connection, outcomes = await Connection.open(port), []
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            outcomes.append(await connection.ask(search_request(next(texts))))
        connection.close()
        return outcomes

    started = time.perf_counter()
    outcomes = asyncio.run(search())
    return outcomes, len(outcomes) / (time.perf_counter() - started)


def _upload(http: httpx.Client, clip: Path) -> None:
    """Add a copy of an MP4 file that is another one by its content: with a box that players skip."""
    content = clip.read_bytes() + (24).to_bytes(4, "big") + b"free" + os.urandom(16)
    http.post("/videos", files={"file": (clip.name, content, "video/mp4")}).raise_for_status()


def _wait_for_first(http: httpx.Client) -> None:
    """Until the worker has done one: its model is loaded, and it decodes and encodes."""
    while not http.get("/jobs", params={"state": "done"}).json()["jobs"]:
        time.sleep(0.1)


def _wait_until_idle(http: httpx.Client) -> None:
    while any(http.get("/jobs", params={"state": state}).json()["jobs"] for state in ("queued", "running")):
        time.sleep(0.2)


def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--index", type=Path, help=f"of {MODEL}; by default one is drawn")
    parser.add_argument("--clips", type=Path, help="MP4 files, to be indexed while it is searched")
    parser.add_argument("--servers", type=int, default=2, help="that share the index, with many clients")
    parser.add_argument("--runtime", choices=RUNTIMES, default="auto", help="of the servers' towers")
    choices: Any = parser.parse_args()
    with Report("serving.answering", choices) as report, tempfile.TemporaryDirectory() as folder:
        index = choices.index
        if index is None:
            index = Path(folder) / "index"
            make_index(index, MODEL, 1_000 if report.short else 10_000)
        with Searcher(index, XClip.load(MODEL, "cpu")) as searcher:
            searcher._refresher.wait()  # So that no server makes its coarse index while it is timed.
        texts = new_texts(os.getpid())
        num_rounds = 1 if report.short else 4
        with contextlib.ExitStack() as stack:
            ports: list[int] = []

            def serve() -> None:
                _, port = stack.enter_context(serving(index, "--runtime", choices.runtime))
                _search_for(port, texts, 2.0)
                ports.append(port)

            serve()
            beside_the_tower(report, ports[0], choices.runtime, texts, 12 if report.short else 60)
            outcomes = many_clients(report, ports, texts, num_rounds)
            while len(ports) < choices.servers:
                serve()
            if len(ports) > 1:
                outcomes += many_clients(report, ports, texts, num_rounds)
        check_answers(report, index, choices.runtime, outcomes[:: 4 if report.short else 8])
        if choices.clips is not None:
            seconds = 3.0 if report.short else 12.0
            while_indexing(report, index, choices.clips, choices.runtime, texts, seconds)


if __name__ == "__main__":
    main()
