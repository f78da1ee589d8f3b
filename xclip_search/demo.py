"""`xclip-search demo`. Heavy imports happen inside the command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Option(help="Where the videos and the index go; kept for the next time.")
    ] = Path("demo-data"),
    num_videos: Annotated[int, typer.Option(help="Videos in the corpus.", min=10, max=5000)] = 80,
    seed: Annotated[int, typer.Option(help="Another seed gives other videos.")] = 1,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the page afterwards.")] = True,
    port: Annotated[int, typer.Option(help="Port of the page.", min=0, max=65535)] = 8000,
) -> None:
    """Make a small captioned corpus, index it with the demo model, search it, then serve the page.

    The corpus is indexed, searched and served by the same commands that serve any other; each is printed.
    """
    from rich.console import Console

    from xclip_search.demo_run import count_found_first, make_corpus, read_manifest, show_searches

    console = Console()
    folder = directory / f"{num_videos}-videos-seed-{seed}"  # Another corpus is another index.
    index = folder / "index"
    manifest = make_corpus(folder / "videos", num_videos, seed, console)
    console.print(f"[bold]$ xclip-search index --manifest {manifest} --index {index} --model demo")

    from indexer.index import Index
    from indexer.ingest.manifest import read_manifest as read_sources
    from xclip_search.console import GOES_ON, errors_explained, video_progress

    with errors_explained(GOES_ON), Index.open_or_create(index, "demo") as opened:
        sources = read_sources(manifest)
        with video_progress("indexing") as count:
            opened.add_all(sources, lambda event: count(len(sources), event.outcome == "failed"))
        console.print(f"{len(opened)} videos are in")
        videos = read_manifest(manifest)
        show_searches(opened.searcher, videos, console)
        found = count_found_first(opened.searcher, videos)
    console.print(f"{found} of {len(videos)} captions find their own video first.")
    if serve:
        command = ["serve", "--index", str(index), "--port", str(port)]
        console.print(f"\n[bold]$ xclip-search {' '.join(command)}")
        # In place of this process, so that Ctrl-C reaches the server as if it had been started by hand.
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "xclip_search", *command])
