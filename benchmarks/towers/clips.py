"""What each contender makes of real clips and captions: cosines with PyTorch's features, and the ranks."""

from __future__ import annotations

import json
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


def compare(report: Report, clips: Path, spec: str, wish: Wish, directory: Path) -> None:
    """Print a row for each contender.

    clips: a folder with captions.json, a list of {"file": path below it, "captions": [text, ...]}.
    """
    model = XClip.load(spec, "cpu", "openvino")
    text = text_to_convert(model.clip, model.config, model.tokenizer)
    openvino, model._converted["text"] = model._converted["text"], ConvertedTower(text, lambda: "")
    model.prepare("text", "vision")
    computed_by = {"text": "numba", "vision": "openvino"}
    report.check("the kernel computes texts and OpenVINO frames", model.runtimes == computed_by)
    listed = json.loads((clips / "captions.json").read_text(encoding="utf-8"))
    listed = [clip for clip in listed if clip.get("captions") and (clips / clip["file"]).is_file()]
    captions = [caption for clip in listed for caption in clip["captions"]]
    video = _read(model, [clips / clip["file"] for clip in listed])
    towers: dict[str, dict[str, Any]] = {"ours": dict(model._converted)}
    towers["OpenVINO"] = {**model._converted, "text": openvino}
    for tower in (text, vision_to_convert(model.clip, model.config)):
        for name, compute in contenders(tower, wish, directory / tower.name):
            if isinstance(compute, str):
                report.note(f"left out: {name}, {tower.name}: {compute}")
            else:
                towers.setdefault(name, {})[tower.name] = compute
    columns = {"least cosine of sentences": ".6f", "of real words": ".6f", "of frames": ".6f"}
    columns |= {"scores apart": ".3f", "captions that rank all clips alike": "", "R@1 %": ".1f"}
    table = report.table(f"{len(captions)} captions, {len(listed)} clips, {spec}", {"": "", **columns})
    own = torch.tensor([row for row, clip in enumerate(listed) for _ in clip["captions"]])
    expected = _features(model, towers["PyTorch"], captions, video)
    for name, found in towers.items():
        if found.keys() != {"text", "vision"}:
            continue
        sentences, words, frames, total = _features(model, found, captions, video)
        cosines = [_least(a, b) for a, b in zip((sentences, words, frames), expected, strict=False)]
        orders = [scores.argsort(dim=1, descending=True) for scores in (total, expected[3])]
        alike = int((orders[0] == orders[1]).all(dim=1).sum())
        apart = float((total - expected[3]).abs().max())
        first = 100 * float((orders[0][:, 0] == own).float().mean())
        table.add(name, *cosines, apart, f"{alike} of {len(captions)}", first)
        if name == "ours":
            report.check("cosines of ours are at least 0.9999", min(cosines) >= 0.9999, f"{min(cosines):.7f}")
            report.check("with ours every caption ranks all clips alike", alike == len(captions))


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
    model: XClip, towers: dict[str, Compute], captions: list[str], video: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sentences [T, D], real words [N, D], real frames [M, D] and totals [T, V], by these towers."""
    model._converted = towers  # type: ignore[assignment]
    text = TextFeatures.cat([model.encode_text([caption]) for caption in captions])  # As searches do.
    clips: VideoFeatures = model.encode_video(*video)
    total = model.score(text, clips).total
    return text.sentence, text.words[text.word_mask], clips.frames[clips.frame_mask], total


def _least(found: Tensor, expected: Tensor) -> float:
    return float(torch.cosine_similarity(found.double(), expected.double(), dim=-1).min())
