"""Encode what the n-th job asks for: one text (0), or twelve frames (1). FOLDER KIND THREADS.

KIND: `ours`; `open_clip`, in plain PyTorch; `clip_retrieval`, its mapper over open_clip's model.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from protocol import serve


def ours(folder):
    """Our model, with the runtime that is installed."""
    from model import XClip

    model = XClip.load(folder / "model", "cpu")
    every_frame = torch.ones(1, 12, dtype=torch.bool)

    def text(sentence):
        return model.encode_text([sentence]).sentence

    def frames(pixels):
        return model.encode_video(pixels[None], every_frame).frames[0]

    return text, frames


def open_clip(folder):
    """open_clip by itself."""
    import open_clip
    from safetensors.torch import load_file

    model, tokenize = (
        open_clip.create_model("ViT-B-32-quickgelu"),
        open_clip.get_tokenizer("ViT-B-32-quickgelu"),
    )
    model.load_state_dict(load_file(folder / "clip.safetensors"), strict=False)
    model.eval()

    def text(sentence):
        return model.encode_text(tokenize([sentence]), normalize=True)

    return text, lambda pixels: model.encode_image(pixels, normalize=True)


def clip_retrieval(folder):
    """The class that clip-retrieval encodes batches with."""
    import open_clip
    from clip_retrieval.clip_inference import mapper
    from safetensors.torch import load_file

    model, tokenize = (
        open_clip.create_model("ViT-B-32-quickgelu"),
        open_clip.get_tokenizer("ViT-B-32-quickgelu"),
    )
    model.load_state_dict(load_file(folder / "clip.safetensors"), strict=False)
    # It would download the weights of a published model; these are given to it instead.
    mapper.load_clip = lambda **_: (model.eval(), None, tokenize)
    both = {
        "enable_metadata": False,
        "use_mclip": False,
        "clip_model": "",
        "use_jit": False,
        "mclip_model": "",
    }
    of_texts = mapper.ClipMapper(enable_image=False, enable_text=True, **both)
    of_images = mapper.ClipMapper(enable_image=True, enable_text=False, **both)

    def text(sentence):
        item = {"text": [sentence], "text_tokens": tokenize([sentence])}
        return torch.from_numpy(of_texts(item)["text_embs"])

    def frames(pixels):
        return torch.from_numpy(of_images({"image_tensor": pixels, "image_filename": [""]})["image_embs"])

    return text, frames


def build():
    """Load what is there; the function that answers."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(int(sys.argv[3]))
    pixels = torch.from_numpy(np.load(folder / "pixels.npy"))
    text, frames = {"ours": ours, "open_clip": open_clip, "clip_retrieval": clip_retrieval}[kind](folder)

    @torch.inference_mode()
    def ask(number):
        found = frames(pixels) if number else text("a dog runs on the beach")
        return found.float().flatten().tolist()

    return ask, {}


serve(build, ["torch", "open_clip_torch"])
