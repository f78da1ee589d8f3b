"""`xclip-search convert`. Heavy imports happen inside the command."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xclip_search.console import FAILED, WRONG_USE, echo, errors_explained, make_app, stop

if TYPE_CHECKING:
    from model.xclip import XClip

app = make_app()


class LayoutName(StrEnum):
    """How a model lies on disk."""

    official = "official"
    ours = "ours"


class PrecisionName(StrEnum):
    """Number format of the official code's half-precision tensors."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A model spec: a directory, an official checkpoint file, demo,"
            " openclip:ARCHITECTURE/PRETRAINED or hf-hub:OWNER/NAME."
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(help="A directory (ours), or a file *.bin, *.bin.N, *.safetensors (official).")
    ],
    to: Annotated[
        LayoutName | None, typer.Option(help="Layout to write.", show_default="by the destination's name")
    ] = None,
    dtype: Annotated[
        PrecisionName,
        typer.Option(
            help="Official layout only. auto: float16 where the official code has it, if that loses nothing,"
            " else float32 throughout."
        ),
    ] = PrecisionName.auto,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing destination.")] = False,
) -> None:
    """Convert between our layout (config.json, model.safetensors) and the official X-CLIP checkpoint file.

    A model that the official code would score differently is refused, with every reason.
    Exit status: 0 done, 1 not possible, 2 wrong use.
    """
    from model.checkpoints.loading import layout_of, require_free

    layout = to.value if to else layout_of(destination)
    if layout is None:
        stop(f"{destination} may be either; say --to official or --to ours")
    if layout == "ours" and dtype == PrecisionName.float16:
        stop("our layout is float32 always; --dtype float16 is for --to official")
    with errors_explained(failed=WRONG_USE):
        require_free(destination, layout, overwrite)
    with errors_explained(failed=FAILED):
        from model.xclip import XClip

        model = XClip.load(source, device="cpu")
        if layout == "official":
            _write_official(model, destination, dtype)
        else:
            model.save(destination)
            echo(f"{destination}: config.json and model.safetensors, float32")
            echo(f"fingerprint {model.fingerprint}")


def _write_official(model: XClip, destination: Path, dtype: PrecisionName) -> None:
    from model.checkpoints.official import official_options, to_official, write_official
    from model.xclip import XClip

    official = to_official(model.config, model.state_dict(), dtype.value)
    write_official(official.tensors, destination)
    num_float32 = len(official.tensors) - official.num_half
    echo(f"{destination}: {official.num_half} tensors in float16, {num_float32} in float32")
    if official.lossy and official.num_half:
        echo(f"{len(official.lossy)} tensors were rounded to float16, {official.lossy[0]} the first")
    elif official.lossy:
        echo(
            f"float32 throughout: float16 would round {len(official.lossy)} tensors, {official.lossy[0]} the"
            " first. The official code itself rounds them when it loads the file"
        )
    written = XClip.from_official(destination, device="cpu").fingerprint
    echo(f"fingerprint {written}")
    if written != model.fingerprint:
        echo(f"the source's is {model.fingerprint}: an index made with one is refused with the other")
    echo(f"the official main_xclip.py needs: {official_options(model.config)}")
