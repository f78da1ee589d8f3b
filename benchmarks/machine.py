"""What a benchmark runs on: processor, memory, versions; and what this process has in memory.

Nothing heavy is imported, so that a program may ask before it measures the start of something.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent

INSTRUCTION_SETS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
)
"""Those that matrix products make use of, as Linux spells them."""

LIBRARIES = (
    *("xclip-search", "torch", "open_clip_torch", "openvino", "onnxruntime", "faiss-cpu", "faiss-gpu"),
    *("numba", "triton", "numpy", "av", "decord", "decord2", "torchcodec"),
)


def describe() -> dict[str, Any]:
    """Processor, memory, versions: all that JSON can hold. Libraries that are not installed are left out."""
    facts = {
        "processor": _processor_name(),
        "cores": num_cores(),
        "instruction_sets": _instruction_sets(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "gpus": _lines("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "load_average": os.getloadavg()[0],
    }
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    commit = _lines("git", "-C", str(REPOSITORY), "describe", "--always", "--dirty")
    return {**facts, "versions": versions, "commit": commit[0] if commit else None}


def in_words(facts: dict[str, Any]) -> str:
    """Two lines of what `describe` found, for people."""
    sets = ", ".join(facts["instruction_sets"]) or "no instruction sets known"
    gpus = "; ".join(facts["gpus"]) or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['processor']}, {facts['cores']} cores ({sets}), {facts['memory_gib']} GiB, {gpus},"
        f" load average {facts['load_average']:.1f}\n{versions}, commit {facts['commit'] or 'unknown'}"
    )


def num_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resident_mib(field: str = "VmRSS", process: int | str = "self") -> float:
    """What a process has in memory (Linux). field VmHWM: the highest since `forget_peak` or its start."""
    for line in Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{process}/status has no {field}")


def forget_peak() -> None:
    """Reset VmHWM (man 5 proc, clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a fresh process: memory and caches are its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _processor_name() -> str:
    if sys.platform == "darwin":
        return (_lines("sysctl", "-n", "machdep.cpu.brand_string") or [platform.machine()])[0]
    names = _of_cpuinfo("model name")
    return names[0] if names else platform.machine()


def _instruction_sets() -> list[str]:
    known = {name for line in (_of_cpuinfo("flags") or _of_cpuinfo("Features"))[:1] for name in line.split()}
    return [name for name in INSTRUCTION_SETS if name in known]


def _of_cpuinfo(key: str) -> list[str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for name, _, value in pairs if name.strip() == key]


def _lines(*command: str) -> list[str]:
    """What a command prints, nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
