"""The towers on a processor: OpenVINO as it is used, beside PyTorch and what else could compute them.

    python -m benchmarks.towers --threads 2
    python -m benchmarks.towers --clips CLIPS --clips-model SPEC     # ranks of real clips with each runtime

CLIPS is a folder with captions.json: a list of {"file": path below it, "captions": [text, ...]}.
torch.compile needs a compiler and minutes (--compile); ONNX Runtime is measured where it is installed with
onnxscript.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import Report, Timing, arguments, interleaved
from indexer.index import Index
from model import VideoFeatures, XClip
from model.runtimes.openvino import MODEL_FILE, CompiledTower, convert
from model.runtimes.tower import Tower, text_to_convert, vision_to_convert

SPEC = "openclip:ViT-B-32-quickgelu/random?seed=0"
TEXT_SHAPES = ((1, 4), (1, 8), (1, 32), (8, 8), (8, 32), (32, 8), (32, 32))
FRAME_COUNTS = (1, 12, 48, 96)

Compute = Callable[[Tensor], tuple[Tensor, ...]]


def main() -> None:
    """Measure, check and print."""
    parser = arguments(__doc__)
    parser.add_argument("--model", default=SPEC, help="spec of the model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--clips", type=Path, help="compare the ranks of the clips in this folder")
    parser.add_argument("--clips-model", default="demo", help="with this model")
    choices = parser.parse_args()
    torch.set_num_threads(choices.threads)
    with Report("towers", choices) as report, tempfile.TemporaryDirectory() as directory:
        if choices.clips is not None:
            compare_ranks(report, choices.clips, choices.clips_model)
            return
        model = XClip.load(choices.model, "cpu", "openvino")
        report.note(f"{choices.threads} threads, {choices.model}")
        measure_texts(report, choices, model, Path(directory))
        measure_frames(report, choices, model, Path(directory))


def measure_texts(report: Report, choices: argparse.Namespace, model: XClip, directory: Path) -> None:
    """Token ids to sentences and positions."""
    tower = text_to_convert(model.clip, model.config, model.tokenizer)
    computed = {"ours": model._converted["text"], **alternatives(tower, choices, directory / "text")}
    # One text is bound by reading the weights of the blocks, which are kept in float16.
    bytes_read = 2 * sum(weight.numel() for name, weight in tower.module.named_parameters() if is_block(name))
    weights = torch.ones(bytes_read // 4)
    shapes = ((1, 8), (32, 8)) if report.short else TEXT_SHAPES
    cases = {}
    for num_texts, num_tokens in shapes:
        ids = torch.randint(1, model.vocabulary_size, (num_texts, num_tokens))
        cases[f"{num_texts} x {num_tokens} tokens"] = (ids, weights.sum)
    title = "Texts, milliseconds. floor: reading the weights of the blocks in float16 once"
    ratios = measure(report, title, computed, cases)
    report.target("PyTorch / ours, one text of 8 tokens", ratios["1 x 8 tokens"], at_least=2.0)


def measure_frames(report: Report, choices: argparse.Namespace, model: XClip, directory: Path) -> None:
    """Normalised pixels to frames."""
    tower = vision_to_convert(model.clip, model.config)
    computed = {"ours": model._converted["vision"], **alternatives(tower, choices, directory / "vision")}
    cases = {}
    for num_frames in (1, 12) if report.short else FRAME_COUNTS:
        pixels = torch.randn(num_frames, *tower.shape[1:])
        cases[f"{num_frames} frames"] = (
            pixels,
            one_product(tower, pixels, directory / f"product-{num_frames}"),
        )
    title = "Frames, milliseconds. floor: one product in float32 of as many multiply-adds"
    ratios = measure(report, title, computed, cases)
    for case, ratio in ratios.items():
        report.target(f"PyTorch / ours, {case}", ratio, at_least=1.8)


def measure(
    report: Report,
    title: str,
    computed: Mapping[str, Compute],
    cases: Mapping[str, tuple[Tensor, Callable[[], object]]],
) -> dict[str, float]:
    """One table; how many times faster ours is than PyTorch, by case.

    Args:
        computed: By name; "ours" and "PyTorch" are there.
        cases: By name, input and what the floor computes.
    """
    times = {f"{name}, ms": ".2f" for name in ("floor", *computed)}
    others = [name for name in computed if name != "ours"]
    ratios = {f"{name} / ours": ".2f" for name in others}
    table = report.table(title, {"case": "", **times, "ours / floor": ".2f", **ratios})
    cosines: dict[str, float] = {}
    faster = {}
    for case, (inputs, floor) in cases.items():
        with torch.inference_mode():
            expected = computed["PyTorch"](inputs)
            for name, compute in computed.items():
                cosines[name] = min(cosines.get(name, 1.0), least_cosine(compute(inputs), expected))
            functions: dict[str, Callable[[], object]] = {"floor": floor}
            functions |= {name: partial(compute, inputs) for name, compute in computed.items()}
            rounds = 5 if report.short else 15
            timings: dict[str, Timing] = interleaved(functions, rounds=rounds, within_seconds=20.0)
        ours = timings["ours"]
        faster[case] = timings["PyTorch"].ratio_to(ours)
        spreads = [timing.spread("ms") for timing in timings.values()]
        others_to_ours = [timings[name].ratio_to(ours) for name in others]
        table.add(case, *spreads, ours.ratio_to(timings["floor"]), *others_to_ours)
    report.check("ours has a cosine of at least 0.9999", cosines["ours"] >= 0.9999, f"{cosines['ours']:.7f}")
    found = ", ".join(f"{name} {cosine:.6f}" for name, cosine in cosines.items())
    report.note(f"least cosine with PyTorch in float32: {found}")
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
    compiled = compiled_as(product, torch.randn(num_rows, width), (-1, width), directory)
    rows = torch.randn(num_rows, width)
    return lambda: compiled(rows)


# What else computes them


def alternatives(tower: Tower, choices: argparse.Namespace, directory: Path) -> dict[str, Compute]:
    """By name: from the tower's input to its outputs, float32."""
    found: dict[str, Compute] = {
        "PyTorch": tower.module,
        "PyTorch bfloat16": in_bfloat16(tower.module),
        "OpenVINO bfloat16": in_openvino(tower, directory / "bfloat16", "bf16"),
        "OpenVINO int8 weights": in_openvino(tower, directory / "int8", "f32", int8=True),
    }
    if choices.compile:
        compiled = torch.compile(tower.module, dynamic=True, options={"freezing": True})
        found["torch.compile"] = compiled
    try:
        found["ONNX Runtime"] = in_onnx_runtime(tower, choices.threads, directory / "tower.onnx")
    except ImportError as error:
        print(f"without ONNX Runtime: {error}")
    return found


