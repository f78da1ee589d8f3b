"""PyLate's rerank: MaxSim of eight words with twelve frames, 200 candidates a query. FOLDER THREADS."""

import sys
from pathlib import Path

import numpy as np
import torch
from protocol import serve
from pylate import scores


def build():
    """Load what is there; the function that answers."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    frames = torch.from_numpy(np.load(folder / "candidate_frames.npy")).float()
    words = torch.from_numpy(np.load(folder / "words.npy"))

    @torch.inference_mode()
    def ask(number):
        return scores.colbert_scores(words[number : number + 1], frames[number])[0].tolist()

    return ask, {}


serve(build, ["pylate", "torch"])
