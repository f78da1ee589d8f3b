"""Our rerank of the same candidates, eight words with twelve frames each. FOLDER THREADS KIND.

KIND: `all`, four scores; `frame_word`, that of words and frames alone; `product`, the floor.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from protocol import serve

from model import TextFeatures, VideoFeatures, XClip


def build():
    """Load what is there; the function that answers."""
    folder, kind = Path(sys.argv[1]), sys.argv[3]
    torch.set_num_threads(int(sys.argv[2]))
    frames, words, queries = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("candidate_frames", "words", "queries")
    )
    if kind == "product":
        flat = frames.float().flatten(1, 2)
        return lambda number: [float((flat[number] @ words[number].T)[0, 0])], {}
    model = XClip.load("openclip:ViT-B-32-quickgelu/random?seed=0", "cpu")
    model.prepare("scores")  # As a server does.
    pooled = torch.nn.functional.normalize(frames.float().mean(dim=2), dim=-1)
    every_frame = torch.ones(frames.shape[1:3], dtype=torch.bool)
    num_words = words.shape[1]
    padded = torch.nn.functional.pad(words, (0, 0, 0, model.config.num_words - num_words))
    word_mask = (torch.arange(model.config.num_words) < num_words)[None]
    wanted = None if kind == "all" else {"frame_word"}

    @torch.inference_mode()
    def ask(number):
        text = TextFeatures(queries[number : number + 1], padded[number : number + 1], word_mask)
        scores = model.score(text, VideoFeatures(pooled[number], frames[number], every_frame), wanted)
        return (scores.total if kind == "all" else scores.frame_word)[0].tolist()

    return ask, {}


serve(build)
