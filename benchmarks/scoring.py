"""Scoring pairs at 12 frames x 512 beside the word-by-frame product alone, without which nothing is scored.

    python -m benchmarks.scoring [--short] [--json FILE] [--sizes SHORTLIST,EXHAUSTIVE]

Features are drawn. Floor: the product of the words with the frames, float32, in one call. Plain: the scores
by their definition without blocks, `ScoreHead.unblocked`, on as many videos as one call is fit for.
Shortlists and exhaustive scoring take frames as indexes keep them, float16, and pay for widening them; the
matrix takes float32, as evaluation does. Ours is the Numba kernel where it can be had; operators: PyTorch's,
in blocks, which score without it.

With a GPU also the Triton kernel there: how many bytes of features a second it reads, as a share of what the
card reads and writes copying as many; beside it PyTorch's operators in blocks. A shortlist is gathered from
all videos, by the kernel and before it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from benchmarks.report import PAUSE_SECONDS, Report, Table, arguments, interleaved
from model import TextFeatures, VideoFeatures, XClipConfig
from model.score_names import SCORE_NAMES
from model.scoring import COMPILED, FUSED, MAX_BLOCK_ELEMENTS, ScoreHead

NUM_WORDS, NUM_FRAMES, DIMENSION = 32, 12, 512
ZERO_SHOT = ("video_sentence", "sentence_frame")
PLAIN_VIDEOS = 1024
"""Videos of one plain call, as many as a search handed it before; more would need memory without bound."""
TOLERANCE = 1e-4
GPU_TOLERANCE = 2e-3
"""Of scores up to 100, where tensor cores round each product's sum in an order of their own."""


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random directions."""
    drawn = torch.randn(*shape, DIMENSION, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def head_of(names: tuple[str, ...]) -> ScoreHead:
    """Scores `names`, with matrices near the identity, as trained ones are."""
    torch.manual_seed(0)
    clip = {**XClipConfig.tiny().clip, "embed_dim": DIMENSION}
    config = XClipConfig.tiny(
        clip=clip, num_words=NUM_WORDS, num_frames=NUM_FRAMES, mask_padding=True, score_names=names
    )
    head = ScoreHead(config).eval()
    for matrix in head.parameters():
        matrix.add_(0.01 * torch.randn_like(matrix))
    return head


def draw_texts(num_texts: int, num_words: int) -> TextFeatures:
    """Texts whose first `num_words` positions are real."""
    mask = (torch.arange(NUM_WORDS) < num_words).expand(num_texts, NUM_WORDS)
    return TextFeatures(unit(num_texts, seed=1), unit(num_texts, NUM_WORDS, seed=2), mask)


def draw_videos(count: int, dtype: torch.dtype) -> VideoFeatures:
    """Videos with all frames real; beyond 1,000 they repeat, in memory of their own."""
    frames = unit(min(count, 1000), NUM_FRAMES, seed=3).to(dtype)
    repeats = -(-count // len(frames))
    frames = frames.repeat(repeats, 1, 1)[:count]
    return VideoFeatures(unit(count, seed=4), frames, torch.ones(count, NUM_FRAMES).bool())


def measure(
    report: Report, table: Table, case: str, text: TextFeatures, video: VideoFeatures, names: tuple[str, ...]
) -> float:
    """Add a row; returns ours in seconds."""
    head, scale = head_of(names), torch.tensor(100.0)
    words = text.words[text.word_mask]
    part = video[:PLAIN_VIDEOS] if len(text) == 1 else video[: max(1, PLAIN_VIDEOS // len(text))]
    wide = video.frames[: len(part) if video.frames.dtype == torch.float16 else None].float().flatten(0, 1)
    num_floor = len(wide) // NUM_FRAMES
    product = torch.empty(len(wide), len(words))
    timings = interleaved(
        {
            "product": lambda: torch.mm(wide, words.T, out=product),
            "ours": lambda: head.in_blocks(text, video, scale, wanted=names),
            "operators": lambda: head.in_blocks(text, video, scale, MAX_BLOCK_ELEMENTS["cpu"], names),
            "plain": lambda: head.unblocked(text, part, scale, names),
        },
        rounds=5 if report.short else 15,
        within_seconds=20,
        # Behind each operator PyTorch's threads spin for milliseconds, on the core that ours would wake on.
        pause_seconds=PAUSE_SECONDS,
    )
    expected = head.unblocked(text, part, scale, names).total
    apart = float((head.in_blocks(text, part, scale, wanted=names).total - expected).abs().max())
    report.check(f"{case}: equal to the plain function", apart < TOLERANCE, f"{apart:.1e} apart")
    per = {
        name: len(text) * count
        for name, count in (
            ("product", num_floor),
            ("ours", len(video)),
            ("operators", len(video)),
            ("plain", len(part)),
        )
    }
    floor, ours, operators, plain = (1e6 * timings[name].median / per[name] for name in per)
    table.add(case, floor, ours, operators, plain, ours / floor, operators / ours, plain / ours)
    if names == SCORE_NAMES:
        report.target(f"{case}: ours / product", ours / floor, at_most=1.5)
    return timings["ours"].median


def draw_on(device: torch.device, at_most: int) -> VideoFeatures:
    """As many videos as a third of the device's free memory holds; each is that of 1,000 before again."""
    some = draw_videos(1000, torch.float16).to(device)
    num_bytes = sum(tensor[0].nbytes for tensor in some.tensors())
    free, _ = torch.cuda.mem_get_info(device)
    count = min(at_most, free // 3 // num_bytes // 1000 * 1000)
    return VideoFeatures(
        *(tensor.repeat(count // 1000, *[1] * (tensor.ndim - 1)) for tensor in some.tensors())
    )


def measure_gpu(report: Report, device: torch.device, num_videos: int) -> None:
    """Exhaustive scoring of one query and of batches, which share a read, and a shortlist."""
    video, scale = draw_on(device, num_videos), torch.tensor(100.0, device=device)
    target = torch.empty_like(video.frames)

    def waited(function: Callable[[], object]) -> Callable[[], object]:
        return lambda: (function(), torch.cuda.synchronize(device))

    columns = {"case": "", "ms": ".3f", "us a pair": ".5f", "GB/s read": ",.0f", "share of copy rate": ".2f"}
    table = report.table(
        f"{torch.cuda.get_device_name(device)}: all of {len(video):,} videos, medians",
        columns | {"PyTorch / ours": ".2f"},
    )
    for num_texts, num_words in ((1, 8), (1, NUM_WORDS), (8, 8), (32, 8), (32, NUM_WORDS)):
        for names in (ZERO_SHOT, SCORE_NAMES):
            head, text = head_of(names).to(device), draw_texts(num_texts, num_words).to(device)
            case = f"{num_texts} texts, {num_words} words, {len(names)} scores"
            part = video[-1024:]
            expected = head.unblocked(text, part, scale, names).total
            found = head.in_blocks(text, video, scale, wanted=names).total[:, -1024:]
            apart = float((found - expected).abs().max())
            is_right = apart < GPU_TOLERANCE and FUSED.is_for(head.config, text, video)
            report.check(f"{case}: the kernel gives the plain scores", is_right, f"{apart:.1e} apart")
            run = functools.partial(head.in_blocks, text, video, scale, wanted=names)
            timings = interleaved(
                {
                    "copy": waited(lambda: target.copy_(video.frames)),
                    "ours": waited(run),
                    "PyTorch": waited(functools.partial(run, max_elements=MAX_BLOCK_ELEMENTS["cuda"])),
                },
                rounds=5 if report.short else 15,
                within_seconds=10,
            )
            ours = timings["ours"].median
            read = sum(tensor.nbytes for tensor in video.tensors())
            copied = 2 * target.nbytes / timings["copy"].median
            pairs = num_texts * len(video)
            ratio = timings["PyTorch"].ratio_to(timings["ours"])
            table.add(case, 1e3 * ours, 1e6 * ours / pairs, read / ours / 1e9, read / ours / copied, ratio)
    _measure_gathered(report, video, scale)


def _measure_gathered(report: Report, video: VideoFeatures, scale: torch.Tensor) -> None:
    head, text = head_of(SCORE_NAMES).to(scale.device), draw_texts(1, 8).to(scale.device)
    matrices = dict(head.named_parameters())
    rows = torch.randperm(len(video), device=scale.device)[:200]
    cases = {
        "gathered by the kernel": lambda: FUSED.scores(head.config, matrices, text, video, SCORE_NAMES, rows),
        "gathered before it": lambda: FUSED.scores(head.config, matrices, text, video[rows], SCORE_NAMES),
    }
    one, other = (found["frame_word"] for found in (case() for case in cases.values()))
    report.check("rows are gathered rightly", torch.equal(one, other))
    timings = interleaved(
        {name: lambda case=case: (case(), torch.cuda.synchronize()) for name, case in cases.items()}
    )
    table = report.table("200 of them, 8 words, 4 scores", {"case": "", "ms": ".3f"})
    for name, timing in timings.items():
        table.add(name, 1e3 * timing.median)


@torch.inference_mode()
def main() -> None:
    """Print the tables."""
    parser = arguments(__doc__)
    parser.add_argument("--sizes", help="videos of a shortlist and of exhaustive scoring")
    choices = parser.parse_args()
    has_kernel = COMPILED.prepare()
    with Report("scoring", choices) as report:
        report.note("The Numba kernel scores." if has_kernel else "Without the Numba kernel.")
        default = "200,5000" if report.short else "200,100000"
        shortlist, everything = map(int, (choices.sizes or default).split(","))
        columns = {
            "case": "",
            "product, us a pair": ".2f",
            "ours, us a pair": ".2f",
            "operators, us a pair": ".2f",
            "plain, us a pair": ".2f",
        }
        columns |= {"ours / product": ".2f", "operators / ours": ".2f", "plain / ours": ".2f"}
        table = report.table(f"{torch.get_num_threads()} threads, medians", columns)
        seconds = {}
        for count in (shortlist, everything):
            video = draw_videos(count, torch.float16)
            for num_words in (8, NUM_WORDS):
                for names in (ZERO_SHOT, SCORE_NAMES):
                    case = f"{count:,} videos, {num_words} words, {len(names)} scores"
                    seconds[count, num_words, len(names)] = measure(
                        report, table, case, draw_texts(1, num_words), video, names
                    )
        size = 256 if report.short else 1000
        measure(
            report,
            table,
            f"matrix of {size} x {size}, 32 words, 4 scores",
            draw_texts(size, NUM_WORDS),
            draw_videos(size, torch.float32),
            SCORE_NAMES,
        )
        per_100_000 = 100_000 / everything
        report.target(
            "s for 100,000 videos, zero-shot, 8 words", seconds[everything, 8, 2] * per_100_000, at_most=0.3
        )
        report.target(
            "s for 100,000 videos, four scores, 32 words",
            seconds[everything, 32, 4] * per_100_000,
            at_most=1.0,
        )
        if torch.cuda.is_available():
            measure_gpu(report, torch.device("cuda", 0), 50_000 if report.short else 1_000_000)
        else:
            report.note("No GPU: the Triton kernel was not timed.")


if __name__ == "__main__":
    main()
