"""OpenVINO: converts a tower, compiles it for this processor and runs it. Imported only where it is used."""

from __future__ import annotations

import sys
import threading
import warnings
from collections import deque
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from model.runtimes import UsedRuntime

# openvino reports its use to its maker, by default at each import. Without this package, which does the
# reporting, it uses an empty stand-in of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino  # noqa: E402
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: E402

MODEL_FILE, WEIGHTS_FILE = "tower.xml", "tower.bin"
"""Of a converted tower, in a folder of its own."""

CORE: Final = openvino.Core()
"""The one of this process, for as long as it lives. Each gives the thread that uses it first a stack for
signal handlers, and frees it when it is deleted. Where two were used in one thread, the one that is deleted
last puts the stack of the other back, which is no more: the next signal, such as the SIGTERM that ends a
service in order, ends the process at once (`SigAltStackSetup`, src/plugins/intel_cpu/src of
openvinotoolkit/openvino)."""

_tracing = threading.Lock()
"""The converter replaces functions of torch while it traces."""


def versions() -> str:
    """What a conversion depends on beside the tower: OpenVINO, PyTorch, and this processor's instructions."""
    processor = CORE.get_property("CPU", "FULL_DEVICE_NAME")
    instructions = " ".join(sorted(_capabilities()))
    return f"openvino {openvino.__version__}, torch {torch.__version__}, {processor} {instructions}"


def has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16."""
    return "BF16" in _capabilities()


def _capabilities() -> list[str]:
    found: list[str] = CORE.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return found


def convert(tower: nn.Module, example: Tensor, shape: tuple[int, ...], directory: Path, half: bool) -> None:
    """Write a tower as `MODEL_FILE` and `WEIGHTS_FILE`.

    Args:
        tower: In evaluation mode; from one tensor to a tuple of tensors.
        example: An input, with which it is traced.
        shape: Of all inputs; -1 where any length may come.
        directory: An empty folder.
        half: Whether weights are stored in float16. The arithmetic stays float32.
    """
    # Tracing once more to compare would double the time; the result is checked with other inputs anyway.
    once = {"check_trace": False}
    with _tracing, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Of the tracer, on Python that it sees as constant; likewise checked.
        decoder = TorchScriptPythonDecoder(tower, example_input=(example,), trace_kwargs=once)
        model = openvino.convert_model(decoder, input=[openvino.PartialShape(list(shape))])
    openvino.save_model(model, directory / MODEL_FILE, compress_to_fp16=half)


class CompiledTower:
    """A converted tower, ready to compute. Several threads may call it.

    Args:
        directory: What `convert` wrote. The files may be deleted afterwards.
        num_threads: Of the processor.
        bfloat16: Whether to compute in bfloat16 instead of float32; outputs are float32 anyway.
    """

    def __init__(self, directory: Path, num_threads: int, bfloat16: bool = False) -> None:
        options = {
            # Always said, else it is bfloat16 on processors that have it.
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(num_threads),
            # Each process would bind its threads to the same cores, server and worker alike.
            "ENABLE_CPU_PINNING": "NO",
        }
        self.runtime: UsedRuntime = "openvino-bf16" if bfloat16 else "openvino"
        self._model = CORE.compile_model(directory / MODEL_FILE, "CPU", options)
        self._idle_requests: deque[Any] = deque()

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """What the tower makes of its input; the outputs are the caller's."""
        try:
            request = self._idle_requests.pop()
        except IndexError:
            request = self._model.create_infer_request()
        outputs = request.infer([inputs.detach().contiguous().numpy()], share_inputs=True)
        results = tuple(torch.from_numpy(outputs[number]) for number in range(len(self._model.outputs)))
        self._idle_requests.append(request)
        return results
