"""Every architecture of open_clip, tried once: which can be a model of ours, how large it is, why not if not.

    python -m benchmarks.facts.openclip_architectures [--write] [NAME ...]

Towers are built without memory (torch's meta device) and given one frame and one text. `--write` puts what
was tried into `model/checkpoints/openclip_architectures.json`, which `xclip-search models` reads.
"""

from __future__ import annotations

import argparse
import json
import logging
from typing import Any
from unittest import mock

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from model.checkpoints import loading
from model.checkpoints.catalogue import TABLE
from model.towers import clip_towers, encode_positions

_XLM_R = {"model_type": "xlm-roberta", "vocab_size": 250002, "max_position_embeddings": 514}
_MT5 = {
    "model_type": "mt5",
    "vocab_size": 250112,
    "d_kv": 64,
    "is_encoder_decoder": True,
    "feed_forward_proj": "gated-gelu",
}
_NLLB = {
    "model_type": "m2m_100",
    "vocab_size": 256206,
    "d_model": 1024,
    "decoder_layers": 1,  # not kept
    "encoder_attention_heads": 16,
}
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514},
    "xlm-roberta-base": _XLM_R,
    "xlm-roberta-large": {
        **_XLM_R,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "google/mt5-base": {**_MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "google/mt5-xl": {**_MT5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": {**_NLLB, "encoder_layers": 12, "encoder_ffn_dim": 4096},
    "facebook/nllb-200-distilled-1.3B": {**_NLLB, "encoder_layers": 24, "encoder_ffn_dim": 8192},
}
"""Sizes of text towers as their `config.json` on the Hub states them, so that no network is needed here."""


def try_architecture(name: str) -> dict[str, Any]:
    """Facts of one architecture."""
    description = open_clip.get_model_config(name)
    config = loading.zero_shot_config(description, loading.preprocessing_of(name), f"{name}/random")
    size = config.image_size
    with torch.device("meta"):
        towers = clip_towers(config).eval().requires_grad_(False)
        frame, ids = torch.zeros(1, 3, size, size), torch.zeros(1, config.num_tokens, dtype=torch.long)
    runs = [lambda: towers.visual(frame)]
    if config.architecture.huggingface is None:  # towers of transformers look at values, which are not there
        runs.append(lambda: encode_positions(towers, config.architecture, ids))
    giga_multiply_adds = []
    for run in runs:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        giga_multiply_adds.append(round(counter.get_total_flops() / 2e9, 2))
    return {
        "parameters": sum(parameter.numel() for parameter in towers.parameters()),
        "dimension": config.embedding_dim,
        "image_size": size,
        "gmacs_per_frame": giga_multiply_adds[0],
        "gmacs_per_text": giga_multiply_adds[1] if len(runs) > 1 else None,
        "context_length": config.context_length,
        "needs_hf": config.architecture.tokenizer is not None,
        "has_probability": config.architecture.has_bias,
    }


def main() -> None:
    """Try all, print a line each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="only these architectures")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    table: dict[str, Any] = {}
    with mock.patch.object(loading, "text_tower_configuration", TEXT_TOWERS.__getitem__):
        for name in options.names or open_clip.list_models():
            try:
                table[name] = try_architecture(name)
            except Exception as error:  # whatever it is, it is the answer
                table[name] = {"problem": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            print(f"{name:34} {json.dumps(table[name])}", flush=True)
    print(f"{sum('problem' not in facts for facts in table.values())} of {len(table)} can be built")
    if options.write:
        known = json.loads(TABLE.read_text(encoding="utf-8")) if options.names and TABLE.is_file() else {}
        ordered = {name: facts for name in open_clip.list_models() if (facts := (known | table).get(name))}
        TABLE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
