"""The towers on a processor: as they are computed, beside PyTorch and what else could compute them.

    python -m benchmarks.towers [--threads 1 2] [--compile] [--environments DIR]
    python -m benchmarks.towers --clips CLIPS --clips-model SPEC     # ranks of real clips with each of them

CLIPS is a folder with captions.json: a list of {"file": path below it, "captions": [text, ...]}.
torch.compile needs a compiler and minutes (--compile); ONNX Runtime is measured where it is installed with
onnxscript, or is installed into DIR. All are timed in turns, and the least cosine with PyTorch's float32
stands beside. Which of them may be used for what is in decision 19.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import PAUSE_SECONDS, Report, Timing, arguments, interleaved
from benchmarks.towers.clips import compare
from benchmarks.towers.contenders import Compute, Wish, compiled_as_ours, contenders
from model import XClip
from model.runtimes.tower import Tower, text_to_convert, vision_to_convert

SPEC = "openclip:ViT-B-32-quickgelu/random?seed=0"
TEXT_SHAPES = ((1, 4), (1, 8), (1, 32), (8, 8), (8, 32), (32, 8), (32, 32))
FRAME_COUNTS = (1, 12, 48, 96)


def main() -> None:
    """Measure, check and print."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default=SPEC, help="spec of the model")
    parser.add_argument("--threads", type=int, nargs="+", help="by default 1 and 2; with --short 2")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--environments", type=Path, help="install ONNX Runtime there")
    parser.add_argument("--clips", type=Path, help="compare the ranks of the clips in this folder")
    parser.add_argument("--clips-model", default="demo", help="with this model")
    choices = parser.parse_args()
    with Report("towers", choices) as report, tempfile.TemporaryDirectory() as directory:
        for num_threads in choices.threads or ((2,) if report.short or choices.clips else (1, 2)):
            torch.set_num_threads(num_threads)
            wish = Wish(num_threads, choices.compile, choices.environments)
            folder = Path(directory) / str(num_threads)
            if choices.clips is not None:
                compare(report, choices.clips, choices.clips_model, wish, folder)
                continue
            model, other = (XClip.load(choices.model, "cpu", name) for name in ("auto", "openvino"))
            measure_texts(report, wish, model, other, folder)
            measure_frames(report, wish, model, other, folder)


