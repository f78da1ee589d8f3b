"""What each contender makes of real clips and captions: cosines with PyTorch's features, and the ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import Report
from benchmarks.towers.contenders import Compute, Wish, contenders
from model import TextFeatures, VideoFeatures, XClip
from model.runtimes.converted import ConvertedTower
from model.runtimes.tower import text_to_convert, vision_to_convert
from training.data.frames import FrameReader, FrameRecipe
from training.datasets.split import Clip

STORED = "PyTorch, stored in float16"


def compare(report: Report, clips: Path, spec: str, wish: Wish, directory: Path) -> None:
    """Print a row for each contender.

    clips: a folder with captions.json, a list of {"file": path below it, "captions": [text, ...]}.
    """
    model, other = XClip.load(spec, "cpu", "openvino"), XClip.load(spec, "cpu", "openvino")
    converted = (
        text_to_convert(model.clip, model.config, model.tokenizer),
        vision_to_convert(model.clip, model.config),
    )
    # As `auto` has them, and where they are small too.
    model._converted = {tower.name: ConvertedTower(tower, lambda: "") for tower in converted}
    model.prepare("text", "vision")
    report.check("the kernel computes both towers", set(model.runtimes.values()) == {"numba"})
    listed = json.loads((clips / "captions.json").read_text(encoding="utf-8"))
    listed = [clip for clip in listed if clip.get("captions") and (clips / clip["file"]).is_file()]
    captions = [caption for clip in listed for caption in clip["captions"]]
    video = _read(model, [clips / clip["file"] for clip in listed])
    towers: dict[str, dict[str, Any]] = {"ours": dict(model._converted)}
    towers["OpenVINO"] = dict(other._converted)
    for tower in converted:
        for name, compute in contenders(tower, wish, directory / tower.name):
            if isinstance(compute, str):
                report.note(f"left out: {name}, {tower.name}: {compute}")
            else:
                towers.setdefault(name, {})[tower.name] = compute
    columns = {"least cosine of sentences": ".6f", "of real words": ".6f", "of frames": ".6f"}
    columns |= {
        "frames apart": ".1e",
        "scores apart": ".3f",
        "captions that rank all clips alike": "",
        "R@1 %": ".1f",
    }
    table = report.table(f"{len(captions)} captions, {len(listed)} clips, {spec}", {"": "", **columns})
    own = torch.tensor([row for row, clip in enumerate(listed) for _ in clip["captions"]])
    every = {name: found for name, found in towers.items() if found.keys() == {"text", "vision"}}
    features = {name: _features(model, found, captions, video) for name, found in every.items()}
    expected = features["PyTorch"]
    features[STORED] = _features(model, towers["PyTorch"], captions, video, stored=True)
    for name, (*vectors, total) in features.items():
        cosines = [_least(a, b) for a, b in zip(vectors, expected[:3], strict=True)]
        frames_apart = float((vectors[2] - expected[2]).norm(dim=-1).max())
        orders = [scores.argsort(dim=1, descending=True) for scores in (total, expected[3])]
        alike = int((orders[0] == orders[1]).all(dim=1).sum())
        apart = float((total - expected[3]).abs().max())
        first = 100 * float((orders[0][:, 0] == own).float().mean())
        table.add(name, *cosines, frames_apart, apart, f"{alike} of {len(captions)}", first)
        if name == "ours":
            report.check("cosines of ours are at least 0.9999", min(cosines) >= 0.9999, f"{min(cosines):.7f}")
    nearest = 2 * float((features[STORED][3] - expected[3]).abs().max())
    swapped = _most_swapped(features["ours"][3], expected[3])
    what = "ours swaps clips alone whose scores are within twice what float16 in the store changes"
    report.check(what, swapped <= nearest, f"{swapped:.4f}, {nearest:.4f}")


def _most_swapped(found: Tensor, expected: Tensor) -> float:
    """How far apart expected scores [T, V] of two clips are at most that are in another order when found."""
    apart = expected[:, :, None] - expected[:, None]
    is_swapped = apart.sign() * (found[:, :, None] - found[:, None]).sign() < 0
    return float((apart.abs() * is_swapped).max())


def _read(model: XClip, paths: list[Path]) -> tuple[Tensor, Tensor]:
    """Normalised pixels [V, F, 3, R, R] and the mask of real frames [V, F]."""
    config = model.config
    reader = FrameReader(FrameRecipe(config.num_frames, config.resizing))
    frames = [model.normalize_pixels(reader.read(Clip(path.name, path))) for path in paths]
    pixels = torch.zeros(len(frames), config.num_frames, *frames[0].shape[1:])
    mask = torch.zeros(len(frames), config.num_frames, dtype=torch.bool)
    for row, some in enumerate(frames):
        pixels[row, : len(some)], mask[row, : len(some)] = some, True
    return pixels, mask


@torch.inference_mode()
def _features(
    model: XClip,
    towers: dict[str, Compute],
    captions: list[str],
    video: tuple[Tensor, Tensor],
    stored: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sentences [T, D], real words [N, D], real frames [M, D] and totals [T, V], by these towers.

    stored: with features of videos as an index keeps them.
    """
    model._converted = towers  # type: ignore[assignment]
    text = TextFeatures.cat([model.encode_text([caption]) for caption in captions])  # As searches do.
    clips: VideoFeatures = model.encode_video(*video)
    if stored:
        clips = replace(clips, video=clips.video.half().float(), frames=clips.frames.half().float())
    total = model.score(text, clips).total
    return text.sentence, text.words[text.word_mask], clips.frames[clips.frame_mask], total


def _least(found: Tensor, expected: Tensor) -> float:
    return float(torch.cosine_similarity(found.double(), expected.double(), dim=-1).min())
