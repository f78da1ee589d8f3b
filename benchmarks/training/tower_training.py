"""A training step of the two small vision towers: precision, memory layout and attention, frames per second.

The demo model's tower is made of convolutions, that of the ablations' starting point is a transformer.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import XClip
from training.ablation.corpus import StartRecipe
from training.demo_corpus.captions import vocabulary
from training.demo_model.recipe import Recipe

NUM_FRAMES, NUM_ROUNDS = 256, 5
PRECISIONS = {"float32": False, "bfloat16": True}
LAYOUTS = {"as it is": torch.contiguous_format, "channels last": torch.channels_last}
KERNELS = {"fused attention": SDPBackend.FLASH_ATTENTION, "written-out attention": SDPBackend.MATH}


def main() -> None:
    """Print both tables. Rounds of the cases alternate, so that noise falls on all alike."""
    print(f"{torch.get_num_threads()} threads, {NUM_FRAMES} frames of 64 pixels, forward and backward")
    _compare("demo model", _tower(Recipe()), LAYOUTS, {})
    _compare("transformer of the ablations", _tower(StartRecipe().demo_recipe()), {}, KERNELS)


def _tower(recipe: Recipe) -> nn.Module:
    model = XClip(recipe.model_config(sorted(vocabulary()))).train()
    tower: nn.Module = model.clip.visual.train()  # type: ignore[assignment, operator, union-attr]
    return tower


def _compare(title: str, tower: nn.Module, layouts: dict[str, Any], kernels: dict[str, SDPBackend]) -> None:
    pixels = torch.randn(NUM_FRAMES, 3, 64, 64)
    cases = [(precision, choice) for precision in PRECISIONS for choice in (layouts or kernels)]
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for round_number in range(NUM_ROUNDS + 1):
        for precision, choice in cases:
            layout = layouts.get(choice, torch.contiguous_format)
            tower.to(memory_format=layout)
            batch = pixels.contiguous(memory_format=layout)
            attention = sdpa_kernel([kernels[choice]]) if kernels else nullcontext()
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[precision]), attention:
                tower(batch).float().sum().backward()
            if round_number:  # The first warms up.
                seconds[precision, choice].append(time.perf_counter() - started)
    print(f"\n| {title} | median seconds | frames/s |\n| --- | ---: | ---: |")
    for (precision, choice), values in seconds.items():
        median = statistics.median(values)
        print(f"| {precision}, {choice} | {median:.3f} | {NUM_FRAMES / median:.0f} |")


if __name__ == "__main__":
    main()
