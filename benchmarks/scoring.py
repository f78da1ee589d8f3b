"""What scoring a pair costs at 32 words x 12 frames x 512, plain PyTorch, by block size."""

from __future__ import annotations

import statistics
import time

import torch

from model import TextFeatures, VideoFeatures, XClipConfig
from model.scoring import ScoreHead

NUM_WORDS, NUM_FRAMES, DIMENSION, NUM_VIDEOS, NUM_ROUNDS = 32, 12, 512, 2000, 5
BLOCKS = (1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)


def unit(*shape: int) -> torch.Tensor:
    """Random directions."""
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


@torch.inference_mode()
def main() -> None:
    """Print the table. Rounds of the block sizes alternate, so that noise falls on all alike."""
    torch.manual_seed(0)
    clip = {**XClipConfig.tiny().clip, "embed_dim": DIMENSION}
    head = ScoreHead(
        XClipConfig.tiny(clip=clip, num_words=NUM_WORDS, num_frames=NUM_FRAMES, mask_padding=False)
    )
    scale = torch.tensor(100.0)
    text = TextFeatures(unit(1, DIMENSION), unit(1, NUM_WORDS, DIMENSION), torch.ones(1, NUM_WORDS).bool())
    video = VideoFeatures(
        unit(NUM_VIDEOS, DIMENSION),
        unit(NUM_VIDEOS, NUM_FRAMES, DIMENSION),
        torch.ones(NUM_VIDEOS, NUM_FRAMES).bool(),
    )
    seconds: dict[int, list[float]] = {block: [] for block in BLOCKS}
    product_seconds = []
    for round_number in range(NUM_ROUNDS + 1):
        for block in BLOCKS:
            started = time.perf_counter()
            head.in_blocks(text, video, scale, max_elements=block)
            if round_number:
                seconds[block].append(time.perf_counter() - started)
        started = time.perf_counter()
        text.words[0] @ video.frames.flatten(0, 1).T
        product_seconds.append(time.perf_counter() - started)
    print(f"{torch.get_num_threads()} threads, one text with {NUM_VIDEOS} videos, float32, four scores")
    print("| similarities held in memory | median microseconds a pair |\n| ---: | ---: |")
    for block, values in seconds.items():
        print(f"| {block} | {statistics.median(values) / NUM_VIDEOS * 1e6:.1f} |")
    print(
        f"| the word-by-frame product alone | {statistics.median(product_seconds) / NUM_VIDEOS * 1e6:.1f} |"
    )


if __name__ == "__main__":
    main()
