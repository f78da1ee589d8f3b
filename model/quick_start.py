"""`import open_clip` in a fourth of its time, for processes that are ours alone.

open_clip imports transformers (text towers such as SigLIP's), timm (vision towers such as ConvNeXt) and
torchvision, and timm and torchvision import the compiler of torch, which is most of it. Neither CLIP nor
X-CLIP needs any of them (`python -m benchmarks.start`). `shorten_import` leaves them out,
`complete_import` brings in what an architecture needs after all. A program that uses our packages as a
library may use open_clip for itself: there nothing is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec

OPTIONAL = ("timm", "transformers")
"""What open_clip does without where it is not installed."""

ADAPTERS = ("open_clip.timm_model", "open_clip.hf_model")
"""The modules of open_clip that use them, as names of their own."""

COMPILER = ("torch._dynamo", "torch._dynamo.utils")


def shorten_import() -> None:
    """Leave out what is optional when open_clip is imported, unless it is already. Call it in `main` only."""
    if "open_clip" not in sys.modules:
        sys.meta_path.insert(0, _ShortImport())


def complete_import() -> None:
    """Give open_clip what was left out, in place; call it before a tower of timm or transformers is built."""
    for name in ADAPTERS:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "left_out", False):
            # Executed again in the same namespace: classes that others hold see the new names too.
            importlib.reload(module)
            module.left_out = False  # type: ignore[attr-defined]


class _ShortImport(MetaPathFinder):
    """Finds open_clip once, with a loader that hides from it what is optional."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "open_clip":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            with _hidden():
                execute(module)
            for name in ADAPTERS:
                sys.modules[name].left_out = True  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def _hidden() -> Iterator[None]:
    """Meanwhile what is optional seems not to be installed, and the compiler is not imported."""
    absent = [name for name in OPTIONAL if name not in sys.modules]
    stand_ins = {} if COMPILER[0] in sys.modules else {name: types.ModuleType(name) for name in COMPILER}
    if stand_ins:
        stand_ins[COMPILER[1]].is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: ModuleNotFoundError
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in (*absent, *stand_ins):
            del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    """The one function that torchvision takes from the compiler, for regions of detection models."""
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))
