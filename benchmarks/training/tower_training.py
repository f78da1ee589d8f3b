"""A training step of the demo model's vision tower: precision and attention kernel, frames per second."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model import XClip
from training.demo_corpus.captions import vocabulary
from training.demo_model.recipe import Recipe

NUM_FRAMES, NUM_ROUNDS = 512, 5
CASES = {
    "float32, fused attention": (False, SDPBackend.FLASH_ATTENTION),
    "float32, written-out attention": (False, SDPBackend.MATH),
    "bfloat16, fused attention": (True, SDPBackend.FLASH_ATTENTION),
    "bfloat16, written-out attention": (True, SDPBackend.MATH),
}


def main() -> None:
    """Print the table. Rounds of the cases alternate, so that noise falls on all alike."""
    recipe = Recipe()
    model = XClip(recipe.model_config(sorted(vocabulary()))).train()
    pixels = torch.randn(NUM_FRAMES, 3, recipe.image_size, recipe.image_size)
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for round_number in range(NUM_ROUNDS + 1):
        for name, (half, kernel) in CASES.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=half), sdpa_kernel([kernel]):
                model.clip.visual(pixels).float().sum().backward()
            if round_number:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    print(
        f"{torch.get_num_threads()} threads, {NUM_FRAMES} frames of {recipe.image_size} pixels, "
        "forward and backward"
    )
    print("| case | median seconds | frames/s |\n| --- | ---: | ---: |")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.3f} | {NUM_FRAMES / median:.0f} |")


if __name__ == "__main__":
    main()