def measure_texts(report: Report, wish: Wish, model: XClip, other: XClip, directory: Path) -> None:
    """Token ids to sentences and positions. other: the same model on OpenVINO."""
    tower = text_to_convert(model.clip, model.config, model.tokenizer)
    computed = all_of(report, model._converted["text"], tower, wish, directory / "text")
    computed["OpenVINO"] = other._converted["text"]
    # One text is bound by reading the weights of the blocks, which are kept in 16 bits.
    bytes_read = 2 * sum(weight.numel() for name, weight in tower.module.named_parameters() if is_block(name))
    weights = torch.ones(bytes_read // 4)
    shapes = ((1, 8), (32, 8)) if report.short else TEXT_SHAPES
    cases = {}
    for num_texts, num_tokens in shapes:
        ids = torch.randint(1, model.vocabulary_size, (num_texts, num_tokens))
        ids[:, 0], ids[:, -1] = model.tokenize([""])[0, :2]  # The marks of beginning and end.
        cases[f"{num_texts} x {num_tokens} tokens"] = (ids, weights.sum)
    title = "milliseconds. floor: reading the weights of the blocks once, 16 bits each"
    ratios = measure(report, f"Texts, {in_words(wish)}, {title}", computed, cases)
    what = f"PyTorch / ours, one text of 8 tokens, {in_words(wish)}"
    report.target(what, ratios["1 x 8 tokens"]["ours"], at_least=2.0)


def measure_frames(report: Report, wish: Wish, model: XClip, other: XClip, directory: Path) -> None:
    """Normalised pixels to frames. other: the same model on OpenVINO."""
    tower = vision_to_convert(model.clip, model.config)
    computed = all_of(report, model._converted["vision"], tower, wish, directory / "vision")
    computed["OpenVINO"] = other._converted["vision"]
    cases = {}
    for num_frames in (1, 12) if report.short else FRAME_COUNTS:
        pixels = torch.randn(num_frames, *tower.shape[1:])
        cases[f"{num_frames} frames"] = (
            pixels,
            one_product(tower, pixels, directory / f"product-{num_frames}"),
        )
    title = "milliseconds. floor: one product in float32 of as many multiply-adds"
    ratios = measure(report, f"Frames, {in_words(wish)}, {title}", computed, cases)
    for case, by_name in ratios.items():
        report.target(f"PyTorch / ours, {case}, {in_words(wish)}", by_name["ours"], at_least=1.8)


def in_words(wish: Wish) -> str:
    """How many threads."""
    return "1 thread" if wish.num_threads == 1 else f"{wish.num_threads} threads"


def all_of(report: Report, ours: Compute, tower: Tower, wish: Wish, directory: Path) -> dict[str, Compute]:
    """Ours and the others by name; of those that cannot compute the report says why."""
    found = {"ours": ours}
    for name, compute in contenders(tower, wish, directory):
        if isinstance(compute, str):
            report.note(f"left out: {name}, {tower.name}: {compute}")
        else:
            found[name] = compute
    return found


def measure(
    report: Report,
    title: str,
    computed: Mapping[str, Compute],
    cases: Mapping[str, tuple[Tensor, Callable[[], object]]],
) -> dict[str, dict[str, float]]:
    """A row for each case and contender; how many times faster than PyTorch each is, by case and name.

    Args:
        computed: By name; "ours" and "PyTorch" are there.
        cases: By name, input and what the floor computes.
    """
    columns = {"ms": ".2f", "this / floor": ".2f", "PyTorch / this": ".2f", "least cosine": ".6f"}
    table = report.table(title, {"case": "", "this": "", **columns})
    faster: dict[str, dict[str, float]] = {}
    least = 1.0
    for case, (inputs, floor) in cases.items():
        functions: dict[str, Callable[[], object]] = {"floor": floor}
        functions |= {name: partial(compute, inputs) for name, compute in computed.items()}
        with torch.inference_mode():
            expected = computed["PyTorch"](inputs)
            cosines = {name: least_cosine(of(inputs), expected) for name, of in computed.items()}
            rounds = 5 if report.short else 15
            timings: dict[str, Timing] = interleaved(
                functions, rounds=rounds, within_seconds=20.0, pause_seconds=PAUSE_SECONDS
            )
        for name, timing in timings.items():
            to_floor = None if name == "floor" else timing.ratio_to(timings["floor"])
            to_pytorch = None if name == "floor" else timings["PyTorch"].ratio_to(timing)
            table.add(case, name, timing.spread("ms"), to_floor, to_pytorch, cosines.get(name))
        faster[case] = {name: timings["PyTorch"].ratio_to(timings[name]) for name in computed}
        least = min(least, cosines["ours"])
    report.check("ours has a cosine of at least 0.9999", least >= 0.9999, f"{least:.7f}")
    return faster


def least_cosine(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Of all vectors."""
    pairs = zip(found, expected, strict=True)
    return min(float(torch.cosine_similarity(a.double(), b.double(), dim=-1).min()) for a, b in pairs)


def is_block(name: str) -> bool:
    """Whether a weight is read for each text, unlike an embedding table."""
    return not name.startswith("tower.visual.") and "embedding" not in name


# What the towers take at least


def one_product(tower: Tower, inputs: Tensor, directory: Path) -> Callable[[], object]:
    """A matrix product of as many multiply-adds as the tower needs, compiled by OpenVINO."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tower.module(inputs)
    width, num_rows = 768, 50 * len(inputs)  # ViT-B/32's
    multiply_adds = counter.get_total_flops() // 2
    product = nn.Sequential(nn.Linear(width, multiply_adds // (num_rows * width), bias=False))
    compiled = compiled_as_ours(product, torch.randn(num_rows, width), (-1, width), directory)
    rows = torch.randn(num_rows, width)
    return lambda: compiled(rows)


if __name__ == "__main__":
    main()
