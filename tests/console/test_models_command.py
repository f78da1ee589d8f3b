"""`xclip-search models` lists what open_clip publishes and what of it is here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import open_clip
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

import xclip_search
from model.checkpoints.catalogue import TABLE, published_models


def listed(*arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(xclip_search.app, ["models", "--json", *arguments])
    assert result.exit_code == 0, result.output
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_every_architecture_of_open_clip_was_tried_and_each_of_its_weights_is_listed():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    assert set(open_clip.list_models()) <= set(table), (
        "run python -m benchmarks.facts.openclip_architectures --write"
    )
    specs = {model.spec for model in published_models()}
    assert {
        "openclip:ViT-B-32-quickgelu/openai",
        "openclip:ViT-B-16-SigLIP2/webli",
        "openclip:MobileCLIP2-S2/dfndr2b",
        "openclip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k",
    } <= specs
    assert "openclip:ViT-B-32/openai" not in specs  # its weights belong to the other activation


def test_the_list_can_be_narrowed():
    many = listed("--multilingual")
    assert many and all(model["languages"] != "English" for model in many)
    small = listed("--max-parameters", "160", "--speed", "fast")
    assert small and all(model["parameters"] <= 160e6 and model["gmacs_per_frame"] <= 6 for model in small)
    named = listed("siglip2", "b-16")
    assert named and all("SigLIP2" in str(model["spec"]) and model["has_probability"] for model in named)
    assert all(model["licence"] == "Apache-2.0" and model["needs_hf"] for model in named)
    shown = CliRunner().invoke(xclip_search.app, ["models", "siglip2", "b-16"])
    assert len(shown.stdout.splitlines()) == len(named)
    assert CliRunner().invoke(xclip_search.app, ["models", "--speed", "quick"]).exit_code == 2


def test_weights_in_the_cache_are_marked(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert listed("--here") == []
    published = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP2", "webli")["hf_hub"]
    repository = tmp_path / f"models--{published.strip('/').replace('/', '--')}"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "open_clip_model.safetensors").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert [model["spec"] for model in listed("--here")] == ["openclip:ViT-B-16-SigLIP2/webli"]


@pytest.mark.parametrize("name", ["docs/models.md", "README.md"])
def test_every_spec_in_the_documents_is_published(name):
    text = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
    specs = {model.spec for model in published_models()}
    named = set(re.findall(r"`(openclip:[\w-]+/[a-z0-9_]+)`", text))
    assert named and named <= specs, named - specs
