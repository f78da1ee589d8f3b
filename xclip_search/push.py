"""`xclip-search push`. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xclip_search.console import FAILED, echo, errors_explained, make_app, stop

app = make_app()


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
