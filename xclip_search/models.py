"""`xclip-search models`, `convert` and `push`. Heavy imports happen inside the commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xclip_search.console import (
    FAILED,
    WRONG_USE,
    JsonOption,
    echo,
    errors_explained,
    make_app,
    print_json,
    stop,
)

if TYPE_CHECKING:
    from model.xclip import XClip

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


# Copies of a model in other layouts and places


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


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(help="A model directory, or a run directory: its best model.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The Hub repository.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, made if absent.", show_default="main")] = None,
    message: Annotated[
        str | None, typer.Option(help="Commit message.", show_default="Upload model and its fingerprint")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="The Hub's identifier of the model's licence, for the card.", show_default="other"),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(help="JSON report of `xclip-search evaluate` for the model card; may be repeated."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the model card and publish nothing.")
    ] = False,
) -> None:
    """Publish a model on the Hugging Face Hub: config.json, model.safetensors and a model card.

    They go up in one commit. The card is the directory's README.md, or one written from the run. The model
    then loads as hf-hub:OWNER/NAME. A token comes from `hf auth login` or HF_TOKEN.
    Exit status: 0 done, 1 failed, 2 wrong use.
    """
    if not directory.is_dir():
        stop(f"there is no directory {directory}")
    with errors_explained():
        from model.checkpoints.hub import publish, require_repository_name

        require_repository_name(repository)
    with errors_explained(failed=FAILED):
        from model.checkpoints.loading import MODEL_FILES
        from model.xclip import XClip
        from training.publishing import card_text, model_directory

        folder = model_directory(directory)
        model = XClip.load(folder.absolute(), "cpu")
        card = card_text(directory, model, repository, license=license, evaluations=evaluation or [])
        if dry_run:
            echo(card.removesuffix("\n"), keep_lines=True)
            return
        found = (path for pattern in MODEL_FILES for path in folder.glob(pattern))
        files = {path.relative_to(folder).as_posix(): path for path in found}
        done = publish(
            {**files, "README.md": card.encode()},
            repository,
            private=private,
            revision=revision,
            message=message or f"Upload model {model.fingerprint[:12]}",
        )
    echo(done.url)
    echo(f"fingerprint {model.fingerprint}")
    echo(f"loads as hf-hub:{repository}" + (f"@{revision}" if revision else ""))
    echo(f"and always as {done.spec}")