def in_bfloat16(module: nn.Module) -> Compute:
    """Weights and activations in bfloat16."""
    half = copy.deepcopy(module).bfloat16()
    for part in half.modules():
        if isinstance(getattr(part, "attn_mask", None), Tensor):
            part.attn_mask = part.attn_mask.bfloat16()

    def compute(inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.float() for x in half(inputs.bfloat16() if inputs.is_floating_point() else inputs))

    return compute


def compiled_as(module: nn.Module, example: Tensor, shape: tuple[int, ...], directory: Path) -> CompiledTower:
    """A module as our towers are compiled."""
    directory.mkdir(parents=True)
    convert(module, example, shape, directory, half=False)
    return CompiledTower(directory, torch.get_num_threads())


def in_openvino(tower: Tower, directory: Path, precision: str, int8: bool = False) -> Compute:
    """Arithmetic in another precision, or weights as 8-bit integers, one scale for each output."""
    directory.mkdir(parents=True)
    convert(tower.module, tower.probes()[0], tower.shape, directory, half=False)
    core = openvino.Core()
    graph = core.read_model(directory / MODEL_FILE)
    if int8:
        quantize_weights(graph)
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    request = core.compile_model(graph, "CPU", options).create_infer_request()

    def compute(inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = request.infer([inputs.numpy()], share_inputs=True)
        return tuple(torch.from_numpy(value) for value in outputs.values())

    return compute


def quantize_weights(graph: openvino.Model) -> None:
    """Put an int8 constant and its scales in the place of every matrix that something is multiplied by."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input_value(1).get_node()
        if source.get_type_name() != "Constant" or len(source.get_output_shape(0)) != 2:
            continue
        weight = source.data
        axis = 1 if node.get_attributes()["transpose_b"] else 0
        scale = np.maximum(np.abs(weight).max(axis=axis, keepdims=True), 1e-12) / 127
        rounded = ops.constant(np.round(weight / scale).astype(np.int8))
        product = ops.multiply(ops.convert(rounded, "f32"), ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(product.output(0))


def in_onnx_runtime(tower: Tower, num_threads: int, path: Path) -> Compute:
    """Exported by PyTorch. Raises ImportError where ONNX Runtime or the exporter's packages are missing."""
    import onnxruntime
    import onnxscript  # noqa: F401, the exporter's

    free = {axis: torch.export.Dim.DYNAMIC for axis, length in enumerate(tower.shape) if length == -1}
    torch.onnx.export(
        tower.module, (tower.probes()[0],), path, dynamic_shapes=(free,), dynamo=True, verbose=False
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda inputs: tuple(map(torch.from_numpy, session.run(None, {name: inputs.numpy()})))


# Ranks of real clips


def compare_ranks(report: Report, clips: Path, spec: str) -> None:
    """Whether every caption ranks every clip alike with both runtimes."""
    listed: list[dict[str, Any]] = json.loads((clips / "captions.json").read_text(encoding="utf-8"))
    listed = [clip for clip in listed if clip.get("captions") and (clips / clip["file"]).is_file()]
    captions = [caption for clip in listed for caption in clip["captions"]]
    totals, features = {}, {}
    for runtime in ("torch", "openvino"):
        model = XClip.load(spec, "cpu", runtime)
        with tempfile.TemporaryDirectory() as directory, Index.create(f"{directory}/index", model) as index:
            videos = VideoFeatures.cat([index.encode(clips / clip["file"])[:1] for clip in listed])
        texts = model.encode_text(captions)
        totals[runtime] = model.score(texts, videos).total
        features[runtime] = (texts.sentence, videos.frames[videos.frame_mask])
        report.check(f"{runtime} computes both towers", set(model.runtimes.values()) == {runtime})
    cosine = least_cosine(features["openvino"], features["torch"])
    orders = [total.argsort(dim=1, descending=True) for total in totals.values()]
    difference = float((totals["openvino"] - totals["torch"]).abs().max())
    report.check("cosine of sentences and frames at least 0.9999", cosine >= 0.9999, f"{cosine:.7f}")
    found = f"{len(captions)} captions, {len(listed)} clips of {spec}, scores at most {difference:.1g} apart"
    report.check("every caption ranks all clips alike", torch.equal(*orders), found)


if __name__ == "__main__":
    main()
