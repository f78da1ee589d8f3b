"""What computes a tower: PyTorch, torch.compile, OpenVINO, ONNX Runtime; float32, bfloat16, int8 weights."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino
import torch
from openvino import opset13 as ops
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.alternatives.environments import Environment, UnavailableError
from model.runtimes.openvino import CORE, MODEL_FILE, CompiledTower, convert
from model.runtimes.tower import Tower

Compute = Callable[[Tensor], tuple[Tensor, ...]]
"""From a tower's input to its outputs, float32."""

ONNX_RUNTIME = Environment("onnxruntime", ("onnxruntime==1.32.0", "onnxscript==0.7.2"))


@dataclass(frozen=True)
class Wish:
    """What to measure beside ours.

    Attributes:
        num_threads: Of each contender.
        with_compile: torch.compile too, which needs a C++ compiler and minutes.
        environments: Folder in which ONNX Runtime is installed by itself; None: where it is installed.
    """

    num_threads: int
    with_compile: bool
    environments: Path | None


def contenders(tower: Tower, wish: Wish, directory: Path) -> Iterator[tuple[str, Compute | str]]:
    """Their names, and what computes or why there is nothing that does. PyTorch in float32 is the first.

    directory: where conversions are written; it is made.
    """
    directory.mkdir(parents=True)
    makers: dict[str, Callable[[], Compute]] = {
        "PyTorch": lambda: tower.module,
        "PyTorch bfloat16": lambda: in_bfloat16(tower.module),
        "OpenVINO bfloat16": lambda: in_openvino(tower, directory / "bfloat16", "bf16"),
        "OpenVINO float16": lambda: in_openvino(tower, directory / "float16", "f16"),
        "OpenVINO int8 weights": lambda: in_openvino(tower, directory / "int8", "f32", int8=True),
        "ONNX Runtime": lambda: in_onnx_runtime(tower, wish, directory / "tower.onnx"),
        "ONNX Runtime int8": lambda: in_onnx_runtime(tower, wish, directory / "int8.onnx", int8=True),
    }
    if wish.with_compile:
        makers |= {
            "torch.compile": lambda: compiled(tower.module, freezing=True),
            "torch.compile bfloat16": lambda: in_bfloat16(tower.module, then=compiled),
            # Frozen, the weights would be float32 again.
            "torch.compile int8 weights": lambda: compiled(with_int8_weights(tower.module), freezing=False),
        }
    for name, make in makers.items():
        try:
            compute: Compute | str = make()
            assert callable(compute)
            with torch.inference_mode():
                compute(tower.probes()[0])  # What cannot compute says so now.
        except Exception as error:  # Each has errors of its own.
            compute = next(iter(str(error).strip().splitlines()), type(error).__name__)
        yield name, compute


# PyTorch


def compiled(module: nn.Module, *, freezing: bool = True) -> Compute:
    """By torch.compile, for inputs of any length."""
    found: Compute = torch.compile(module, dynamic=True, options={"freezing": freezing})
    return found


def in_bfloat16(module: nn.Module, then: Callable[[nn.Module], Compute] = lambda module: module) -> Compute:
    """Weights and activations in bfloat16. then: what becomes of the module."""
    half = copy.deepcopy(module).bfloat16()
    for part in half.modules():
        if isinstance(getattr(part, "attn_mask", None), Tensor):
            part.attn_mask = part.attn_mask.bfloat16()
    made = then(half)

    def compute(inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.float() for x in made(inputs.bfloat16() if inputs.is_floating_point() else inputs))

    return compute


class _Int8(nn.Module):
    """Keeps a weight [N, M] as int8 with one scale for each of its N outputs."""

    def forward(self, rounded: Tensor, scale: Tensor) -> Tensor:
        return rounded * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        return (weight / scale).round().to(torch.int8), scale


def with_int8_weights(module: nn.Module) -> nn.Module:
    """A copy whose matrices of linear layers and attention are `_Int8`."""
    smaller = copy.deepcopy(module).requires_grad_(False)
    for part in list(smaller.modules()):
        name = {nn.Linear: "weight", nn.MultiheadAttention: "in_proj_weight"}.get(type(part))
        if name is not None and getattr(part, name) is not None:
            parametrize.register_parametrization(part, name, _Int8(), unsafe=True)
    return smaller


# OpenVINO


def compiled_as_ours(
    module: nn.Module, example: Tensor, shape: tuple[int, ...], directory: Path
) -> CompiledTower:
    """A module as our towers are compiled."""
    directory.mkdir(parents=True)
    convert(module, example, shape, directory, half=False)
    return CompiledTower(directory, torch.get_num_threads())


def in_openvino(tower: Tower, directory: Path, precision: str, int8: bool = False) -> Compute:
    """Arithmetic in another precision, or weights as 8-bit integers, one scale for each output."""
    directory.mkdir(parents=True)
    convert(tower.module, tower.probes()[0], tower.shape, directory, half=False)
    graph = CORE.read_model(directory / MODEL_FILE)
    if int8:
        quantize_weights(graph)
    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
    request = CORE.compile_model(graph, "CPU", options).create_infer_request()

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


# ONNX Runtime


def in_onnx_runtime(tower: Tower, wish: Wish, path: Path, int8: bool = False) -> Compute:
    """Exported by PyTorch. int8: of weights, with activations rounded to 8 bits as they come.

    Raises:
        ImportError, UnavailableError: It is not installed, and cannot be.
    """
    if wish.environments is not None:
        import_from(ONNX_RUNTIME, wish.environments)
    import onnxruntime
    import onnxscript  # noqa: F401, the exporter's

    free = {axis: torch.export.Dim.DYNAMIC for axis, length in enumerate(tower.shape) if length == -1}
    torch.onnx.export(
        tower.module, (tower.probes()[0],), path, dynamic_shapes=(free,), dynamo=True, verbose=False
    )
    if int8:
        from onnxruntime.quantization import quantize_dynamic

        exported, path = path, path.with_name("quantized.onnx")
        quantize_dynamic(exported, path, per_channel=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = wish.num_threads
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda inputs: tuple(map(torch.from_numpy, session.run(None, {name: inputs.numpy()})))


def import_from(environment: Environment, folder: Path) -> None:
    """Let what this environment has be imported too, behind all that ours has: contenders that are timed in
    turns share a process. Raises UnavailableError."""
    home = Path(environment.python(folder)).parent.parent
    packages = next(iter(home.glob("lib/python*/site-packages")), None)
    if packages is None:
        raise UnavailableError(f"{home} has no packages")
    if str(packages) not in sys.path:
        sys.path.append(str(packages))
