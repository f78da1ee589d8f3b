"""The towers on another runtime than PyTorch: which one, whether it computes the same, and what if not.

A tower is packed for its kernel, or converted once on each machine, when it is first needed, and checked
against PyTorch. Whatever goes wrong costs a line in the log and speed, never an answer: PyTorch then computes
the tower.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from model.errors import SpecError
from model.kernels.processor import has_instructions
from model.runtimes import RUNTIMES, UsedRuntime
from model.runtimes.tower import Tower, with_plain_attention

if TYPE_CHECKING:
    from model.runtimes.openvino import CompiledTower
    from model.runtimes.tower_kernels import TextKernel, VisionKernel

MIN_PARAMETERS = 10_000_000
"""Of a tower that `auto` converts: PyTorch computes smaller ones in the time that OpenVINO takes to load."""

FORMAT = 2
"""Of conversions; increased when the same tower would be converted otherwise."""

INSTALL = "install xclip-search with the extra fast, as in pip install 'xclip-search[fast]'"

logger = logging.getLogger("xclip_search.model")


def usable_runtime(runtime: str, device: torch.device) -> UsedRuntime:
    """The runtime to use on a device.

    Args:
        runtime: One of `RUNTIMES`.
        device: Of the model.

    Raises:
        SpecError: There is no such runtime, or OpenVINO is asked for where it cannot be used.
    """
    if runtime not in RUNTIMES:
        raise SpecError(f"there is no runtime {runtime!r}; there are {', '.join(RUNTIMES)}")
    if runtime == "torch" or (runtime == "auto" and device.type != "cpu"):
        return "torch"
    if device.type != "cpu":
        raise SpecError(f"the runtime {runtime} computes on processors, not on {device}: use --device cpu")
    if not all(find_spec(package) for package in ("openvino", "platformdirs", "filelock")):
        if runtime == "auto":
            logger.info("PyTorch computes the towers; OpenVINO would be faster: %s", INSTALL)
            return "torch"
        raise SpecError(f"the runtime {runtime} is not installed: {INSTALL}")
    if runtime != "openvino-bf16":
        return "openvino"
    from model.runtimes.openvino import has_bfloat16

    if not has_bfloat16():
        raise SpecError("the runtime openvino-bf16 needs a processor that computes in bfloat16")
    return "openvino-bf16"


class ConvertedTower:
    """Computes a tower with its kernel, else with OpenVINO, or with PyTorch where neither can or computes the
    same.

    Loaded, and converted if need be, at the first call; several threads may call. A tower in bfloat16 has no
    stand-in: where OpenVINO cannot compute it, calls raise SpecError.
    """

    def __init__(self, tower: Tower, fingerprint: Callable[[], str]) -> None:
        """`fingerprint`: of all weights, config and preprocessing; called at the first call."""
        self._tower = tower
        self._fingerprint = fingerprint
        self._compiled: TextKernel | VisionKernel | CompiledTower | None = None
        self._is_ready = False
        self._loading = threading.Lock()

    def prepare(self) -> None:
        """Load it, and convert it if need be, where that was not done."""
        if not self._is_ready:
            with self._loading:
                if not self._is_ready:
                    self._compiled = self._load()
                    self._is_ready = True

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """What the tower makes of its inputs."""
        self.prepare()
        if self._compiled is None or 0 in inputs.shape:  # The others take no empty input.
            outputs: tuple[Tensor, ...] = self._tower.module(inputs)
            return outputs
        return self._compiled(inputs)

    @property
    def is_bfloat16(self) -> bool:
        """Whether its features are others than PyTorch's."""
        return self._tower.bfloat16

    @property
    def runtime(self) -> UsedRuntime | None:
        """What computes it; None before the first call."""
        if not self._is_ready:
            return None
        if self._compiled is None:
            return "torch"
        return self._compiled.runtime

    def _load(self) -> TextKernel | VisionKernel | CompiledTower | None:
        return self._kernel() or self._openvino()

    def _kernel(self) -> TextKernel | VisionKernel | None:
        """The kernel, if there is one for this tower and this processor, and it computes the same."""
        tower = self._tower
        if tower.kernel is None or find_spec("numba") is None or not has_instructions():
            return None
        try:
            if (kernel := tower.kernel()) is None:
                return None
            # By few inputs, as at each start: nothing was traced. Texts with padding, as PyTorch has them.
            problem = self._problem(getattr(kernel, "every_position", kernel), tower.probes()[:1])
        except Exception as error:  # Numba's have no common class.
            problem = f"{type(error).__name__}: {_first_line(error)}"
        if problem is not None:
            logger.warning("the %s tower goes without its kernel: %s", tower.name, problem)
            return None
        return kernel

    def _openvino(self) -> CompiledTower | None:
        try:
            from model.runtimes.conversions import conversion
            from model.runtimes.openvino import versions

            name = f"{self._tower.name}{' in bfloat16' if self.is_bfloat16 else ''}"
            facts = f"{FORMAT}\n{self._fingerprint()}\n{name}\n{versions()}"
            key = hashlib.sha256(facts.encode()).hexdigest()
            with conversion(key, self._convert) as (directory, problem):
                compiled = None if problem else self._compile(directory)
        except Exception as error:  # Whatever another runtime has to complain about, PyTorch does the work.
            compiled, problem = None, _first_line(error)
        if problem and self.is_bfloat16:
            raise SpecError(f"the runtime openvino-bf16 is not for this model: OpenVINO {problem}")
        if problem:
            logger.warning("PyTorch computes the %s tower: OpenVINO %s", self._tower.name, problem)
        return compiled

    def _compile(self, directory: Path) -> CompiledTower:
        from model.runtimes.openvino import CompiledTower

        return CompiledTower(directory, torch.get_num_threads(), self.is_bfloat16)

    def _convert(self, directory: Path) -> str | None:
        """Convert into a folder. Returns what is wrong with the result, None where it may be used."""
        from model.runtimes.openvino import convert

        tower = self._tower
        logger.info("converting the %s tower for OpenVINO, once on this machine", tower.name)
        example = tower.probes()[0]
        try:
            convert(with_plain_attention(tower.module), example, tower.shape, directory, tower.half)
        except (OSError, MemoryError):  # Passes: not a fact about the tower, to be remembered.
            raise
        except Exception as error:
            return f"cannot convert it: {_first_line(error)}"
        return self._problem(self._compile(directory), tower.probes())

    def _problem(self, compiled: Callable[[Tensor], tuple[Tensor, ...]], probes: list[Tensor]) -> str | None:
        """What is wrong with what computes the tower in PyTorch's place; None where it may be used."""
        tower = self._tower
        with torch.no_grad():
            distances = [_distances(compiled(probe), tower.module(probe)) for probe in probes]
        distance = float(torch.cat(distances).max())  # NaN where any is.
        if not distance <= tower.tolerance:
            return (
                f"computes other features: unit vectors {distance:.2g} apart, at most {tower.tolerance:.2g}"
            )
        return None


def _distances(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> Tensor:
    """Lengths of the differences between unit vectors, float64 [any number]."""
    pairs = zip(found, expected, strict=True)
    units = [[functional.normalize(x.double(), dim=-1) for x in pair] for pair in pairs]
    return torch.cat([(ours - reference).norm(dim=-1).flatten() for ours, reference in units])


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
