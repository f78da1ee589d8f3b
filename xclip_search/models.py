"""`xclip-search models`. Heavy imports happen inside the command."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from xclip_search.console import JsonOption, echo, make_app, print_json

app = make_app()


class SpeedName(StrEnum):
    """How much work a frame is, see `model.checkpoints.catalogue`."""

    fast = "fast"
    medium = "medium"
    slow = "slow"
    very_slow = "very slow"


@app.command()
def models(
    words: Annotated[
        list[str] | None, typer.Argument(help="Only specs that contain all these words, as siglip2.")
    ] = None,
    multilingual: Annotated[
        bool, typer.Option("--multilingual", help="Only models of more languages than English.")
    ] = False,
    speed: Annotated[
        SpeedName | None, typer.Option(help="Only models of this speed, by the work for a frame.")
    ] = None,
    max_parameters: Annotated[
        float | None, typer.Option(min=0, help="Maximum number of parameters, in millions.")
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="Only weights that are in the local cache.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the published image-text models that --model takes as openclip:ARCHITECTURE/PRETRAINED.

    Each is used zero-shot, or trained into an X-CLIP. docs/models.md says which to choose.

    Speed is by giga multiply-adds for a frame: fast up to 6, medium up to 25, slow up to 100.
    """
    from dataclasses import asdict

    from model.checkpoints.catalogue import published_models

    found = [
        model
        for model in published_models()
        if all(word.lower() in model.spec.lower() for word in words or [])
        and (not multilingual or model.languages != "English")
        and (speed is None or model.speed == speed)
        and (max_parameters is None or model.parameters <= max_parameters * 1e6)
        and (not here or model.is_here)
    ]
    if as_json:
        print_json([asdict(model) for model in found])
        return
    widest = max((len(model.spec) for model in found), default=0)
    for model in found:
        notes = [model.licence] + ["needs the extra hf"] * model.needs_hf
        echo(
            f"{'*' if model.is_here else ' '} {model.spec:{widest}}  {model.parameters / 1e6:5.0f} M  "
            f"{model.dimension:4} numbers  {model.gmacs_per_frame:6.1f} GMAC {model.speed:9}  "
            f"{model.languages:12}  {', '.join(notes)}"
        )
    echo(f"{len(found)} models; * is in the local cache", err=True)
