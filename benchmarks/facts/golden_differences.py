"""How far the network is from the official code on its own arrays: the largest difference to each."""

from __future__ import annotations

import json
import runpy

import numpy as np
import torch

from benchmarks.machine import REPOSITORY
from model import XClip
from model.checkpoints.official import from_official
from model.preprocessing import Resizing
from model.tokenization import Tokenizer

GOLDENS = REPOSITORY / "tests" / "goldens"
SCORES = {
    "video_sentence": "video_sentence_logits",
    "video_word": "video_word_logits",
    "sentence_frame": "sentence_frame_logits",
    "frame_word": "frame_word_logits",
    "total": "logits",
}


def show(name: str, found: torch.Tensor, expected: np.ndarray) -> None:
    """Print a row."""
    difference = np.abs(found.numpy() - expected.reshape(found.shape)).max()
    print(f"| {name} | {difference:.1e} | {np.abs(expected).max():.3g} |")


def compare(name: str, model: XClip, inputs: dict[str, torch.Tensor], outputs: dict[str, np.ndarray]) -> None:
    """Print the rows of one set."""
    text = model.encode_tokens(inputs["input_ids"])
    video = model.encode_video(inputs["pixel_values"], inputs["video_mask"])
    scores = model.score(text, video)
    show(f"{name}: sentence", text.sentence, outputs["sentence_output"])
    show(f"{name}: video", video.video, outputs["video_output"])
    if "word_features" in outputs:
        show(f"{name}: words", text.words, outputs["word_features"])
        show(f"{name}: frames", video.frames, outputs["frame_features"])
    else:
        show(f"{name}: words, first 8 dimensions", text.words[..., :8], outputs["word_features_first8dims"])
        show(
            f"{name}: frames, first 8 dimensions", video.frames[..., :8], outputs["frame_features_first8dims"]
        )
    for ours, theirs in SCORES.items():
        show(f"{name}: {ours}", getattr(scores, ours), outputs[theirs])


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same as tensors."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def main() -> None:
    """Print the table."""
    print("| golden | largest difference | largest value |\n| --- | ---: | ---: |")
    tiny = XClip.from_official(GOLDENS / "tiny_model.safetensors", device="cpu")
    inputs = tensors(dict(np.load(GOLDENS / "tiny_inputs.npz")))
    compare("tiny", tiny, inputs, dict(np.load(GOLDENS / "tiny_outputs.npz")))

    drawing = runpy.run_path(str(GOLDENS / "b32_weights.py"))
    config = drawing["load_config"](GOLDENS / "b32.json")
    b32 = XClip.from_checkpoint(from_official(tensors(drawing["state_dict"](config))), device="cpu")
    compare("ViT-B/32", b32, tensors(drawing["inputs"](config)), dict(np.load(GOLDENS / "b32_outputs.npz")))

    pictures = dict(np.load(GOLDENS / "preprocess.npz"))
    for name in sorted({key.split("/")[0] for key in pictures}):
        expected = pictures[f"{name}/pixel_values"]
        square = Resizing(expected.shape[-1])(pictures[f"{name}/rgb_u8"])
        show(f"preprocessing: {name}", tiny.normalize_pixels(square), expected)

    rows = json.loads((GOLDENS / "tokenizer.json").read_text())["rows"]
    tokenizer = Tokenizer(32)
    equal = sum(tokenizer([row["text"]])[0].tolist() == row["input_ids"] for row in rows)
    print(f"\n{equal} of {len(rows)} sentences have the official tokens")


if __name__ == "__main__":
    main()
