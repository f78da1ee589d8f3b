"""What open_clip's published weights are, for choosing among them: sizes, languages, licences, what is here.

Sizes are computed by `benchmarks/facts/openclip_architectures.py`, which writes the table next to this file.
Languages and licences are what the weights' own pages and papers state; docs/models.md names the sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("openclip_architectures.json")
"""Facts of each architecture, by its name."""

Speed = Literal["fast", "medium", "slow", "very slow"]

_SPEEDS: tuple[tuple[float, Speed], ...] = ((6.0, "fast"), (25.0, "medium"), (100.0, "slow"))
"""Up to so many giga multiply-adds for a frame: ViT-B/32 has 4.4, ViT-B/16 17.6, ViT-L/14 81. Beyond: very
slow."""

_LICENCES: tuple[tuple[str, str], ...] = (
    (r"metaclip|worldwide", "CC-BY-NC-4.0"),
    (r"nllb-", "CC-BY-NC-4.0"),
    (r"dfn|MobileCLIP", "Apple, research only (apple-amlr)"),
    (r"SigLIP|CLIPA|PE-Core", "Apache-2.0"),
    (r"/openai$|laion|datacomp|commonpool|EVA0|ViTamin|yfcc15m|cc12m|mscoco_finetuned", "MIT"),
)
"""The first pattern found in ARCHITECTURE/PRETRAINED counts."""

_LANGUAGES: tuple[tuple[str, str], ...] = (
    (r"worldwide", "300 and more"),
    (r"nllb-", "201"),
    (r"SigLIP2|SigLIP-i18n", "109"),
    (r"mt5-", "101"),
    (r"xlm-roberta", "100"),
)
"""Likewise; all others learned English."""


@dataclass(frozen=True)
class PublishedModel:
    """Weights that `openclip:ARCHITECTURE/PRETRAINED` loads.

    Attributes:
        spec: What loads them.
        parameters: Of both towers.
        dimension: D.
        image_size: R, pixels.
        gmacs_per_frame: Giga multiply-adds of the vision tower for a frame.
        speed: By `gmacs_per_frame`.
        languages: "English", or how many.
        licence: As the weights' page states it; "see its page" where this table does not know.
        needs_hf: Needs the extra `hf` (transformers).
        has_probability: See `XClip.probability`.
        is_here: The weights are in the local cache.
    """

    spec: str
    parameters: int
    dimension: int
    image_size: int
    gmacs_per_frame: float
    speed: Speed
    languages: str
    licence: str
    needs_hf: bool
    has_probability: bool
    is_here: bool


def published_models() -> Iterator[PublishedModel]:
    """All of open_clip's weights whose architecture can be a model of ours, in open_clip's order."""
    import open_clip  # slow, and what reads the class alone has no need of it

    table: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    for architecture, pretrained in open_clip.list_pretrained():
        facts = table.get(architecture, {"problem": "newer than the table"})
        published = open_clip.get_pretrained_cfg(architecture, pretrained)
        quick = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu"))
        if "problem" in facts or quick != bool(published.get("quick_gelu")):
            continue
        name, gmacs = f"{architecture}/{pretrained}", facts["gmacs_per_frame"]
        yield PublishedModel(
            spec=f"openclip:{name}",
            parameters=facts["parameters"],
            dimension=facts["dimension"],
            image_size=facts["image_size"],
            gmacs_per_frame=gmacs,
            speed=next((speed for limit, speed in _SPEEDS if gmacs <= limit), "very slow"),
            languages=_first(_LANGUAGES, name, "English"),
            licence=_first(_LICENCES, name, "see its page"),
            needs_hf=facts["needs_hf"],
            has_probability=facts["has_probability"],
            is_here=_is_here(published),
        )


def _first(rules: tuple[tuple[str, str], ...], name: str, otherwise: str) -> str:
    return next((value for pattern, value in rules if re.search(pattern, name)), otherwise)


def _is_here(published: dict[str, Any]) -> bool:
    """Whether the weights are in the cache of huggingface_hub, or in that of open_clip's own downloads."""
    from huggingface_hub import try_to_load_from_cache

    if repository := published.get("hf_hub"):
        name, _, file = repository.rpartition("/")
        files = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
        return any(isinstance(try_to_load_from_cache(name, one), str) for one in files)
    return (Path("~/.cache/clip").expanduser() / Path(published.get("url", "")).name).is_file()
